"""Pieces of GGUF files as they lie in them, for another file: metadata entries and tensors, byte for byte."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from edgellm.export.convert.gguf_writer import PlannedTensor, write_gguf
from edgellm.memory.files import CHUNK_BYTES
from edgellm.memory.gguf import GgufError, GgufHeader, TensorInfo
from edgellm.memory.split import joined, read_parts

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of the format's scalars, bytes
_STRING, _ARRAY = 8, 9


def raw_entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """(key, type and value as they lie in the file) of each metadata entry. The header has been read and found
    sound.
    """
    with path.open("rb") as file:
        _, _, _, n_entries = struct.unpack("<4sIQQ", file.read(24))

        def string_bytes() -> bytes:
            length = file.read(8)
            return length + file.read(struct.unpack("<Q", length)[0])

        def value_bytes(kind: int) -> bytes:
            if kind == _STRING:
                return string_bytes()
            if kind != _ARRAY:
                return file.read(_WIDTHS[kind])
            head = file.read(12)
            item_kind, n_items = struct.unpack("<IQ", head)
            if item_kind == _STRING:
                return head + b"".join(string_bytes() for _ in range(n_items))
            return head + file.read(_WIDTHS[item_kind] * n_items)

        for _ in range(n_entries):
            key = string_bytes()[8:].decode("utf-8", "replace")
            kind = file.read(4)
            yield key, kind + value_bytes(struct.unpack("<I", kind)[0])


def copied(header: GgufHeader, tensor: TensorInfo, name: str | None = None) -> PlannedTensor:
    """A tensor of another file, by another name if one is given."""
    start = header.data_offset + tensor.offset
    return PlannedTensor(
        name or tensor.name, tensor.shape, tensor.type, lambda: _pieces(header.path, start, tensor.n_bytes)
    )


def join(first: Path, target: Path, on_tensor: Callable[[int, int], None] | None = None) -> None:
    """Write a model in several files as one; whole or not at all.

    Args:
        on_tensor: called with (tensors written, of how many) after each.

    Raises:
        GgufError: as `split.read_model`.
    """
    headers = read_parts(first)
    joined(headers)  # refuses parts that do not belong together
    # Tensors are laid out anew, at the writer's own alignment.
    entries = {
        key: value
        for key, value in raw_entries(first)
        if not key.startswith("split.") and key != "general.alignment"
    }  # fmt: skip
    planned = [copied(header, tensor) for header in headers for tensor in header.tensors]
    n_done = 0

    def count(_: PlannedTensor) -> None:
        nonlocal n_done
        n_done += 1
        if on_tensor is not None:
            on_tensor(n_done, len(planned))

    write_gguf(target, entries, planned, on_tensor=count)


def _pieces(path: Path, start: int, n_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while n_bytes:
            data = file.read(min(CHUNK_BYTES, n_bytes))
            if not data:
                raise GgufError(f"{path} is truncated: pull or export it again")
            n_bytes -= len(data)
            yield data
