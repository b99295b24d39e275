"""Beginnings that are kept beside the conversations: used again, let go of where cells are short, seen in no bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.base import StopSwitch, keep_common_prefix
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.backends.llama_sequences import MIN_PARKED, LlamaSequences
from edgellm.runtime.backends.parked import Parked, n_common
from edgellm.runtime.parallel.passes import Meeting
from edgellm.runtime.parallel.sequence import SequenceBackend

N_CTX = 200
TEXTS = st.lists(st.integers(0, 3), max_size=40)


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[LlamaModel]:
    if not kernels().active:
        pytest.skip("the engine's own kernels share no cells")
    loaded = LlamaModel(smollm2_path)
    yield loaded
    loaded.close()


class Seats:
    """Backends over one context, used by one thread."""

    def __init__(self, model: LlamaModel, n: int, *, n_parked: int, n_ctx: int = N_CTX) -> None:
        settings = ContextSettings(n_ctx=n_ctx, n_ubatch=64, n_outputs=16)
        self.context = LlamaSequences(model, settings, n, n_parked=n_parked)
        self.meeting = Meeting()
        queue = self.meeting.queue(self.context)
        self.backends = [SequenceBackend(self.meeting, queue, i, max_outputs=16, stop=StopSwitch()) for i in range(n)]

    def ask(self, seat: int, tokens: list[int], n_read: int | None = None) -> int:
        """Read a text, or so many tokens of it; how many were held."""
        with self.meeting.member():
            n_held = keep_common_prefix(self.backends[seat], tokens, len(tokens) - 1)
            self.backends[seat].forward(tokens[n_held:n_read], 0 if n_read is not None else 1)
        return n_held

    def row(self, seat: int, tokens: list[int]) -> np.ndarray:
        with self.meeting.member():
            n_held = keep_common_prefix(self.backends[seat], tokens, len(tokens) - 1)
            return self.backends[seat].forward(tokens[n_held:], 1)[0].copy()


def text_of(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(100, 40_000) for _ in range(n)]


@given(TEXTS, TEXTS)
def test_what_two_texts_begin_with_alike_is_counted(a: list[int], b: list[int]) -> None:
    n = n_common(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def test_the_least_recently_used_goes_first() -> None:
    parked = Parked(range(4, 7))
    first, second, third = parked.take(), parked.take(), parked.take()
    assert {first, second, third} == {4, 5, 6}
    parked.use(first)
    parked.use(99)  # none of them
    assert list(parked) == [second, third, first]
    assert parked.take(keep=second) == third
    parked.let_go(second)
    assert second not in parked
    assert parked.take() == second


@pytest.mark.parametrize("seed", range(2))
def test_rows_are_those_alone_whatever_was_parked_and_let_go(model: LlamaModel, seed: int) -> None:
    rng = random.Random(seed)
    seats = Seats(model, 2, n_parked=5)
    alone = LlamaBackend(model, ContextSettings(n_ctx=N_CTX, n_ubatch=64, n_outputs=16))
    stems = [text_of(rng, 120) for _ in range(5)]
    n_adopted = n_let_go = 0
    for _ in range(16):
        stem = rng.choice(stems)
        text = stem[: rng.choice([70, 100, 120])] + text_of(rng, rng.randint(1, 60))
        seat = rng.randrange(2)
        own = n_common(seats.backends[seat].tokens, text)
        if rng.random() < 0.2:  # called off while it is read
            seats.ask(seat, text, rng.randint(own + 1, len(text)))
            continue
        before = [len(held) for held in seats.context.held[2:]]
        keep_common_prefix(alone, text, len(text) - 1)
        expected = alone.forward(text[len(alone.tokens) :], 1)[0]
        assert np.array_equal(seats.row(seat, text), expected)
        assert seats.backends[seat].tokens == text
        n_adopted += max(n_common(held, text) for held in seats.context.held[2:]) > own + 32
        n_let_go += any(not now and was for now, was in zip(map(len, seats.context.held[2:]), before, strict=True))
        if rng.random() < 0.3:  # a draft is rejected
            with seats.meeting.member():
                seats.backends[seat].truncate(len(text) - rng.randint(1, 9))
    assert n_adopted
    assert n_let_go
    alone.close()
    seats.context.close()


def test_a_conversation_always_has_its_own_context_whatever_is_parked(model: LlamaModel) -> None:
    rng = random.Random(7)
    seats = Seats(model, 2, n_parked=8, n_ctx=128)
    for _ in range(4):
        seats.ask(0, text_of(rng, 120))
    assert sum(map(len, seats.context.held[2:])) > MIN_PARKED
    for seat in (0, 1):
        seats.ask(seat, text_of(rng, 128))
    assert [len(held) for held in seats.context.held[:2]] == [128, 128]
    assert not any(seats.context.held[2:])
    seats.context.close()


def test_a_text_that_goes_on_takes_the_place_of_its_beginning(model: LlamaModel) -> None:
    rng = random.Random(8)
    seats = Seats(model, 1, n_parked=8, n_ctx=512)
    text = text_of(rng, 150)
    for n in (90, 120, 150):
        seats.ask(0, text[:n])
        seats.ask(0, text_of(rng, 10))
        assert seats.ask(0, text[:n]) == n - 1
    seats.ask(0, text_of(rng, 10))
    assert [len(held) for held in seats.context.held[1:] if held] == [150]
    seats.context.close()


def test_what_was_embedded_is_not_parked(model: LlamaModel) -> None:
    rng = random.Random(9)
    seats = Seats(model, 1, n_parked=4)
    seats.ask(0, text_of(rng, 100))
    with seats.meeting.member():
        seats.backends[0].forget()
    assert not any(seats.context.held)
    seats.context.close()


def test_a_window_that_slides_shares_nothing_and_every_text_has_room(tmp_path: Path) -> None:
    """Cells that two sequences share are let go of by neither, and a window's cells are few."""
    model = LlamaModel(write_tiny(tmp_path / "tiny.gguf", "gemma3", n_layers=6))
    context = LlamaSequences(model, ContextSettings(n_ctx=2048, n_ubatch=128, n_outputs=8), 2, n_parked=8)
    assert len(context.held) == 2
    context.read(0, list(range(10, 202)))
    assert not context.copy(0, 1, 192)
    for _ in range(8):
        context.read(0, [5] * 128)
        context.read(1, [6] * 128)
    assert [len(held) for held in context.held] == [1216, 1024]
    context.close()
    model.close()
