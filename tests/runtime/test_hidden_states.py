"""What a drafter with a trained head may ask of a backend: the states that logits are computed from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import TableBackend, random_table
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.base import EngineError, HiddenStates
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LlamaBackend]:
    model = LlamaModel(write_tiny(tmp_path / "tiny.gguf"))
    backend = LlamaBackend(model, ContextSettings(n_ctx=1024, n_outputs=16))
    yield backend
    backend.close()
    model.close()


def test_an_ability_is_seen_before_it_is_asked_for(backend: LlamaBackend) -> None:
    assert isinstance(backend, HiddenStates)
    assert not isinstance(TableBackend(random_table(4)), HiddenStates)


def test_logits_are_a_linear_map_of_the_states_and_the_same_as_without(backend: LlamaBackend) -> None:
    tokens = [int(token) for token in np.random.default_rng(0).integers(5, 200, 16 * 20)]
    plain = [backend.forward(tokens[i : i + 16], n_outputs=16).copy() for i in range(0, len(tokens), 16)]
    backend.truncate(0)
    backend.want_hidden_states()
    states, logits = [], []
    for i in range(0, len(tokens), 16):
        logits.append(backend.forward(tokens[i : i + 16], n_outputs=16).copy())
        states.append(backend.hidden_states().copy())
    assert np.array_equal(np.concatenate(logits), np.concatenate(plain))
    h, y = np.concatenate(states).astype(np.float64), np.concatenate(logits)
    assert h.shape == (len(tokens), backend.n_embd)
    assert backend.n_embd < len(tokens) // 2  # so that the map is overdetermined
    solved = np.linalg.lstsq(h, y, rcond=None)[0]
    assert np.abs(h @ solved - y).max() < 1e-3 * np.abs(y).max()


def test_text_is_read_apart_and_only_what_was_wanted_is_kept(backend: LlamaBackend) -> None:
    backend.forward([5, 6, 7], n_outputs=1)
    with pytest.raises(EngineError, match="no hidden states"):
        backend.hidden_states()
    backend.want_hidden_states()
    backend.forward([8, 9, 10], n_outputs=2)
    assert backend.hidden_states().shape == (2, backend.n_embd)
    backend.forward([11, 12], n_outputs=0)
    with pytest.raises(EngineError, match="no hidden states"):
        backend.hidden_states()
