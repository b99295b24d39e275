"""GGUF headers with any value of any type in them, as no writer would make them: holes for weights, nothing checked."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgellm.memory.gguf import TENSOR_TYPES, TYPE_IDS

_CODES = {"u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q")}
_STRING, _ARRAY = 8, 9

LLAMA: dict[str, Any] = {
    "block_count": 4, "context_length": 8192, "embedding_length": 256, "feed_forward_length": 512,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-6,
}  # fmt: skip

Tensor = tuple[str, tuple[int, ...], str]


def llama_tensors(n_layers: int = 4, *, n_embd: int = 256, n_ff: int = 512, kind: str = "F16") -> list[Tensor]:
    """What `LLAMA` says that there is."""
    n_kv = n_embd // 2
    found: list[Tensor] = [("token_embd.weight", (n_embd, 1024), kind), ("output_norm.weight", (n_embd,), "F32")]
    for layer in range(n_layers):
        shapes = {
            "attn_q": (n_embd, n_embd), "attn_k": (n_embd, n_kv), "attn_v": (n_embd, n_kv),
            "attn_output": (n_embd, n_embd), "ffn_gate": (n_embd, n_ff), "ffn_up": (n_embd, n_ff),
            "ffn_down": (n_ff, n_embd),
        }  # fmt: skip
        found += [(f"blk.{layer}.{name}.weight", shape, kind) for name, shape in shapes.items()]
        found += [(f"blk.{layer}.{name}.weight", (n_embd,), "F32") for name in ("attn_norm", "ffn_norm")]
    return found


def write_raw(
    path: Path,
    entries: Mapping[str, Any],
    tensors: Sequence[Tensor],
    *,
    architecture: Any = "llama",
    holes: bool = True,
) -> Path:
    """Entries without a dot-separated prefix of their own are the architecture's.

    A value is an int (u32, u64 or i32 as it fits), float, bool, str, a list of one of these, or (kind, number).
    """
    own = ("general.", "tokenizer.", "split.", "edgellm.")
    listed = {"general.architecture": architecture} if architecture is not None else {}
    prefix = architecture if isinstance(architecture, str) else "llama"
    listed |= {key if key.startswith(own) else f"{prefix}.{key}": value for key, value in entries.items()}
    infos, offset = b"", 0
    for name, shape, kind in tensors:
        type_id = TYPE_IDS[kind]
        _, block, width = TENSOR_TYPES[type_id]
        infos += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += struct.pack("<IQ", type_id, offset)
        offset += -(-(math.prod(shape) // block * width) // 32) * 32
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(listed))
    data += b"".join(_text(key) + _value(value) for key, value in listed.items()) + infos
    data += bytes(-len(data) % 32) if tensors else b""
    with path.open("wb") as file:
        file.write(data)
        if holes:
            file.truncate(len(data) + offset)
    return path


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        code = _STRING if isinstance(value[0], str) else _CODES[_kind(min(value))][0]
        items = b"".join(_value(item)[4:] for item in value)
        return struct.pack("<IIQ", _ARRAY, code, len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    kind, number = value if isinstance(value, tuple) else (_kind(value), value)
    code, letter = _CODES[kind]
    return struct.pack(f"<I{letter}", code, number)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, float):
        return "f32"
    return "i32" if value < 0 else "u32" if value < 2**32 else "u64"
