"""Write a GGUF file tensor by tensor: header first, then each tensor's bytes as they come.

The sizes of all tensors are known before the first byte is read, so the header is final when it is written and a 7B
model passes through in pieces. Format: ggml's `docs/gguf.md`, version 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.memory.files import appearing
from edgellm.memory.gguf import MAGIC, TENSOR_TYPES, TYPE_IDS

ALIGNMENT = 32  # bytes; the format's default

_U8, _U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _F64 = 0, 4, 5, 6, 7, 8, 9, 12


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to come: `chunks` is called once, when its turn is there, and yields exactly `n_bytes` bytes in
    order.
    """

    name: str
    shape: tuple[int, ...]  # innermost first, as in ggml
    type: str
    chunks: Callable[[], Iterable[bytes | memoryview]]

    @property
    def n_bytes(self) -> int:
        return tensor_bytes(self.shape, self.type)


def tensor_bytes(shape: Sequence[int], type_name: str) -> int:
    """Bytes of a tensor of ggml type `type_name`; the innermost extent must be whole blocks."""
    _, block_items, block_bytes = TENSOR_TYPES[TYPE_IDS[type_name]]
    n_items = 1
    for extent in shape:
        n_items *= extent
    assert shape[0] % block_items == 0, (shape, type_name)
    return n_items // block_items * block_bytes


def u32(value: int) -> bytes:
    return struct.pack("<II", _U32, value)


def f32(value: float) -> bytes:
    return struct.pack("<If", _F32, value)


def f64(value: float) -> bytes:
    return struct.pack("<Id", _F64, value)


def boolean(value: bool) -> bytes:
    return struct.pack("<I?", _BOOL, value)


def string(value: str | bytes) -> bytes:
    return struct.pack("<I", _STRING) + _text(value)


def strings(values: Sequence[str | bytes]) -> bytes:
    return struct.pack("<IIQ", _ARRAY, _STRING, len(values)) + b"".join(map(_text, values))


def u8s(values: bytes) -> bytes:
    return struct.pack("<IIQ", _ARRAY, _U8, len(values)) + values


def i32s(values: Sequence[int]) -> bytes:
    return struct.pack(f"<IIQ{len(values)}i", _ARRAY, _I32, len(values), *values)


def f32s(values: Sequence[float]) -> bytes:
    return struct.pack(f"<IIQ{len(values)}f", _ARRAY, _F32, len(values), *values)


def write_gguf(
    path: Path,
    entries: Mapping[str, bytes],
    tensors: Sequence[PlannedTensor],
    *,
    on_tensor: Callable[[PlannedTensor], None] | None = None,
) -> None:
    """Write `path`, whole or not at all.

    Args:
        entries: metadata, key -> type and value as packed by `u32`, `string`, ... of this module.
        on_tensor: called after each tensor, for progress.
    """
    with appearing(path) as file:
        file.write(struct.pack("<4sIQQ", MAGIC, 3, len(tensors), len(entries)))
        for key, value in entries.items():
            file.write(_text(key) + value)
        offset = 0
        for tensor in tensors:
            file.write(
                _text(tensor.name)
                + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
                + struct.pack("<IQ", TYPE_IDS[tensor.type], offset)
            )
            offset += _padded(tensor.n_bytes)
        file.write(bytes(-file.tell() % ALIGNMENT))
        for tensor in tensors:
            n_written = 0
            for chunk in tensor.chunks():
                n_written += file.write(chunk)
            assert n_written == tensor.n_bytes, (tensor.name, n_written, tensor.n_bytes)
            file.write(bytes(_padded(n_written) - n_written))
            if on_tensor is not None:
                on_tensor(tensor)


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
