"""The types that the installed llama.cpp's quantiser would give each matrix: asked of its own functions, no file read.

It exports them for its tests alone, under C++ names, so they are called by those (Linux).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from edgellm.memory.gguf import FILE_TYPES, TENSOR_TYPES
from edgellm.memory.mixtures import Geometry, Matrix, matrices

NAMES = {
    "embedding": "token_embd.weight", "output": "output.weight", "q": "blk.{}.attn_q.weight",
    "k": "blk.{}.attn_k.weight", "v": "blk.{}.attn_v.weight", "qkv": "blk.{}.attn_qkv.weight",
    "o": "blk.{}.attn_output.weight", "up": "blk.{}.ffn_up{}.weight", "gate": "blk.{}.ffn_gate{}.weight",
    "down": "blk.{}.ffn_down{}.weight",
}  # fmt: skip
_FTYPES = {name: number for number, name in FILE_TYPES.items()}


class _Description(ctypes.Structure):
    _fields_ = (
        ("architecture", ctypes.c_char_p),
        *(
            (name, ctypes.c_uint32)
            for name in ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_expert", "head_k", "head_v")
        ),
    )


class _Context(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def name_of(matrix: Matrix) -> str:
    """As GGUF names it."""
    return NAMES[matrix.role].format(matrix.layer, "_exps" if matrix.n_experts else "")


def engine_types(geometry: Geometry, quantisation: str, head_dim: int) -> list[tuple[Matrix, str]]:
    """Each matrix with the type that llama.cpp chooses."""
    import llama_cpp.llama_cpp as lib

    listed = list(matrices(geometry))
    context = _function(lib, "ggml_init", ctypes.c_void_p, _Context)(_Context(2**25, None, True))
    n_heads, n_kv_heads = geometry.q_width // head_dim, geometry.kv_width // head_dim
    description = _Description(
        geometry.architecture.encode(), geometry.n_embd, geometry.n_ff, geometry.n_layers, n_heads, n_kv_heads,
        geometry.n_experts, head_dim, head_dim,
    )  # fmt: skip
    parameters = lib.llama_model_quantize_default_params()
    model = _function(
        lib, "_Z31llama_quant_model_from_metadataPK22llama_quant_model_desc", ctypes.c_void_p, ctypes.c_void_p
    )(ctypes.byref(description))
    state = _function(
        lib, "_Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params", *[ctypes.c_void_p] * 3
    )(model, ctypes.byref(parameters))
    tensors = [_tensor(lib, context, matrix) for matrix in listed]
    types = (ctypes.c_int * len(tensors))()
    _function(
        lib, "_Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem", None,
        ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t,
    )(state, _FTYPES[quantisation], (ctypes.c_void_p * len(tensors))(*tensors), types, len(tensors))  # fmt: skip
    _function(lib, "_Z16llama_quant_freeP19quantize_state_impl", None, ctypes.c_void_p)(state)
    lib.llama_model_free(model)
    _function(lib, "ggml_free", None, ctypes.c_void_p)(context)
    return [(matrix, TENSOR_TYPES[kind][0]) for matrix, kind in zip(listed, types, strict=True)]


def _tensor(lib: Any, context: int, matrix: Matrix) -> int:
    extents = [matrix.n_in, matrix.n_out, *([matrix.n_experts] if matrix.n_experts else [])]
    make = _function(
        lib, "ggml_new_tensor", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p
    )
    tensor: int = make(context, 0, len(extents), (ctypes.c_int64 * len(extents))(*extents))
    _function(lib, "ggml_set_name", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(tensor, name_of(matrix).encode())
    return tensor


def _function(lib: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(lib._lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


def total_bytes(chosen: Sequence[tuple[Matrix, str]]) -> int:
    return sum(matrix.n_bytes(kind) for matrix, kind in chosen)
