"""Stopping an answer at any moment leaves the conversation and the cache true."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.backends.base import Interrupted
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.sampling import GREEDY, Sampling

LONG = "the thin hat " * 60


class Countdown(threading.Event):
    """Asks to stop at the n-th time somebody looks."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def is_set(self) -> bool:
        self.n -= 1
        return self.n < 0


class StopsBeforeReading(NoDrafter):
    """A drafter in whose place somebody asks to stop, once."""

    def __init__(self, cancel: threading.Event) -> None:
        self.cancel, self.asked = cancel, False

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        if not self.asked:
            self.cancel.set()
        self.asked = True


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def answer(session: ChatSession, text: str, cancel: threading.Event | None = None) -> str:
    return "".join(session.reply(text, max_tokens=8, cancel=cancel))


@pytest.mark.parametrize("n_looks", [0, 1, 40, 150, 400])
def test_a_read_that_is_stopped_anywhere_can_be_taken_up_again(tiny: Path, n_looks: int) -> None:
    model = LlamaModel(tiny)
    tokens = model.vocabulary.encode(LONG.encode())
    whole = LlamaBackend(model, ContextSettings(n_ctx=1024, n_ubatch=32))
    expected = whole.forward(tokens, n_outputs=1).copy()
    backend = LlamaBackend(model, ContextSettings(n_ctx=1024, n_ubatch=32), stop_asked=Countdown(n_looks))
    with pytest.raises(Interrupted):
        backend.forward(tokens, n_outputs=1)
    held = list(backend.tokens)
    assert held == tokens[: len(held)]
    assert len(held) < len(tokens)
    backend._stop_asked = threading.Event()
    assert np.array_equal(backend.forward(tokens[len(held) :], n_outputs=1), expected)
    for used in (backend, whole, model):
        used.close()


def test_a_question_that_is_stopped_before_its_answer_is_taken_back(tiny: Path) -> None:
    with load(tiny, options=EngineOptions(n_ctx=2048)) as engine:
        session = ChatSession(engine)
        first = answer(session, "hat")
        cancel = threading.Event()
        session.engine = replace(engine, drafter=StopsBeforeReading(cancel))
        before = list(session.messages)
        assert answer(session, LONG, cancel) == ""
        assert session.last is not None
        assert session.last.finish_reason == "interrupted"
        assert session.messages == before
        again = answer(session, "thin")
        fresh = ChatSession(session.engine)
        assert (answer(fresh, "hat"), answer(fresh, "thin")) == (first, again)


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(tiny: Path) -> None:
    with load(tiny, options=EngineOptions(n_ctx=2048, copy=False)) as engine:
        session = ChatSession(engine)
        shown, cancel = "", threading.Event()
        for piece in session.reply("hat", max_tokens=64, cancel=cancel):
            shown += piece
            cancel.set()
        assert session.last is not None
        assert session.last.finish_reason == "interrupted"
        assert session.last.stats.n_new < 64
        assert session.messages[-1].content == shown != ""


def test_a_regeneration_that_is_stopped_before_it_begins_leaves_the_old_answer(tiny: Path) -> None:
    with load(tiny, options=EngineOptions(n_ctx=2048)) as engine:
        session = ChatSession(engine)
        answer(session, LONG)
        before = list(session.messages)
        engine.backend.truncate(0)
        cancel = threading.Event()
        session.engine = replace(engine, drafter=StopsBeforeReading(cancel))
        assert "".join(session.regenerate(max_tokens=8, cancel=cancel)) == ""
        assert session.messages == before


@pytest.mark.parametrize("n_looks", [2, 150, 400])
def test_a_request_that_is_cancelled_while_it_is_read_is_taken_up_by_the_next(tiny: Path, n_looks: int) -> None:
    with load(tiny, options=EngineOptions(n_ctx=2048, n_ubatch=32, learn="off", n_threads=1)) as engine:
        whole = engine.generate(LONG, max_tokens=8).finish()
        engine.backend.truncate(0)
        stopped = engine.generate(LONG, max_tokens=8, cancel=Countdown(n_looks)).finish()
        assert (stopped.finish_reason, stopped.text) == ("interrupted", "")
        n_held = len(engine.backend.tokens)
        assert n_held < whole.stats.n_prompt - 1
        again = engine.generate(LONG, max_tokens=8).finish()
        assert (again.tokens, again.stats.n_cached) == (whole.tokens, n_held)
