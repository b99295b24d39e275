"""Block formats against gguf's own reader, and the arithmetic of what is trained against differences of values."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from edgellm.memory.quantised import FORMATS, QuantisedMatrix

SHAPE = (6, 512)


def random_raw(name: str, seed: int = 0) -> np.ndarray:
    """Bytes of a matrix whose half-precision numbers are finite."""
    rng, form = np.random.default_rng(seed), FORMATS[name]
    blocks = rng.integers(0, 256, (SHAPE[0] * SHAPE[1] // form.n_weights, form.n_bytes), dtype=np.uint8)
    for offset in form.fields:
        halves = (0.1 + np.abs(rng.standard_normal((len(blocks), 1)))).astype(np.float16)
        blocks[:, offset : offset + 2] = halves.view(np.uint8)
    return blocks.reshape(-1)


def read_by_gguf(raw: bytes | np.ndarray, name: str) -> np.ndarray:
    data = np.frombuffer(bytes(raw), np.uint8).reshape(SHAPE[0], -1)
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])


def random_theta(matrix: QuantisedMatrix, size: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.standard_normal(matrix.start.shape) * size).astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_is_what_gguf_reads_from_its_bytes(name: str) -> None:
    raw = random_raw(name)
    matrix = QuantisedMatrix(raw, name, SHAPE)
    np.testing.assert_array_equal(matrix.dense(), read_by_gguf(raw, name))
    assert matrix.bytes_with(matrix.theta) == raw.tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_trained_is_what_the_file_then_holds(name: str) -> None:
    matrix = QuantisedMatrix(random_raw(name), name, SHAPE)
    dense, theta = matrix.dense(), random_theta(matrix, 0.05)
    for part in (0.3, 0.7, 1.0):  # in steps, as training does
        matrix.move(dense, (theta * part).astype(np.float32))
    written = read_by_gguf(matrix.bytes_with(theta), name)
    np.testing.assert_allclose(dense, written, atol=2e-3 * np.abs(written).max())
    assert np.abs(written - read_by_gguf(random_raw(name), name)).max() > 0.01


@pytest.mark.parametrize("name", FORMATS)
def test_the_gradient_says_how_a_sum_over_the_matrix_changes(name: str) -> None:
    matrix = QuantisedMatrix(random_raw(name), name, SHAPE)
    dense, slope = matrix.dense(), np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    matrix.move(dense, random_theta(matrix, 0.05))
    gradient, way = matrix.gradient(slope, dense), random_theta(matrix, 0.01)
    before = float(np.vdot(slope.astype(np.float64), dense))
    matrix.move(dense, matrix.theta + way)
    after = float(np.vdot(slope.astype(np.float64), dense))
    assert after - before == pytest.approx(float(np.vdot(gradient, way)), rel=1e-2)


def test_a_block_of_zeros_stays_one() -> None:
    raw = random_raw("Q4_0")
    raw[0:2] = 0
    matrix = QuantisedMatrix(raw, "Q4_0", SHAPE)
    dense = matrix.dense()
    gradient = matrix.gradient(np.ones(SHAPE, np.float32), dense)
    matrix.move(dense, random_theta(matrix, 0.1))
    assert np.isfinite(dense).all()
    assert np.isfinite(gradient).all()
    assert not dense[0, :32].any()
