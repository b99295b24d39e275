"""Attention over a cache: close to the formula, the same bits for a row whatever stands beside it, in every variant."""

from __future__ import annotations

import ctypes
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.runtime.kernels import load

pytestmark = pytest.mark.skipif(load.compiled() is None, reason="the kernels were not compiled")
F32, F16, Q8_0 = 0, 1, 2
SHAPES = [(12, 2, 128), (9, 3, 64), (4, 1, 256), (2, 2, 80)]  # heads, heads of the cache, floats a head
Floats = NDArray[np.float32]


def as_cells(x: Floats, cell: int) -> NDArray[Any]:
    if cell == F16:
        return x.astype(np.float16)
    if cell == Q8_0:
        return gguf.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    return x


def attend(
    variant: str,
    cell: int,
    q: Floats,
    k: Floats,
    v: Floats,
    mask: Floats | None,
    n_threads: int = 1,
    sinks: Floats | None = None,
) -> Floats:
    """(n, heads, d) of queries over (cells, cache heads, d); mask (n, cells); sinks (heads)."""
    library = load.compiled()
    assert library is not None
    k, v = as_cells(k, cell), as_cells(v, cell)
    halves = None if mask is None else np.ascontiguousarray(mask, np.float16)
    q = np.ascontiguousarray(q)
    y = np.full(q.shape, np.nan, np.float32)

    def address(array: NDArray[Any] | None) -> ctypes.c_void_p | None:
        return None if array is None else ctypes.c_void_p(array.ctypes.data)

    n, n_heads, d = q.shape
    n_cells, n_cache_heads = k.shape[:2]
    took_s = library.edgellm_attend(
        variant.encode(), cell, address(q), address(k), address(v), address(halves), n, n_heads, n_cache_heads, n_cells,
        d, d**-0.5, address(y), n_threads, 1, address(sinks),
    )  # fmt: skip
    assert took_s >= 0.0
    return y


def random(n: int, n_cells: int, shape: tuple[int, int, int], seed: int = 0) -> tuple[Floats, Floats, Floats]:
    n_heads, n_cache_heads, d = shape
    rng = np.random.default_rng(seed)
    sizes = ((n, n_heads, d), (n_cells, n_cache_heads, d), (n_cells, n_cache_heads, d))
    q, k, v = (rng.standard_normal(size).astype(np.float32) for size in sizes)
    return 2 * q, k, v


def causal(n: int, n_held: int, n_cells: int) -> Floats:
    """What `n` queries behind `n_held` cells see of `n_cells`, the last of which are empty."""
    return np.where(np.arange(n_cells) <= n_held + np.arange(n)[:, None], 0.0, -np.inf).astype(np.float32)


def weighted(q: Floats, k: Floats, v: Floats, mask: Floats, sinks: Floats | None = None) -> NDArray[np.float64]:
    """The formula, in double precision."""
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    scores = np.einsum("nhd,chd->nhc", q.astype(np.float64), keys) * q.shape[2] ** -0.5 + mask[:, None, :]
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None], (*scores.shape[:2], 1))], axis=-1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    found: NDArray[np.float64] = np.einsum("nhc,chd->nhd", weights[..., : len(k)], values)
    return found


@pytest.mark.parametrize("variant", load.variants())
def test_a_sink_takes_its_share_of_every_row(variant: str) -> None:
    q, k, v = random(5, 77, SHAPES[0])
    mask, sinks = causal(5, 70, 77), np.linspace(-120, 120, SHAPES[0][0], dtype=np.float32)
    y = attend(variant, F32, q, k, v, mask, sinks=sinks)
    assert np.abs(y - weighted(q, k, v, mask, sinks)).max() < 3e-6
    assert np.array_equal(y, attend("generic", F32, q, k, v, mask, sinks=sinks))
    for row in range(5):
        alone = attend(variant, F32, q[row : row + 1], k, v, mask[row : row + 1], sinks=sinks)
        assert np.array_equal(alone[0], y[row])


@pytest.mark.parametrize("cell", [F32, F16, Q8_0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", load.variants())
def test_it_is_the_softmax_weighted_mean_of_the_values(variant: str, shape: tuple[int, int, int], cell: int) -> None:
    if cell == Q8_0 and shape[2] % 32:
        pytest.skip("heads of q8_0 are whole blocks")
    q, k, v = random(5, 77, shape)
    mask = causal(5, 70, 77)
    y = attend(variant, cell, q, k, v, mask)
    if cell == F16:
        k, v = k.astype(np.float16).astype(np.float32), v.astype(np.float16).astype(np.float32)
    if cell == Q8_0:
        k, v = (gguf.dequantize(as_cells(x, cell), gguf.GGMLQuantizationType.Q8_0) for x in (k, v))
    assert np.abs(y - weighted(q, k, v, mask)).max() < 3e-6


@pytest.mark.parametrize("cell", [F16, Q8_0])
@pytest.mark.parametrize("variant", load.variants())
def test_a_row_has_the_same_bits_in_every_batch_and_behind_every_padding(variant: str, cell: int) -> None:
    n, n_held, shape = 33, 1000, SHAPES[0]
    q, k, v = random(n, 1100, shape)
    whole = attend(variant, cell, q, k, v, causal(n, n_held, 1100), n_threads=2)
    for first, width in ((0, 1), (3, 2), (5, 5), (7, 8), (16, 16), (32, 1)):
        n_cells = n_held + first + width  # no more than the last of them sees
        rows = slice(first, first + width)
        mask = causal(width, n_held + first, n_cells)
        for n_threads in (1, 2, 3):
            part = attend(variant, cell, q[rows], k[:n_cells], v[:n_cells], mask, n_threads)
            assert np.array_equal(part, whole[rows])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", [name for name in load.variants() if name != "generic"])
def test_every_variant_gives_the_bits_of_the_definition(variant: str, shape: tuple[int, int, int]) -> None:
    for n, n_cells in ((1, 1), (1, 300), (4, 31), (7, 33), (16, 64)):
        q, k, v = random(n, n_cells, shape, seed=n_cells)
        mask = causal(n, n_cells - n, n_cells) if n < n_cells else None
        assert np.array_equal(attend(variant, F16, q, k, v, mask), attend("generic", F16, q, k, v, mask))


@pytest.mark.parametrize("variant", load.variants())
def test_what_is_masked_is_not_read_into_the_result(variant: str) -> None:
    q, k, v = random(3, 200, SHAPES[0])
    mask = np.zeros((3, 200), np.float32)
    mask[:, 64:130] = -np.inf  # a window that moved on, whole blocks and parts of some
    mask[1, :] = -np.inf
    mask[1, 199] = 0.0
    before = attend(variant, F16, q, k, v, mask)
    k[64:130], v[64:130] = 5.0, -7.0
    assert np.array_equal(attend(variant, F16, q, k, v, mask), before)
    assert np.array_equal(before[1], np.repeat(v[199].astype(np.float16).astype(np.float32), 6, axis=0))


@pytest.mark.parametrize("variant", load.variants())
def test_scores_of_any_size_neither_overflow_nor_vanish(variant: str) -> None:
    q, k, v = random(2, 70, SHAPES[1])
    y = attend(variant, F16, 1000 * q, k, v, None)
    assert np.isfinite(y).all()
    nothing = attend(variant, F16, 0 * q, k, v, None)
    assert np.abs(nothing - np.repeat(v.mean(0), 3, axis=0)).max() < 1e-3
