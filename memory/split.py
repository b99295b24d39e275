"""Models in several files, as llama.cpp splits them: `NAME-00001-of-00003.gguf` and its siblings, read as one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgellm.memory import files
from edgellm.memory.gguf import MAX_TENSORS, GgufError, GgufHeader, TensorInfo, read_header, shown

MAX_PARTS = 1000
_LAYER = re.compile(r"blk\.(\d{1,6})\.")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)")


@dataclass(frozen=True, slots=True)
class PartName:
    """What the name of a file says: which part it is, of how many."""

    stem: str  # of all parts
    number: int  # from 1
    count: int  # 2 to MAX_PARTS
    suffix: str

    def sibling(self, number: int) -> str:
        """The name of another part of the same model."""
        return f"{self.stem}-{number:05}-of-{self.count:05}{self.suffix}"

    def siblings(self) -> list[str]:
        """The names of all of them, in order."""
        return [self.sibling(number) for number in range(1, self.count + 1)]


def part_name(filename: str) -> PartName | None:
    """None where a name is that of a whole model; `-00001-of-00001` is one."""
    match = _PART.fullmatch(filename)
    if match is None:
        return None
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count or not 1 < count <= MAX_PARTS:
        return None
    return PartName(match["stem"], number, count, match["suffix"])


def model_name(path: Path) -> str:
    """The name of a file without its ending and without what says which part it is."""
    match = _PART.fullmatch(path.name)
    return match["stem"] if match is not None else path.stem


def first_of(path: Path) -> Path:
    """The first part of a model of which any part is named; the path itself where that is not beside it."""
    part = part_name(path.name)
    if part is None or part.number == 1:
        return path
    first = path.with_name(part.sibling(1))
    return first if first.is_file() else path


def parts_of(path: Path) -> list[Path]:
    """The files of a model that `read_model` has read, the first of which is named."""
    found = _siblings(path)
    return found if all(part.is_file() for part in found) else [path]  # a whole one may be called like a part


def _siblings(path: Path) -> list[Path]:
    """By the name of the first; they need not be there."""
    part = part_name(path.name)
    return [path] if part is None else [path.with_name(name) for name in part.siblings()]


def files_of(path: Path) -> list[Path]:
    """The files of a model, all of them there; that of a model in one file may be called what it likes.

    Raises:
        GgufError: a part is missing, or the file is none.
        OSError: it cannot be opened.
    """
    part = part_name(path.name)
    if part is None:
        return [path]
    n_parts = _count(read_header(path, check_extent=False))
    if n_parts == 1:
        return [path]
    found = _siblings(path)
    for one in found:
        _refuse_missing(one, path, part.count)
    return found


def model_bytes(path: Path) -> int:
    """Bytes of all files of a model."""
    return sum(part.stat().st_size for part in parts_of(path))


def joint_sha256(digests: Sequence[str]) -> str:
    """By what a model is known: the sha256 of its file; of several, that of their digests, a line each."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def model_sha256(path: Path) -> str:
    """`joint_sha256` of a model's files. Raises GgufError, OSError: as `files_of`."""
    return joint_sha256([files.sha256_of(part) for part in files_of(path)])


def read_model(path: Path) -> GgufHeader:
    """The header of a model with the tensors of all its parts; most models have one.

    Offsets of tensors are each in its own part, so this serves for sizes.

    Raises:
        GgufError: as `read_header`, or a part that is missing, misnumbered or of another model; the message names it.
        OSError: a part cannot be opened.
    """
    return joined(read_parts(path))


def read_parts(path: Path) -> list[GgufHeader]:
    """The headers of all parts, in order; raises as `read_model` does for one that is missing or cannot be read."""
    first = read_header(path)
    if (n_parts := _count(first)) == 1:
        return [first]
    headers = [first]
    for name in _named_first(first, n_parts).siblings()[1:]:
        _refuse_missing(path.with_name(name), path, n_parts)
        headers.append(read_header(path.with_name(name)))
    return headers


def joined(headers: Sequence[GgufHeader]) -> GgufHeader:
    """The headers of all parts as one; a model in one file is itself.

    Raises:
        GgufError: one of them is not the part that its name says, or of another model.
    """
    first, n_parts = headers[0], len(headers)
    if n_parts == 1:
        return first
    n_tensors = first.metadata.get("split.tensors.count")
    if n_tensors is not None and type(n_tensors) is not int:
        raise GgufError(f"{first.path} says that the model has {shown(n_tensors)} tensors: the file is damaged")
    owners: dict[str, GgufHeader] = {}
    for index, header in enumerate(headers):
        if index:
            _refuse_another(header, first, index, n_parts)
        for tensor in header.tensors:
            if tensor.name in owners:
                raise GgufError(
                    f"{header.path} holds {shown(tensor.name)}, which {owners[tensor.name].path.name} holds too: it is "
                    "a part of another model; pull or copy the right one"
                )
            owners[tensor.name] = header
        if len(owners) > MAX_TENSORS:
            raise GgufError(f"the parts of {first.path} hold more tensors than any model has: they are damaged")
    if n_tensors is not None and n_tensors != len(owners):
        raise GgufError(
            f"{first.path} says that the model has {n_tensors} tensors, its {n_parts} files hold {len(owners)}: one of "
            "them is of another model; pull it again"
        )
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    return replace(first, tensors=tensors, file_bytes=sum(header.file_bytes for header in headers))


def _count(header: GgufHeader) -> int:
    """How many files the model has, as one of them says."""
    n_parts = header.metadata.get("split.count", 1)
    if type(n_parts) is not int or not 0 <= n_parts <= MAX_PARTS:
        raise GgufError(f"{header.path} says that it is one of {shown(n_parts)} parts: the file is damaged")
    return max(n_parts, 1)


def _named_first(header: GgufHeader, n_parts: int) -> PartName:
    """The name of a first part, by which llama.cpp finds the others."""
    path, number, named = header.path, header.metadata.get("split.no", 0), part_name(header.path.name)
    if type(number) is not int or not 0 <= number < n_parts:
        raise GgufError(f"{path} says that it is part {shown(number)} of {n_parts}, counted from 0: it is damaged")
    if number > 0 and named is not None and named.number > 1:
        first = named.sibling(1)
        _refuse_missing(path.with_name(first), path, n_parts)
        raise GgufError(f"{path} is part {number + 1} of a model in {n_parts} files: name the first of them, {first}")
    if number > 0:
        raise GgufError(
            f"{path} is part {number + 1} of a model in {n_parts} files, whatever its name says: pull or copy the "
            "first of them again"
        )
    if named is None or named.number != 1 or named.count != n_parts:
        raise GgufError(
            f"{path} is the first of {n_parts} files and not called NAME-00001-of-{n_parts:05}.gguf, by which "
            "llama.cpp finds the others: give it that name"
        )
    return named


def _refuse_missing(part: Path, named: Path, n_parts: int) -> None:
    if not part.is_file():
        raise GgufError(f"{part.name} is missing beside {named.name}: pull or copy all {n_parts} files of the model")


def _refuse_another(header: GgufHeader, first: GgufHeader, index: int, n_parts: int) -> None:
    """What its header says must be what its name says, and what the first part says of the model."""
    path, number, count = header.path, header.metadata.get("split.no"), header.metadata.get("split.count")
    if type(number) is not int or type(count) is not int or not 0 <= number < count:
        raise GgufError(f"{path} does not say which part of a model it is: pull or copy part {index + 1} again")
    if count != n_parts:
        raise GgufError(f"{path} is a part of another model, one in {count} files: pull or copy the right one")
    if number != index:
        raise GgufError(
            f"{path} is part {number + 1} of {n_parts} by its header, under the name of part {index + 1}: pull or copy "
            f"part {index + 1} again"
        )
    n_tensors = header.metadata.get("split.tensors.count")
    wanted = first.metadata.get("split.tensors.count")
    is_other = n_tensors is not None and wanted is not None and n_tensors != wanted
    if is_other or any(_is_foreign(tensor, first) for tensor in header.tensors):
        raise GgufError(f"{path} is a part of another model than {first.path.name}: pull or copy the right one")


def _is_foreign(tensor: TensorInfo, first: GgufHeader) -> bool:
    """Whether it is of a deeper or wider model. Sizes that lie for each layer are no numbers here, and say nothing."""
    n_embd, n_layers = first.hparam("embedding_length"), first.hparam("block_count")
    layer = _LAYER.match(tensor.name)
    if layer is None:
        return False
    if type(n_layers) is int and int(layer[1]) >= n_layers:
        return True
    return tensor.name.endswith(".attn_norm.weight") and type(n_embd) is int and tensor.shape != (n_embd,)
