"""Products of weights that were written into plain memory as llama.cpp's RPC server writes them; a process of its own.

    python lent_products.py TYPE NAME OUT.npy [part]

Writes y (3 passes: 5 columns, the first of them, the last of them) for weights called NAME; with `part`, the weights
are written in two parts.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

from edgellm.memory.ggml import Ggml, Tensor, _having, _InitParams
from edgellm.memory.gguf import TYPE_IDS
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.kernels.load import lend_memory

ROWS, K, N = 96, 512, 5
POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def function(name: str, result: Any, *arguments: Any) -> Any:
    library = ctypes.CDLL(_having(api._lib, name)._name)
    found = library[name]
    found.restype, found.argtypes = result, list(arguments)
    return found


def quantised(kind: str, weights: NDArray[np.float32]) -> bytes:
    quantize = function("ggml_quantize_chunk", SIZE, INT, POINTER, POINTER, *[ctypes.c_int64] * 3, POINTER)
    out = ctypes.create_string_buffer(weights.nbytes)
    n_bytes = quantize(TYPE_IDS[kind], weights.ctypes.data, out, 0, *weights.shape, None)
    return out.raw[:n_bytes]


def main(kind: str, name: str, out: str, *parts: str) -> None:
    ggml = Ggml(api._lib)
    print(kernels().variant, lend_memory())
    rng = np.random.default_rng(0)
    data = quantised(kind, rng.standard_normal((ROWS, K), np.float32))
    columns = rng.standard_normal((N, K), np.float32)
    plain = function("ggml_backend_cpu_buffer_type", POINTER)()
    allocate = function("ggml_backend_alloc_ctx_tensors_from_buft", POINTER, POINTER, POINTER)
    write = function("ggml_backend_tensor_set", None, POINTER, POINTER, SIZE, SIZE)
    expand = function("ggml_build_forward_expand", None, POINTER, POINTER)
    new_graph = function("ggml_new_graph", POINTER, POINTER)
    compute = function("ggml_backend_graph_compute", INT, POINTER, POINTER)
    release = function("ggml_backend_buffer_free", None, POINTER)
    backend = function("ggml_backend_cpu_init", POINTER)()
    weights = ggml.init(_InitParams(4096, None, True))
    w = ggml.new_2d(weights, TYPE_IDS[kind], K, ROWS)
    ggml.set_name(w, name.encode())
    held = allocate(weights, plain)
    half = len(data) // 2 if parts else len(data)
    write(w, data[:half], 0, half)
    if parts:
        write(w, data[half:], half, len(data) - half)
    results = []
    for which in (columns, columns[:1], columns[-1:]):
        rest = ggml.init(_InitParams(2**20, None, True))
        x = ggml.new_2d(rest, 0, K, len(which))
        # A tensor made anew, as the server makes it of each request: nothing but its memory says whose it is.
        again = ggml.new_2d(rest, TYPE_IDS[kind], K, ROWS)
        y = ggml.mul_mat(rest, again, x)
        Tensor.from_address(again).data = Tensor.from_address(w).data
        Tensor.from_address(again).buffer = Tensor.from_address(w).buffer
        buffer = allocate(rest, plain)
        which = np.ascontiguousarray(which)
        write(x, which.ctypes.data, 0, which.nbytes)
        graph = new_graph(rest)
        expand(graph, y)
        assert compute(backend, graph) == 0
        results.append(ggml.values(y, "float32").reshape(len(which), ROWS).copy())
        release(buffer)
        ggml.free(rest)
    release(held)
    np.save(out, np.concatenate(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
