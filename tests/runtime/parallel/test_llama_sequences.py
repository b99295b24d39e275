"""Texts that share a context: bits as alone, at any mixture of passes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.base import ContextFull, EngineError
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.backends.llama_sequences import LlamaSequences, Part

N_TOKENS = 160


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[LlamaModel]:
    loaded = LlamaModel(smollm2_path)
    yield loaded
    loaded.close()


@pytest.fixture
def shared(model: LlamaModel) -> Iterator[LlamaSequences]:
    context = LlamaSequences(model, ContextSettings(n_ctx=256, n_ubatch=64, n_outputs=32), 4)
    yield context
    context.close()


def texts_of(rng: random.Random) -> list[list[int]]:
    """Four sequences, of which two begin like the second."""
    sequences = [[rng.randrange(100, 40_000) for _ in range(N_TOKENS)] for _ in range(4)]
    for sequence in sequences[2:]:
        sequence[:60] = sequences[1][:60]
    return sequences


@pytest.mark.parametrize("seed", range(3))
def test_rows_have_the_bits_of_a_text_alone_whatever_else_is_in_the_pass(
    model: LlamaModel, shared: LlamaSequences, seed: int
) -> None:
    if not kernels().active:
        pytest.skip("the engine's own kernels promise nothing of the kind")
    rng = random.Random(seed)
    sequences = texts_of(rng)
    backend = LlamaBackend(model, ContextSettings(n_ctx=256, n_ubatch=64, n_outputs=16))
    alone = []
    for sequence in sequences:
        backend.truncate(0)
        alone.append(np.concatenate([backend.forward(sequence[i : i + 16], 16).copy() for i in range(0, N_TOKENS, 16)]))
    backend.close()
    n_compared = 0
    while live := [sequence for sequence in range(4) if len(shared.held[sequence]) < N_TOKENS]:
        parts, room = [], 32
        for sequence in rng.sample(live, rng.randint(1, len(live))):
            n_held = len(shared.held[sequence])
            if sequence >= 2 and not n_held:  # begins with what the second has read, and reads none of it
                if len(shared.held[1]) >= 60:
                    assert shared.copy(1, sequence, 60)
                continue
            if n := min(rng.choice([1, 1, 2, 3, 5, 8]), N_TOKENS - n_held, room):
                room -= n
                parts.append(Part(sequence, sequences[sequence][n_held : n_held + n], n))
        if not parts:
            continue
        before = [len(shared.held[part.sequence]) for part in parts]
        for part, n_held, rows in zip(parts, before, shared.forward(parts)[0], strict=True):
            assert np.array_equal(rows, alone[part.sequence][n_held : n_held + len(part.tokens)])
            n_compared += len(rows)
            if rng.random() < 0.4:  # a draft is rejected, or an answer begun again
                least = 60 if part.sequence >= 2 else 1
                shared.truncate(part.sequence, max(n_held if rng.random() < 0.8 else n_held - 10, least))
    assert n_compared > 4 * N_TOKENS - 120


def test_a_pass_that_does_not_fit_leaves_every_text_as_it_was(shared: LlamaSequences) -> None:
    shared.forward([Part(0, [5, 6, 7], 1), Part(1, [8], 0)])
    for _ in range(5):
        shared.forward([Part(0, list(range(100, 150)), 0)])
    with pytest.raises(ContextFull, match="full"):
        shared.forward([Part(1, [9], 1), Part(0, [1, 2, 3, 4], 0)])
    assert [len(held) for held in shared.held] == [253, 1, 0, 0]
    with pytest.raises(EngineError, match="in a pass that holds"):
        shared.forward([Part(2, list(range(100, 180)), 1)])
    with pytest.raises(EngineError, match="in a pass that holds"):
        shared.forward([])
    assert shared.held[1:] == [[8], [], []]


def test_forgetting_a_shared_beginning_leaves_it_to_the_other(shared: LlamaSequences) -> None:
    beginning = list(range(200, 250))
    shared.forward([Part(0, beginning, 1)])
    expected = shared.forward([Part(0, [9], 1)])[0][0].copy()
    shared.truncate(0, 50)
    assert shared.copy(0, 1, 50)
    shared.truncate(0, 0)
    shared.forward([Part(2, list(range(300, 350)), 1)])  # takes the cells that are free
    assert np.array_equal(shared.forward([Part(1, [9], 1)])[0][0], expected)


def test_a_closed_context_says_so(model: LlamaModel) -> None:
    context = LlamaSequences(model, ContextSettings(n_ctx=256, n_ubatch=64), 2)
    context.close()
    context.close()
    with pytest.raises(EngineError, match="closed"):
        context.forward([Part(0, [1], 1)])
