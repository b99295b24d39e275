"""`exact`: whoever drafts, greedy text is the same to the byte, on a real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import TableBackend, random_table
from tiny_gguf import write_tiny

from edgellm.runtime import ChatSession, EngineOptions
from edgellm.runtime.backends.base import Logits
from edgellm.runtime.bringup.exactness import exact_width
from edgellm.runtime.bringup.load import load_target, with_drafter
from edgellm.runtime.drafters.translating import TranslatingDrafter

QUESTIONS = ("Write a haiku about rain.", "Count: one two three one two three one two")


def test_exact_text_is_the_same_with_every_drafter(smollm2_path: Path, tmp_path: Path) -> None:
    foreign = write_tiny(tmp_path / "foreign.gguf", vocab="spm")  # another vocabulary, and nonsense for drafts
    target = load_target(smollm2_path, EngineOptions(n_ctx=512, n_draft=4, fixed=True, exact=True, learn="off"))
    said = {}
    for name, draft, copy in (
        ("none", None, False),
        ("copy", None, True),
        ("itself", smollm2_path, False),
        ("another vocabulary", foreign, True),
    ):
        engine = with_drafter(target, draft, copy=copy)
        model = engine.controller.model if engine.controller is not None else None
        assert isinstance(getattr(model, "model", None), TranslatingDrafter) == (draft == foreign)
        engine.backend.truncate(0)
        session, drafted = ChatSession(engine), 0
        texts = []
        for question in QUESTIONS:
            texts.append("".join(session.reply(question, max_tokens=32)))
            assert session.last is not None
            drafted += session.last.stats.n_drafted
        assert drafted > 0 or name == "none"
        said[name] = texts
        assert with_drafter(engine, None, copy=False).controller is None  # neither, whatever the engine had
        engine.drafter.close()
    assert all(texts == said["none"] for texts in said.values())
    target.close()


class Uneven(TableBackend):
    """Passes from a given width on give other sums."""

    def __init__(self, width: int) -> None:
        super().__init__(random_table(8), max_outputs=6)
        self.width = width

    def forward(self, tokens: list[int], n_outputs: int) -> Logits:  # type: ignore[override]
        rows = super().forward(tokens, n_outputs)
        return rows * np.float32(1.0000002) if len(tokens) >= self.width and n_outputs else rows


@pytest.mark.parametrize(("width", "exact"), [(2, 1), (3, 2), (5, 4), (9, 6)])
def test_the_exact_width_is_the_widest_that_agrees_with_single_tokens(width: int, exact: int) -> None:
    backend = Uneven(width)
    assert exact_width(backend) == exact
    assert backend.tokens == []
