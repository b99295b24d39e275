"""A copy of a model with layers left out is that model's other layers, in their order, and runs."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import GgufHeader, read_header
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.distillation.lesson import Sample
from edgellm.runtime.distillation.network import Network

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TOKENS = [72, 101, 108, 108, 111, 32, 116]


@pytest.fixture(scope="module")
def self_drafts() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return import_module("self_drafts")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "model.gguf", request.param, weights="Q4_1", n_layers=6)


def bytes_of(header: GgufHeader, name: str) -> bytes:
    tensor = next(tensor for tensor in header.tensors if tensor.name == name)
    start = header.data_offset + tensor.offset
    return header.path.read_bytes()[start : start + tensor.n_bytes]


def logits(path: Path) -> NDArray[np.float32]:
    """Behind each of `TOKENS`, [n_tokens, n_vocab], by llama.cpp."""
    model = LlamaModel(path)
    backend = LlamaBackend(model, ContextSettings(n_ctx=64, n_ubatch=64, n_outputs=8, n_threads=1, kv="f32"))
    try:
        return backend.forward(TOKENS, len(TOKENS)).copy()
    finally:
        backend.close()
        model.close()


def test_with_all_layers_it_gives_the_same_logits(self_drafts: ModuleType, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    self_drafts.write_copy(model, copy, self_drafts.layers_kept(6, 6))
    np.testing.assert_array_equal(logits(copy), logits(model))


def test_with_fewer_llama_cpp_runs_those_layers_as_the_trainer_does(
    self_drafts: ModuleType, model: Path, tmp_path: Path
) -> None:
    copy, kept = tmp_path / "copy.gguf", [0, 1, 3, 5]
    self_drafts.write_copy(model, copy, kept)
    header, source = read_header(copy), read_header(model)
    assert header.hparam("block_count") == len(kept)
    assert len(source.tensors) - len(header.tensors) == sum(
        t.name.startswith(("blk.2.", "blk.4.")) for t in source.tensors
    )
    for new, old in enumerate(kept):
        for part in ("attn_q", "ffn_down", "ffn_norm"):
            assert bytes_of(header, f"blk.{new}.{part}.weight") == bytes_of(source, f"blk.{old}.{part}.weight")
    said = logits(copy)
    assert not np.array_equal(said, logits(model))
    likeliest = Sample(np.array(TOKENS, np.int32), said[-1:].argmax(-1).astype(np.int32))
    assert Network.open(copy).agreement([likeliest])[0].all()


@pytest.mark.parametrize("n_layers", [1, 2, 7, 30])
def test_layers_are_dropped_from_the_middle_alone(self_drafts: ModuleType, n_layers: int) -> None:
    for n_kept in range(1, n_layers + 1):
        kept = self_drafts.layers_kept(n_layers, n_kept)
        assert len(kept) == n_kept
        assert kept == sorted(set(kept))
        assert set(kept) <= set(range(n_layers))
        if n_kept >= 2 * self_drafts.N_ENDS:
            assert {0, 1, n_layers - 2, n_layers - 1} <= set(kept)


def test_a_head_of_its_own_is_read_in_the_embeddings_place(self_drafts: ModuleType, tmp_path: Path) -> None:
    tied = write_tiny(tmp_path / "tied.gguf", n_layers=2)
    untied = write_tiny(tmp_path / "untied.gguf", n_layers=2, tied=False)
    assert self_drafts.pass_bytes(read_header(tied)) == self_drafts.pass_bytes(read_header(untied))
