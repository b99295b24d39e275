"""Products with an adapter's matrices: those of float64 within rounding, and the same bits however many columns."""

from __future__ import annotations

import ctypes
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.runtime.kernels import load

pytestmark = pytest.mark.skipif(load.compiled() is None, reason="the kernels were not compiled")
F32, F16, BF16, Q8_0 = 0, 1, 2, 3
TYPES = {F32: "F32", F16: "F16", BF16: "BF16", Q8_0: "Q8_0"}
SHAPES = [(8, 96), (96, 8), (33, 3), (5, 1), (7, 100)]  # rows, columns of a row
Floats = NDArray[np.float32]


def stored(w: Floats, kind: int) -> NDArray[Any]:
    return w if kind == F32 else gguf.quantize(w, gguf.GGMLQuantizationType[TYPES[kind]])


def thin(variant: str, kind: int, w: Floats, x: Floats, n_threads: int = 1) -> Floats:
    """x (n, k) times the transposed rows of w (rows, k)."""
    library = load.compiled()
    assert library is not None
    data, x = np.ascontiguousarray(stored(w, kind)), np.ascontiguousarray(x)
    y = np.full((len(x), len(w)), np.nan, np.float32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (data, x, y)]
    took_s = library.edgellm_thin(
        variant.encode(), kind, pointers[0], *w.shape, pointers[1], len(x), pointers[2], n_threads, 1
    )
    assert took_s >= 0.0
    return y


def cases() -> list[tuple[int, tuple[int, int]]]:
    return [(kind, shape) for kind in TYPES for shape in SHAPES if kind != Q8_0 or shape[1] % 32 == 0]


@pytest.mark.parametrize(("kind", "shape"), cases())
@pytest.mark.parametrize("variant", load.variants())
def test_it_is_the_product_whatever_stands_beside_a_column(variant: str, kind: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(size).astype(np.float32) for size in (shape, (9, shape[1])))
    y = thin(variant, kind, w, x)
    exact = stored(w, kind)
    values = exact if kind == F32 else gguf.dequantize(exact, gguf.GGMLQuantizationType[TYPES[kind]])
    np.testing.assert_allclose(y, x.astype(np.float64) @ values.astype(np.float64).T, rtol=1e-5, atol=1e-4)
    for n in range(1, 9):
        assert np.array_equal(thin(variant, kind, w, x[:n], n_threads=1 + n % 3), y[:n])
    assert np.array_equal(thin("generic", kind, w, x), y)
