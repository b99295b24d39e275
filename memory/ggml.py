"""ggml's tensors as C lays them out, for what reads them while the engine computes.

The bindings do not declare the structure: it is that of the pinned release, and `misread` asks the loaded library.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = 0
MUL_MAT, MUL_MAT_ID = b"MUL_MAT", b"MUL_MAT_ID"  # as `ggml_op_name` has them


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml 0.25.3."""

    _fields_ = [  # what ctypes reads
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),  # elements along each axis, the fastest first
        ("nb", ctypes.c_size_t * 4),  # bytes from one to the next along each axis
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    ]


class Ggml:
    """The few functions of ggml that are asked; `library` is libllama, which has loaded ggml's own."""

    def __init__(self, library: Any) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._library = library
        self.op_name = self._function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
        self.n_bytes = self._function("ggml_nbytes", size, pointer)
        self._get = self._function("ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self.init = self._function("ggml_init", pointer, _InitParams)
        self.free = self._function("ggml_free", None, pointer)
        self.new_2d = self._function(
            "ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
        )
        self.set_name = self._function("ggml_set_name", pointer, pointer, ctypes.c_char_p)
        self.mul_mat = self._function("ggml_mul_mat", pointer, pointer, pointer, pointer)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(_having(self._library, name), name)
        function.restype, function.argtypes = result, list(arguments)
        return function

    def values(self, address: int, dtype: str) -> NDArray[Any]:
        """A copy of a tensor's elements, wherever they lie, as an array of its own shape: outermost axis first."""
        tensor = Tensor.from_address(address)
        raw = np.empty(self.n_bytes(address), np.uint8)
        self._get(address, raw.ctypes.data, 0, raw.nbytes)
        shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
        return np.ndarray(shape, dtype, raw, strides=strides)

    def number_of(self, op: bytes) -> int:
        """The library's number of an operation."""
        return next(number for number in range(256) if self.op_name(number) == op)

    def misread(self) -> str | None:
        """Where the structure is not as it is declared here; None where it is."""
        context = self.init(_InitParams(64 * 1024, None, True))
        try:
            weight, rows = self.new_2d(context, F32, 3, 5), self.new_2d(context, F32, 3, 7)
            self.set_name(weight, b"blk.0.name")
            made = Tensor.from_address(self.mul_mat(context, weight, rows))
            named = Tensor.from_address(weight)
            found = {
                "type": (made.type, F32),
                "ne": (list(made.ne), [5, 7, 1, 1]),
                "nb": (list(made.nb), [4, 20, 140, 140]),
                "op": (self.op_name(made.op), MUL_MAT),
                "src": (list(made.src)[:3], [weight, rows, None]),
                "view_src": (made.view_src, None),
                "name": (named.name, b"blk.0.name"),
            }
        finally:
            self.free(context)
        wrong = [name for name, (has, wanted) in found.items() if has != wanted]
        return f"ggml_tensor: a product's own tensors read wrong at {', '.join(wrong)}" if wrong else None


def _having(library: Any, name: str) -> Any:
    """The library that has a function. Except on Windows a library's dependencies are looked through too."""
    if hasattr(library, name):
        return library
    for path in sorted(Path(library._name).parent.glob("*ggml*")):
        with contextlib.suppress(OSError):
            if hasattr(found := ctypes.CDLL(str(path)), name):
                return found
    raise AttributeError(f"no library of llama.cpp has {name}")


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]
