"""Recurrent states: cut back to any token of a round, and to where prompts ended, with the bits of a fresh reading."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import alone
from numpy.typing import NDArray
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.backends import llama_states
from edgellm.runtime.backends.base import EngineError, Interrupted, keep_common_prefix
from edgellm.runtime.backends.llama_cpp import MAX_AGAIN, LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.sampling import GREEDY

WITHOUT_SNAPSHOTS = ["mamba", "mamba2", "granitehybrid", "falcon-h1"]
STATEFUL = [*WITHOUT_SNAPSHOTS, "lfm2", "qwen35"]
SETTINGS = ContextSettings(512, n_ubatch=32, n_outputs=9, n_saved_states=5)
Open = Callable[..., LlamaBackend]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("states")

    def written(architecture: str) -> Path:
        path = folder / f"{architecture}.gguf"
        return path if path.exists() else write_tiny(path, architecture, weights="Q8_0")

    return written


@pytest.fixture
def opened(tiny: Callable[[str], Path]) -> Iterator[Open]:
    held: list[LlamaBackend] = []

    def backend(architecture: str, settings: ContextSettings = SETTINGS, **more: object) -> LlamaBackend:
        held.append(LlamaBackend(LlamaModel(tiny(architecture)), settings, **more))  # type: ignore[arg-type]
        return held[-1]

    yield backend
    for one in held:
        one.close()
        one.model.close()


def some(n: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(n)]


def fresh(backend: LlamaBackend, before: list[int], tokens: list[int]) -> NDArray[np.float32]:
    """The rows of `tokens`, each in a pass of its own, in a text that is read from its beginning."""
    backend.truncate(0)
    if before:
        backend.forward(before, 0)
    return np.concatenate([backend.forward([token], 1).copy() for token in tokens])


@pytest.mark.parametrize("architecture", STATEFUL)
def test_rows_after_any_rejections_have_the_bits_of_single_tokens_in_a_fresh_text(
    architecture: str, opened: Open
) -> None:
    backend, other, rng = opened(architecture), opened(architecture), random.Random(7)
    held = some(33, 1)
    backend.forward(held, 0)
    for i in range(40):
        drafted = some(rng.randint(1, 9), 100 + i)
        rows = backend.forward(drafted, len(drafted)).copy()
        n_kept = rng.choice((1, rng.randint(1, len(drafted)), len(drafted)))
        if i % 4 == 0:
            assert np.array_equal(rows, fresh(other, held, drafted))
        backend.truncate(len(held) + n_kept)
        held = [*held, *drafted[:n_kept]]
        assert backend.tokens == held


@pytest.mark.parametrize("architecture", ["mamba", "granitehybrid"])
def test_what_was_accepted_is_read_again_beside_the_next_draft_and_not_for_ever(
    architecture: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(architecture)
    widths: list[int] = []
    decode = backend._decode
    monkeypatch.setattr(
        backend, "_decode", lambda tokens, *a, **k: (widths.append(len(tokens)), decode(tokens, *a, **k))
    )
    backend.forward(some(20, 1), 0)
    for i in range(12):
        backend.forward(some(4, i), 4)
        backend.truncate(len(backend.tokens) - 2)
    assert max(widths[1:]) <= 4 + MAX_AGAIN
    assert sum(widths[1:]) < 12 * (4 + MAX_AGAIN)


@pytest.mark.parametrize("architecture", WITHOUT_SNAPSHOTS)
def test_a_draft_in_the_very_first_pass_can_be_taken_back(architecture: str, opened: Open) -> None:
    backend, other = opened(architecture), opened(architecture)
    tokens = some(6, 3)
    backend.forward(tokens, 6)
    backend.truncate(2)
    assert np.array_equal(backend.forward([9, 10], 2), fresh(other, tokens[:2], [9, 10]))


@pytest.mark.parametrize("architecture", STATEFUL)
def test_a_later_text_goes_on_where_a_prompt_ended(architecture: str, opened: Open) -> None:
    """As a turn does whose template leaves the thoughts of the turn before out."""
    backend, other = opened(architecture), opened(architecture)
    prompt, answer, later = some(60, 1), some(50, 2), some(45, 3)
    backend.forward(prompt, 0)
    for token in answer:
        backend.forward([token], 1)
    new = [*prompt, *later]
    assert keep_common_prefix(backend, new, len(new) - 1) == len(prompt)
    backend.forward(new[len(backend.tokens) : -1], 0)
    assert np.array_equal(backend.forward(new[-1:], 1), fresh(other, new[:-1], new[-1:]))


@pytest.mark.parametrize("architecture", STATEFUL)
def test_a_beginning_that_two_texts_share_is_read_once_more_and_then_never(architecture: str, opened: Open) -> None:
    backend, system = opened(architecture), some(70, 1)
    texts = [[*system, *some(50, 10 + i)] for i in range(4)]
    kept = []
    for text in texts:
        kept.append(keep_common_prefix(backend, text, len(text) - 1))
        backend.forward(text[len(backend.tokens) : -1], 0)
    assert kept == [0, 0, 70, 70]


@pytest.mark.parametrize("architecture", ["mamba2", "lfm2"])
def test_copies_are_as_many_as_were_planned_and_the_one_used_longest_ago_goes(architecture: str, opened: Open) -> None:
    backend = opened(architecture, replace(SETTINGS, n_saved_states=3))
    text = some(400, 1)
    for n in range(50, 400, 50):
        backend.forward(text[n - 50 : n], 0)
    n_turns = 3 - (architecture == "mamba2")
    wanted = [350 - 50 * i for i in range(n_turns)]
    for n in wanted:
        assert keep_common_prefix(backend, [*text[: n + 1], 300], n) == n
    assert keep_common_prefix(backend, text[: wanted[-1] - 20], wanted[-1] - 20) == 0


@pytest.mark.parametrize("architecture", WITHOUT_SNAPSHOTS)
def test_drafts_change_nothing_on_a_model_of_states(architecture: str, tiny: Callable[[str], Path]) -> None:
    options = EngineOptions(n_ctx=512, n_draft=4, fixed=True)
    with load(tiny(architecture), None, EngineOptions(n_ctx=512, copy=False)) as plain:
        wanted = [list(ChatSession(plain).reply(text, max_tokens=40)) for text in ("the thin hat", "a cat in a hat")]
    with load(tiny(architecture), tiny(architecture), options) as engine:
        n_drafted = 0
        for text, said in zip(("the thin hat", "a cat in a hat"), wanted, strict=True):
            session = ChatSession(engine)
            assert "".join(session.reply(text, max_tokens=40)) == "".join(said)
            assert session.last is not None
            n_drafted += session.last.stats.n_drafted
        assert n_drafted
        assert not any("drafted" in warning for warning in engine.warnings)


@pytest.mark.parametrize("architecture", ["mamba", "falcon-h1"])
def test_a_drafter_of_states_reads_what_is_new_alone(architecture: str, opened: Open) -> None:
    target, drafter = opened("qwen35"), ModelDrafter(opened(architecture, replace(SETTINGS, n_outputs=1)))
    backend, prompt, read = drafter.backend, some(100, 5), []
    forward = backend.forward
    backend.forward = lambda tokens, n_outputs: (read.append(len(tokens)), forward(tokens, n_outputs))[1]  # type: ignore[method-assign,func-returns-value]
    drafter.begin(prompt)
    drafted = [t for r in generate(target, alone(drafter), prompt, GREEDY, n_draft=4, max_new=30) for t in r.tokens]
    assert max(read[1:]) <= 6
    target.truncate(0)
    assert drafted == [
        t for r in generate(target, NoDrafter(), prompt, GREEDY, n_draft=0, max_new=30) for t in r.tokens
    ]


@pytest.mark.parametrize("architecture", ["mamba", "granitehybrid"])
def test_reading_that_is_interrupted_goes_on_from_a_copy(architecture: str, opened: Open) -> None:
    class Stop:
        n_asked = 0

        def is_set(self) -> bool:
            self.n_asked += 1
            return self.n_asked > 40

    backend, other = opened(architecture, stop_asked=Stop()), opened(architecture)
    first, more = some(40, 1), some(200, 2)
    backend._stop_asked.n_asked = -10_000  # type: ignore[union-attr]
    backend.forward(first, 0)
    backend._stop_asked.n_asked = 0  # type: ignore[union-attr]
    with pytest.raises(Interrupted):
        backend.forward(more, 0)
    n = len(backend.tokens)
    assert backend.tokens == [*first, *more][:n]
    backend._stop_asked.n_asked = -10_000  # type: ignore[union-attr]
    assert np.array_equal(backend.forward([7], 1), fresh(other, [*first, *more][:n], [7]))


def test_a_state_that_the_engine_does_not_hand_out_is_a_sentence(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened("mamba")
    backend.forward(some(10, 1), 0)
    monkeypatch.setattr(llama_states.api, "llama_state_seq_get_data_ext", lambda *_: 0)
    with pytest.raises(EngineError, match="did not hand out its state after 10 tokens"):
        backend.forward(some(3, 2), 3)
