"""The products: every variant gives the bits of the definition, which is close to the dequantised weights."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.runtime.kernels import load

library = load.compiled()
pytestmark = pytest.mark.skipif(library is None, reason="the kernels were not compiled")

TYPES = {  # weights a block
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4", "f16", "bf16"), 32),
    "q1_0": 128,
    **dict.fromkeys(("q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_xs", "iq3_s", "iq3_xxs"), 256),
    **dict.fromkeys(("iq2_xxs", "iq2_xs", "iq2_s", "tq1_0", "tq2_0"), 256),
}
# Bytes of a block where its float16 scales lie, unless it begins with them.
SCALES_AT = {"q6_K": [208], "q3_K": [108], "q2_K": [80, 82], "tq1_0": [52], "tq2_0": [64]}
FLOATS = ("f16", "bf16")


def quant_type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def random_weights(name: str, rows: int, k: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks of random bits with scales of a sane size, shape (rows, bytes of a row)."""
    rng = np.random.default_rng(seed)
    if name in FLOATS:
        values = rng.standard_normal((rows, k)).astype(np.float32)
        return np.ascontiguousarray(gguf.quantize(values, quant_type(name))).view(np.uint8).reshape(rows, -1)
    block, n_bytes = gguf.GGML_QUANT_SIZES[quant_type(name)]
    raw = rng.integers(0, 256, (rows, k // block, n_bytes), dtype=np.uint8)
    if name == "mxfp4":
        raw[:, :, 0] = rng.integers(118, 124, raw.shape[:2])  # powers of two
        return raw.reshape(rows, -1)
    for at in SCALES_AT.get(name, [0, 2] if name in ("q4_1", "q5_1", "q4_K", "q5_K") else [0]):
        scale = rng.uniform(0.005, 0.02, raw.shape[:2]).astype(np.float16) * rng.choice([-1, 1], raw.shape[:2])
        raw[:, :, at : at + 2] = scale.astype(np.float16)[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def exact_product(name: str, raw: NDArray[np.uint8], x: NDArray[np.float32]) -> NDArray[np.float64]:
    if name == "q1_0":  # which gguf does not dequantise: a float16, then 128 bits, each one or minus one
        blocks = raw.reshape(len(raw), -1, 18)
        signs = np.unpackbits(blocks[:, :, 2:], axis=-1, bitorder="little").astype(np.float32) * 2 - 1
        weights = (signs * blocks[:, :, :2].copy().view(np.float16)).reshape(len(raw), -1)
    else:
        weights = gguf.dequantize(raw.view(np.float16) if name == "f16" else raw, quant_type(name))
    return np.asarray(x.astype(np.float64) @ weights.astype(np.float64).T)


def multiply(
    variant: str, name: str, raw: NDArray[np.uint8], rows: int, x: NDArray[np.float32], n_threads: int = 1
) -> NDArray[np.float32]:
    """y (n, rows) = x (n, k) W^T."""
    assert library is not None
    number = load.weight_types().index(name)
    n, k = x.shape
    packed = np.empty(library.edgellm_packed_bytes(number, rows, k), np.uint8)
    library.edgellm_pack(number, raw.ctypes.data, rows, k, packed.ctypes.data, n_threads)
    y = np.full((n, rows), np.nan, np.float32)
    x = np.ascontiguousarray(x)
    took_s = library.edgellm_matmul(
        variant.encode(), number, packed.ctypes.data, 1, rows, k, x.ctypes.data, n, y.ctypes.data, n_threads, 1
    )
    assert took_s >= 0
    return y


def activations(n: int, k: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


@pytest.mark.parametrize("name", TYPES)
def test_the_definition_is_close_to_the_dequantised_weights(name: str) -> None:
    rows, k = 40, 512
    raw, x = random_weights(name, rows, k), activations(5, k)
    exact = exact_product(name, raw, x)
    error = np.linalg.norm(multiply("generic", name, raw, rows, x) - exact) / np.linalg.norm(exact)
    # Activations in 8 bits: about 0.4 % where all weights have one sign, up to 0.8 % elsewhere; of floats none.
    assert 0 < error < (1e-5 if name in FLOATS else 0.01)


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def multiply_by_stock(name: str, raw: NDArray[np.uint8], rows: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same product as `multiply` by llama.cpp's own kernels."""
    base, cpu = (load.engine_library(part) for part in ("ggml-base", "ggml-cpu"))
    assert base is not None
    assert cpu is not None
    ggml, ggml_cpu = ctypes.CDLL(str(base)), ctypes.CDLL(str(cpu))
    pointer, c_int, c_i64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    for function, arguments in (
        (ggml.ggml_init, [InitParams]),
        (ggml.ggml_new_tensor_2d, [pointer, c_int, c_i64, c_i64]),
        (ggml.ggml_get_data, [pointer]),
        (ggml.ggml_mul_mat, [pointer, pointer, pointer]),
        (ggml.ggml_new_graph, [pointer]),
    ):
        function.argtypes, function.restype = arguments, pointer
    ggml.ggml_build_forward_expand.argtypes = [pointer, pointer]
    ggml_cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, c_int]
    ggml.ggml_free.argtypes, ggml.ggml_free.restype = [pointer], None
    (n, k), x = x.shape, np.ascontiguousarray(x)
    context = ggml.ggml_init(InitParams(64 * 2**20, None, False))
    weights = ggml.ggml_new_tensor_2d(context, quant_type(name).value, k, rows)
    columns = ggml.ggml_new_tensor_2d(context, 0, k, n)
    ctypes.memmove(ggml.ggml_get_data(weights), raw.ctypes.data, raw.nbytes)
    ctypes.memmove(ggml.ggml_get_data(columns), x.ctypes.data, x.nbytes)
    graph, product = ggml.ggml_new_graph(context), ggml.ggml_mul_mat(context, weights, columns)
    ggml.ggml_build_forward_expand(graph, product)
    assert ggml_cpu.ggml_graph_compute_with_ctx(context, graph, 1) == 0
    y = np.empty((n, rows), np.float32)
    ctypes.memmove(y.ctypes.data, ggml.ggml_get_data(product), y.nbytes)
    ggml.ggml_free(context)
    return y


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("variant", load.variants())
def test_the_error_is_no_larger_than_that_of_llama_cpp(variant: str, name: str) -> None:
    rows, k = 256, 1536
    raw, x = random_weights(name, rows, k), activations(16, k)
    exact = exact_product(name, raw, x)
    ours, stock = (
        float(np.linalg.norm(y - exact) / np.linalg.norm(exact))
        for y in (multiply(variant, name, raw, rows, x), multiply_by_stock(name, raw, rows, x))
    )
    print(f"{variant} {name}: {ours:.3%}, stock {stock:.3%}")
    assert ours < stock * 1.02  # both round the activations to 8 bits, and not in the same places


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("variant", [name for name in load.variants() if name != "generic"])
def test_every_variant_gives_the_bits_of_the_definition(variant: str, name: str) -> None:
    for rows, blocks, n in [(1, 1, 1), (16, 3, 2), (23, 2, 3), (33, 1, 5), (48, 5, 8), (7, 2, 17), (64, 1, 40)]:
        k = TYPES[name] * blocks
        raw, x = random_weights(name, rows, k, seed=rows), activations(n, k, seed=n)
        assert np.array_equal(multiply(variant, name, raw, rows, x), multiply("generic", name, raw, rows, x))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("variant", load.variants())
def test_a_column_has_the_same_bits_in_every_batch(variant: str, name: str) -> None:
    rows, k = 37, 768
    raw, x = random_weights(name, rows, k), activations(33, k)
    whole = multiply(variant, name, raw, rows, x, n_threads=2)
    for n in (1, 2, 3, 5, 8, 16):
        assert np.array_equal(multiply(variant, name, raw, rows, x[:n], n_threads=2), whole[:n])
        assert np.array_equal(multiply(variant, name, raw, rows, x[-n:]), whole[-n:])


@pytest.mark.parametrize("variant", load.variants())
def test_no_columns_is_no_work(variant: str) -> None:
    assert multiply(variant, "q4_K", random_weights("q4_K", 16, 256), 16, activations(0, 256)).shape == (0, 16)


@pytest.mark.parametrize("name", TYPES)
def test_extreme_activations_do_not_overflow(name: str) -> None:
    rows, k = 16, 256
    raw = random_weights(name, rows, k)
    x = np.array([[127.0] * k, [-127.0] * k, [0.0] * k, [1e-38] * k, [3e38] + [0.0] * (k - 1)], np.float32)
    exact = exact_product(name, raw, x)
    for variant in load.variants():
        y = multiply(variant, name, raw, rows, x)
        assert np.allclose(y[:4], exact[:4], rtol=1e-4, atol=1e-4 * np.abs(exact[0]).max())
        assert not y[2].any()


@pytest.mark.parametrize("name", TYPES)
def test_packed_weights_are_at_most_three_percent_larger(name: str) -> None:
    assert library is not None
    number, (block, n_bytes) = load.weight_types().index(name), gguf.GGML_QUANT_SIZES[quant_type(name)]
    for rows, k in [(256, 1536), (8960, 1536), (1536, 8960), (151936, 1536)]:
        k = k // max(block, TYPES[name]) * max(block, TYPES[name])
        original = rows * k // block * n_bytes
        assert original <= library.edgellm_packed_bytes(number, rows, k) <= original * 1.03


@pytest.mark.parametrize("name", TYPES)
def test_any_bits_are_taken_and_mean_the_same_to_every_variant(name: str) -> None:
    rows, k = 17, 512
    n_bytes = random_weights(name, 1, k).size
    rng = np.random.default_rng(3)
    for raw in (rng.integers(0, 256, (rows, n_bytes), dtype=np.uint8), np.full((rows, n_bytes), 0xFF, np.uint8)):
        x = activations(11, k)
        defined = multiply("generic", name, raw, rows, x)
        for variant in load.variants():
            assert np.array_equal(multiply(variant, name, raw, rows, x), defined, equal_nan=True)


def test_the_types_are_numbered_as_listed() -> None:
    assert set(load.weight_types()) == set(TYPES)


def test_an_unknown_variant_is_refused() -> None:
    assert library is not None
    assert library.edgellm_matmul(b"none", 0, None, 1, 1, 32, None, 1, None, 1, 1) < 0
    assert library.edgellm_peak(b"none", 1, 0.1) == 0
    assert ctypes.c_double is library.edgellm_bandwidth.restype
