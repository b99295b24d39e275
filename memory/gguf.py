"""Read a GGUF header: metadata and tensor directory, never the weights.

The file comes from outside and is taken as hostile: every length is checked against the bytes that are there before it
is used, so a damaged or malicious header costs an error and never memory. Format: ggml's `docs/gguf.md`, versions 2, 3.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.memory.errors import EdgellmError

MAGIC = b"GGUF"
MAX_KEY_BYTES = 65_535
MAX_DIMS = 4
MAX_ENTRIES = 2**16  # of the metadata; real models have some dozens
MAX_TENSORS = 2**17  # the largest mixtures, an expert a tensor, have some 50,000
MAX_STRING_BYTES = 2**24  # of one entry; chat templates have some 10^4
MAX_ITEMS = 2**24  # of an array; the largest vocabularies have 2^18 tokens and 2^19 merges

# ggml type id -> (name, elements a block, bytes a block)
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

TYPE_IDS = {name: type_id for type_id, (name, _, _) in TENSOR_TYPES.items()}

# llama.cpp's `general.file_type` -> the name that people give a quantisation
FILE_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
    39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class GgufError(EdgellmError, ValueError):
    """The file is no GGUF, or a damaged one. The message names the file and the remedy."""


class HeaderCutShort(GgufError):
    """The bytes end before the header does."""


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of the metadata, left in the file: vocabularies hold 10^5 strings and few callers want them."""

    kind: int
    n_items: int
    offset: int  # of the first item, bytes from the start of the file
    n_bytes: int  # of all items together
    path: Path

    def items(self) -> list[Any]:
        """All of them, read now. Strings come as bytes."""
        with _mapped(self.path) as data:
            return list(_Cursor(data, self.offset, self.path).items(self.kind, self.n_items))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]  # innermost first, as in ggml: (n_in, n_out) for a matrix
    type: str
    offset: int  # bytes from `GgufHeader.data_offset`
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    path: Path
    version: int
    metadata: dict[str, Any]  # scalars as int, float, bool, str; arrays as GgufArray
    tensors: tuple[TensorInfo, ...]
    data_offset: int  # bytes from the start of the file
    file_bytes: int

    @property
    def architecture(self) -> str:
        """As llama.cpp names it; "" where the header does not say."""
        named = self.metadata.get("general.architecture")
        return named if isinstance(named, str) else ""

    @property
    def quantisation(self) -> str:
        """`Q4_K_M` and the like; the commonest type by bytes where the file does not say."""
        file_type = self.metadata.get("general.file_type")
        if isinstance(file_type, int) and not isinstance(file_type, bool) and file_type in FILE_TYPES:
            return FILE_TYPES[file_type]
        n_bytes: dict[str, int] = {}
        for tensor in self.tensors:
            n_bytes[tensor.type] = n_bytes.get(tensor.type, 0) + tensor.n_bytes
        return max(n_bytes, key=lambda name: n_bytes[name], default="unknown")

    @property
    def n_params(self) -> int:
        total = 0
        for tensor in self.tensors:
            n = 1
            for extent in tensor.shape:
                n *= extent
            total += n
        return total

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)

    def hparam(self, name: str, default: Any = None) -> Any:
        """The architecture's own entry: `hparam("block_count")` reads `qwen2.block_count`."""
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def own_keys(self) -> list[str]:
        """Names of the architecture's own entries, as `hparam` takes them."""
        prefix = f"{self.architecture}."
        return [key.removeprefix(prefix) for key in self.metadata if key.startswith(prefix)]

    def array(self, key: str) -> list[Any]:
        """Items of an array entry, read now (`[]` where the entry is missing). Strings come as bytes."""
        value = self.metadata.get(key)
        return value.items() if isinstance(value, GgufArray) else []

    def vocabulary_key(self) -> str:
        """A hash of all that the file says of its vocabulary, the chat template aside: equal keys, equal vocabularies.

        Taken from the bytes as they lie in the file, which takes milliseconds where reading every token takes a second.
        """
        digest = hashlib.sha256()
        with _mapped(self.path) as data:
            for key, value in sorted(self.metadata.items()):
                if key.startswith("tokenizer.ggml."):
                    digest.update(f"{len(key)} {key} ".encode())
                    if isinstance(value, GgufArray):
                        digest.update(f"{value.kind} {value.n_items} {value.n_bytes} ".encode())
                        digest.update(data[value.offset : value.offset + value.n_bytes])
                    else:
                        digest.update(f"{type(value).__name__} {value!r} ".encode())
        return digest.hexdigest()


class _Cursor:
    """A position in the mapped file that refuses to leave it."""

    def __init__(self, data: memoryview, offset: int, path: Path) -> None:
        self.data, self.offset, self.path = data, offset, path

    def take(self, n_bytes: int) -> int:
        """The offset of the next `n_bytes`, which are consumed."""
        start = self.offset
        if n_bytes < 0 or n_bytes > len(self.data) - start:
            raise self._cut_short()
        self.offset = start + n_bytes
        return start

    def _cut_short(self) -> HeaderCutShort:
        return HeaderCutShort(f"{self.path} ends inside its header ({len(self.data):,} bytes): pull or copy it again")

    def scalar(self, kind: int) -> Any:
        code = _SCALARS.get(kind)
        if code is None:
            raise GgufError(f"{self.path} has a header entry of unknown type {kind}: the file is damaged or too new")
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code)))[0]

    def string(self, max_bytes: int | None = None) -> bytes:
        n_bytes = self.scalar(10)
        if max_bytes is not None and n_bytes > max_bytes:
            raise GgufError(f"{self.path} has a text of {n_bytes:,} bytes in its header: the file is damaged")
        start = self.take(n_bytes)
        return bytes(self.data[start : start + n_bytes])

    def skip_strings(self, n_items: int) -> None:
        """Step over strings without a call for each: a vocabulary and its merges are 10^5 of them."""
        data, offset, unpack = self.data, self.offset, struct.Struct("<Q").unpack_from
        try:
            for _ in range(n_items):  # a lying count runs out of file, not out of memory
                offset += 8 + unpack(data, offset)[0]
        except (struct.error, OverflowError):
            raise self._cut_short() from None
        if offset > len(data):
            raise self._cut_short()
        self.offset = offset

    def items(self, kind: int, n_items: int) -> Iterator[Any]:
        if kind == _STRING:
            for _ in range(n_items):
                yield self.string()
        elif kind in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[kind])
            start = self.take(width * n_items)
            yield from struct.unpack_from(f"<{n_items}{_SCALARS[kind]}", self.data, start)
        else:
            raise GgufError(f"{self.path} has an array of unknown type {kind}: the file is damaged or too new")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string(MAX_STRING_BYTES).decode("utf-8", "replace")
        if kind != _ARRAY:
            return self.scalar(kind)
        item_kind, n_items = self.scalar(4), self.scalar(10)
        if n_items > MAX_ITEMS:
            raise GgufError(f"{self.path} has an array of {n_items:,} items in its header: the file is damaged")
        start = self.offset
        if item_kind == _STRING:
            self.skip_strings(n_items)
        elif item_kind in _SCALARS:
            self.take(struct.calcsize("<" + _SCALARS[item_kind]) * n_items)
        else:
            raise GgufError(f"{self.path} has an array of unknown type {item_kind}: the file is damaged or too new")
        return GgufArray(item_kind, n_items, start, self.offset - start, self.path)


class _mapped:
    """The file as a read-only memoryview."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> memoryview:
        self.file = self.path.open("rb")
        self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self.map)
        return self.view

    def __exit__(self, *exc: object) -> None:
        self.view.release()
        self.map.close()
        self.file.close()


def read_header(path: Path, *, check_extent: bool = True) -> GgufHeader:
    """Metadata and tensor directory of a GGUF file.

    Args:
        check_extent: also refuse a file that is shorter than its tensors need (a truncated download).

    Raises:
        GgufError: no GGUF, an unknown version, a damaged header, or a truncated file.
        OSError: the file cannot be opened.
    """
    file_bytes = path.stat().st_size
    if file_bytes < 24:
        raise GgufError(f"{path} is not a GGUF file (only {file_bytes} bytes)")
    with _mapped(path) as data:
        return parse_header(data, path, file_bytes if check_extent else None)


def parse_header(data: memoryview, path: Path, file_bytes: int | None) -> GgufHeader:
    """`read_header` over bytes that begin a file: `data` need only reach to the end of the header.

    Args:
        path: only named in messages.
        file_bytes: size of the whole file; None skips the check against it.
    """
    if bytes(data[:4]) != MAGIC:
        raise GgufError(
            f"{path} is not a GGUF file (it begins with {bytes(data[:4])!r}): export or pull the model first"
        )
    cursor = _Cursor(data, 4, path)
    version = cursor.scalar(4)
    if version not in (2, 3):
        raise GgufError(f"{path} has GGUF version {version}; versions 2 and 3 are known")
    n_tensors, n_entries = cursor.scalar(10), cursor.scalar(10)
    if n_tensors > MAX_TENSORS or n_entries > MAX_ENTRIES:
        raise GgufError(f"{path} has {n_tensors:,} tensors and {n_entries:,} entries, as no model has: it is damaged")
    metadata: dict[str, Any] = {}
    for _ in range(n_entries):
        key = cursor.string(MAX_KEY_BYTES).decode("utf-8", "replace")
        metadata[key] = cursor.value(cursor.scalar(4))
    tensors = [_tensor(cursor) for _ in range(n_tensors)]
    if len({tensor.name for tensor in tensors}) < n_tensors:
        raise GgufError(f"{path} names a tensor twice, which llama.cpp refuses: the file is damaged")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise GgufError(f"{path} has alignment {shown(alignment)}: the file is damaged")
    data_offset = (cursor.offset + alignment - 1) // alignment * alignment
    end = data_offset + max((t.offset + t.n_bytes for t in tensors), default=0) if tensors else cursor.offset
    if file_bytes is not None and end > file_bytes:
        sizes = f"{file_bytes:,} of {end:,} bytes are there" if end < 2**60 else "no file is as long as its tensors say"
        raise GgufError(f"{path} is truncated: {sizes}; pull it again to resume the download")
    return GgufHeader(
        path, version, metadata, tuple(tensors), data_offset, file_bytes if file_bytes is not None else end
    )


def shown(value: object) -> str:
    """A value of a file in a message: short, and without control characters."""
    if isinstance(value, GgufArray | list):
        return "an array"
    text = value if isinstance(value, str) else repr(value)[:60]
    return repr("".join(letter if letter.isprintable() else "?" for letter in text[:60])) if text is value else text


def _tensor(cursor: _Cursor) -> TensorInfo:
    name = cursor.string(MAX_KEY_BYTES).decode("utf-8", "replace")
    n_dims = cursor.scalar(4)
    if n_dims > MAX_DIMS:
        raise GgufError(f"{cursor.path}: tensor {shown(name)} has {n_dims} dimensions; the file is damaged")
    shape = tuple(cursor.scalar(10) for _ in range(n_dims))
    type_id, offset = cursor.scalar(4), cursor.scalar(10)
    if type_id not in TENSOR_TYPES:
        raise GgufError(
            f"{cursor.path}: tensor {shown(name)} has unknown type {type_id}; the file is damaged or too new"
        )
    type_name, block_items, block_bytes = TENSOR_TYPES[type_id]
    n_items = 1
    for extent in shape:
        n_items *= extent
    if n_items % block_items:
        raise GgufError(f"{cursor.path}: tensor {shown(name)} of {shape} is no whole number of {type_name} blocks")
    return TensorInfo(name, shape, type_name, offset, n_items // block_items * block_bytes)
