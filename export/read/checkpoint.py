"""The weights of a Hub folder, tensor by tensor, without torch: safetensors and torch's `.bin`, whole or in shards.

The files come from outside and are taken as hostile: no length is believed before it is checked against the file, no
shard name leaves the folder, and a `.bin` is a pickle of which only the table of tensors is read, by an interpreter
that knows nothing else. Weights are read in pieces, never mapped: what is in memory is what was asked for.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.export.read.json_file import LFS_POINTER, read_json
from edgellm.export.read.tokenizer_facts import TokenizerError
from edgellm.memory.errors import EdgellmError
from edgellm.memory.files import CHUNK_BYTES

MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
MAX_PICKLE_BYTES = 64 * 2**20
MAX_TENSORS = 100_000
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip

READABLE = ("F32", "F16", "BF16")
# A tensor's type, by its name in safetensors -> bytes an item.
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


class CheckpointError(EdgellmError, ValueError):
    """A checkpoint that is damaged, incomplete, or of a kind that cannot be read; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: row-major, contiguous, little-endian."""

    name: str
    path: Path
    type: str  # a key of ITEM_BYTES; only the READABLE ones are weights that can be taken
    shape: tuple[int, ...]  # outermost first, as in torch
    offset: int  # bytes from the start of the file

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.type]

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The tensor's bytes in order, in whole items.

        Raises:
            CheckpointError: the file has become shorter than it was.
        """
        left = self.n_bytes
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while left:
                data = _read_exactly(file, min(chunk_bytes, left), self.path)
                left -= len(data)
                yield data

    def read(self) -> bytes:
        """All of it, for a tensor whose rows change places."""
        return b"".join(self.chunks())


def _read_exactly(file: io.FileIO, n_bytes: int, path: Path) -> bytes:
    parts = []
    while n_bytes:
        part = file.read(n_bytes)
        if not part:
            raise CheckpointError(f"{path} is truncated: download it again")
        parts.append(part)
        n_bytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a Hub folder by its name.

    Raises:
        CheckpointError: no weights, a missing shard, or a damaged or malicious file.
    """
    name = chosen_weights([path.name for path in folder.iterdir()])
    if name is None:
        raise CheckpointError(
            f"{folder} has no weights (model.safetensors or pytorch_model.bin, whole or in shards): "
            "is it a model's folder?"
        )
    return _read_shards(folder / name) if name.endswith(".index.json") else read_weights(folder / name)


def chosen_weights(names: Collection[str]) -> str | None:
    """The file that a folder's weights are read from, or the index of its shards: whole before in shards, and
    safetensors before `.bin`, as transformers has it. None: there are none.
    """
    return next((name for name in _WEIGHTS if name in names), None)


def shards_of(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
        CheckpointError: a damaged index, or one that names a file elsewhere.
    """
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = read_json(index).get("weight_map")
    except TokenizerError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} names no shards: download it again")
    for name in set(weight_map.values()):
        if Path(name).name != name or Path(name).suffix not in {".safetensors", ".bin"}:
            raise CheckpointError(f"{index} names a shard {name!r} that is no file of this folder: do not use it")
    return weight_map


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(weight_map.values())):
        if not (index.parent / name).exists():
            raise CheckpointError(f"{index.parent} lacks the shard {name}: download the rest of it")
        tensors |= read_weights(index.parent / name)
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(f"{index.parent}: {missing[0]!r} and {len(missing) - 1} more tensors are in no shard")
    return tensors


def read_weights(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, safetensors or `.bin`, by its name. Raises as `read_checkpoint`."""
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Format: 8 bytes of header length, a JSON header, the data; offsets count from the data's start."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if LFS_POINTER.startswith(start) and start:
            raise CheckpointError(f"{path} is a pointer of Git LFS and not the file: run `git lfs pull` in its folder")
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
            raise CheckpointError(f"{path} is no safetensors file or a truncated one: download it again")
        try:
            header = json.loads(file.read(header_bytes))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} has a damaged header ({error}): download it again") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path} has a damaged header: download it again")
    data_offset, tensors, spans = 8 + header_bytes, {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            kind, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: the entry of {name!r} is damaged: download the file again") from error
        if not all(type(number) is int and 0 <= number <= file_bytes for number in (*shape, begin, end)):
            raise CheckpointError(f"{path}: {name!r} has impossible extents or offsets: download the file again")
        if kind not in ITEM_BYTES:
            raise CheckpointError(f"{path}: {name!r} is stored as {kind!r}, which is not known here")
        tensor = StoredTensor(name, path, kind, shape, data_offset + begin)
        if end - begin != tensor.n_bytes or data_offset + end > file_bytes:
            raise CheckpointError(f"{path}: {name!r} does not fit its place in the file: download the file again")
        tensors[name] = tensor
        spans.append((begin, end, name))
    spans.sort()
    for (_, end, name), (begin, _, other) in itertools.pairwise(spans):
        if begin < end:
            raise CheckpointError(f"{path}: {name!r} and {other!r} overlap: the file is damaged")
    return tensors


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    type: str
    n_items: int


@dataclass(frozen=True, slots=True)
class _View:
    """What torch pickles for a tensor: a window on a storage, in items."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StorageType(str):
    """`torch.FloatStorage` and the like, as nothing but its name."""


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_ignored: object
) -> _View:
    return _View(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(view: _View, *_ignored: object) -> _View:
    return view


_PICKLED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "FloatStorage"): _StorageType("F32"),
    ("torch", "HalfStorage"): _StorageType("F16"),
    ("torch", "BFloat16Storage"): _StorageType("BF16"),
    # Buffers such as position ids; they are listed and never read.
    ("torch", "LongStorage"): _StorageType("I64"),
    ("torch", "IntStorage"): _StorageType("I32"),
    ("torch", "BoolStorage"): _StorageType("BOOL"),
    ("torch", "ByteStorage"): _StorageType("U8"),
}
# What `torch.save` writes for a table of tensors, and not one instruction more.
_OPCODES = {
    "PROTO", "STOP", "GLOBAL", "STACK_GLOBAL", "MARK", "EMPTY_DICT", "EMPTY_TUPLE", "EMPTY_LIST", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "REDUCE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE", "FRAME", "BINUNICODE",
    "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINPERSID", "SETITEM", "SETITEMS", "NEWTRUE",
    "NEWFALSE", "NONE", "BINFLOAT", "APPEND", "APPENDS", "BUILD",
}  # fmt: skip


class _TensorUnpickler(pickle.Unpickler):
    """A pickle interpreter that knows tensors and nothing else."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED:
            raise CheckpointError(
                f"{self.path} asks for {module}.{name}, which no table of tensors needs: do not use it"
            )
        return _PICKLED[module, name]

    def persistent_load(self, reference: Any) -> _Storage:
        kind, storage_type, key, _device, n_items = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise CheckpointError(f"{self.path}: a storage is described in an unknown way: the file is damaged")
        return _Storage(key, str(storage_type), int(n_items))


def _read_torch(path: Path) -> dict[str, StoredTensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            table = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(table) != 1 or members[table[0]].file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(f"{path} is no torch checkpoint: download it again")
            if members[table[0]].compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path} is compressed, which no torch checkpoint is: do not use it")
            data = archive.read(table[0])
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, OverflowError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is damaged, or written by a torch before 1.6: download it again, or a repository with safetensors"
        ) from error
    root = table[0].removesuffix("data.pkl")
    return {
        name: _located(view, name, path, members, root)
        for name, view in _unpickled(data, path).items()
        if isinstance(view, _View) and view.storage.type in ITEM_BYTES
    }


def _unpickled(data: bytes, path: Path) -> dict[str, Any]:
    try:
        for n_instructions, (opcode, argument, _) in enumerate(pickletools.genops(data), 1):
            # An interpreter's memo is an array: a wild index would allocate it.
            wild = opcode.name in {"BINPUT", "LONG_BINPUT"} and int(argument or 0) > n_instructions
            if opcode.name not in _OPCODES or wild:
                raise CheckpointError(
                    f"{path} has the pickle instruction {opcode.name}, which no table of tensors needs: do not use it"
                )
        table = _TensorUnpickler(data, path).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle fails in any way there is
        raise CheckpointError(f"{path} has a damaged table of tensors: download it again") from error
    if isinstance(table, dict) and isinstance(table.get("state_dict"), dict):
        table = table["state_dict"]
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise CheckpointError(f"{path} holds no table of tensors: is it a model's checkpoint?")
    return table


def _located(view: _View, name: str, path: Path, members: dict[str, zipfile.ZipInfo], root: str) -> StoredTensor:
    """The window as a place in the file: the archive stores its members plainly, each behind a header of its own."""
    member = members.get(f"{root}data/{view.storage.key}")
    numbers = (view.offset, *view.shape, *view.strides)
    if member is None or not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckpointError(f"{path}: {name!r} has no weights in the file, or impossible extents: download it again")
    expected = 1
    for extent, stride in reversed(list(zip(view.shape, view.strides, strict=True))):
        if extent != 1 and stride != expected:
            raise CheckpointError(f"{path}: {name!r} is stored transposed, which is not supported: use safetensors")
        expected *= extent
    item_bytes = ITEM_BYTES[view.storage.type]
    n_bytes = math.prod(view.shape) * item_bytes
    if member.compress_type != zipfile.ZIP_STORED or view.offset * item_bytes + n_bytes > member.file_size:
        raise CheckpointError(f"{path}: {name!r} does not fit its place in the file: download it again")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(30)
    if len(local) != 30 or local[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{path} has a damaged archive: download it again")
    name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
    start = member.header_offset + 30 + name_bytes + extra_bytes + view.offset * item_bytes
    if start + n_bytes > path.stat().st_size:
        raise CheckpointError(f"{path} is truncated: download it again")
    return StoredTensor(name, path, view.storage.type, view.shape, start)
