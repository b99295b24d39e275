"""What training takes, from a header alone, against what the trainer itself holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from draft_adapters import quantised_tiny
from tiny_gguf import write_tiny

from edgellm.memory import training_size
from edgellm.memory.gguf import read_header
from edgellm.memory.shape import from_header
from edgellm.memory.training_size import training_bytes
from edgellm.runtime.distillation import network, samples
from edgellm.runtime.distillation.network import Network
from edgellm.runtime.distillation.training import TrainingSettings


@pytest.mark.parametrize("architecture", training_size.TRAINABLE)
@pytest.mark.parametrize("weights", ["Q4_1", "Q8_0"])
def test_the_parts_are_those_of_the_trainer(tmp_path: Path, architecture: str, weights: str) -> None:
    path = write_tiny(tmp_path / "model.gguf", architecture, weights=weights, n_layers=3, n_ff=256)
    shape, trained = from_header(read_header(path)), Network.open(path)
    assert 4 * shape.n_params == trained.n_bytes
    n_scales = sum(theta.size for theta in trained.changes().values())
    assert n_scales > 0
    assert training_size._n_scales(shape) >= n_scales
    assert training_size._n_scales(shape) <= 1.3 * n_scales  # an output matrix of its own is counted too
    width = sum(matrix.shape[0] for matrix in trained.matrices.values())
    assert training_size._width(shape) == width + 2 * shape.n_embd * shape.n_layers


def test_it_counts_with_the_trainers_own_settings() -> None:
    assert TrainingSettings().rows_at_once == training_size.ROWS_AT_ONCE
    assert samples.MAX_TOKENS == training_size.LONGEST_TOKENS
    assert network._HEAD_ROWS == training_size.HEAD_ROWS


def test_longer_texts_and_more_threads_take_more(tmp_path: Path) -> None:
    shape = from_header(read_header(quantised_tiny(tmp_path / "drafter.gguf")))
    assert training_bytes(shape, 1, 100) == training_bytes(shape, 1, 512) < training_bytes(shape, 1, 600)
    assert training_bytes(shape, 1) < training_bytes(shape, 2)
