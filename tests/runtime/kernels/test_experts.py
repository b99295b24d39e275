"""Mixtures of experts on our kernels: the same bits at every width, and near what llama.cpp computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.kernels import load

pytestmark = pytest.mark.skipif(load.compiled() is None, reason="the kernels were not compiled")
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 256, 96)]
Rows = NDArray[np.float32]


def rows_of(path: Path, width: int) -> Rows:
    """Logits of the last 32 tokens, in passes of `width`."""
    backend = LlamaBackend(LlamaModel(path), ContextSettings(256, n_ubatch=64, n_outputs=32))
    try:
        backend.forward(TOKENS[:64], 0)
        parts = [TOKENS[at : at + width] for at in range(64, 96, width)]
        return np.concatenate([backend.forward(part, len(part)).copy() for part in parts])
    finally:
        backend.close()
        backend.model.close()


@pytest.mark.parametrize("weights", ["Q8_0", "Q4_0", "Q4_1", "MXFP4", "F16", "BF16"])
@pytest.mark.parametrize("architecture", ["qwen3moe", "deepseek2"])
def test_a_row_of_a_mixture_is_the_same_whatever_stands_beside_it(
    architecture: str, weights: Any, tmp_path: Path
) -> None:
    path = write_tiny(tmp_path / "x.gguf", architecture, weights=weights, n_experts=8, n_experts_used=3)
    single = rows_of(path, 1)
    for width in (2, 3, 5, 8, 16, 32):
        assert np.array_equal(rows_of(path, width), single), width


def test_where_everybody_is_chosen_the_rows_are_near_llama_cpp_s(tmp_path: Path) -> None:
    """A choice that goes by a near tie would be another's; so all four of four are used."""
    path = write_tiny(tmp_path / "x.gguf", "qwen3moe", weights="Q8_0", n_experts=4, n_experts_used=4)
    script = (
        "import sys, numpy as np; from pathlib import Path; from test_experts import rows_of\n"
        "np.save(sys.argv[2], rows_of(Path(sys.argv[1]), 8))"
    )
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path])
    stock = tmp_path / "stock.npy"
    environment = {**os.environ, "EDGELLM_KERNELS": "off", "PYTHONPATH": here}
    subprocess.run([sys.executable, "-c", script, str(path), str(stock)], env=environment, check=True, timeout=120)
    ours, theirs = rows_of(path, 8), np.load(stock)
    assert not np.array_equal(ours, theirs)
    np.testing.assert_allclose(ours, theirs, atol=0.05)
