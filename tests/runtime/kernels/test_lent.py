"""Weights that another machine writes into this one's plain memory: our products, the same bits at every width."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.runtime.kernels import load

pytestmark = pytest.mark.skipif(not load.variants()[:-1], reason="no kernels here")
PROGRAM = Path(__file__).with_name("lent_products.py")
N = 5


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GGML_NO_BACKTRACE": "1"}
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


def products(kind: str, name: str, folder: Path) -> NDArray[np.float32]:
    done = run(kind, name, str(folder / "y.npy"))
    assert done.returncode == 0, done.stderr
    found: NDArray[np.float32] = np.load(folder / "y.npy")
    return found


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "Q4_1"])
def test_products_of_lent_weights_are_the_same_at_every_width(kind: str, tmp_path: Path) -> None:
    y = products(kind, "blk.0.ffn_up.weight", tmp_path)
    assert np.array_equal(y[N], y[0])
    assert np.array_equal(y[N + 1], y[N - 1])
    stock = products(kind, "something.else", tmp_path)  # stays where it was written
    assert not np.array_equal(y, stock)
    np.testing.assert_allclose(y, stock, atol=0.02 * float(np.abs(stock).max()))


def test_a_part_of_lent_weights_cannot_be_written(tmp_path: Path) -> None:
    done = run("Q4_K", "blk.0.ffn_up.weight", str(tmp_path / "y.npy"), "part")
    assert done.returncode != 0
    assert "can be written only as a whole" in done.stderr
