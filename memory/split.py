"""Models in several files, as llama.cpp splits them: `NAME-00001-of-00003.gguf` and its siblings, read as one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from edgellm.memory.gguf import GgufError, GgufHeader, read_header, shown

MAX_PARTS = 1000
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")


def read_model(path: Path) -> GgufHeader:
    """The header of a model with the tensors of all its parts; most models have one.

    Offsets of tensors are each in its own part, so this serves for sizes.

    Raises:
        GgufError: as `read_header`, a part that is missing, or one that is not the first.
        OSError: a part cannot be opened.
    """
    first = read_header(path)
    n_parts = first.metadata.get("split.count", 1)
    if n_parts in (0, 1):
        return first
    if type(n_parts) is not int or not 1 < n_parts <= MAX_PARTS:
        raise GgufError(f"{path} says that it is one of {shown(n_parts)} parts: the file is damaged")
    if number := first.metadata.get("split.no", 0):
        which = f"part {number + 1}" if type(number) is int else "a part"
        raise GgufError(f"{path} is {which} of a model in {n_parts} files: name the first of them")
    headers = [first, *(_part(path, index, n_parts) for index in range(1, n_parts))]
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise GgufError(f"two parts of {path} hold the same tensor: pull the model again")
    n_tensors = first.metadata.get("split.tensors.count", len(tensors))
    if n_tensors != len(tensors):
        raise GgufError(
            f"{path} says {shown(n_tensors)} tensors, its {n_parts} files hold {len(tensors)}: pull it again"
        )
    return replace(first, tensors=tensors, file_bytes=sum(header.file_bytes for header in headers))


def parts_of(path: Path) -> list[Path]:
    """The files of a model that `read_model` has read, the first of which is named."""
    match = _PART.fullmatch(path.stem)
    if match is None:
        return [path]
    numbers = range(1, min(int(match["count"]), MAX_PARTS) + 1)
    return [path.with_name(f"{match['stem']}-{number:05}-of-{match['count']}{path.suffix}") for number in numbers]


def _part(first: Path, index: int, n_parts: int) -> GgufHeader:
    """The header of a further part, by the name that llama.cpp looks for."""
    match = _PART.fullmatch(first.stem)
    if match is None or int(match["count"]) != n_parts or int(match["number"]) != 1:
        raise GgufError(
            f"{first} is the first of {n_parts} files and not called NAME-00001-of-{n_parts:05}.gguf, by which "
            "llama.cpp finds the others: give it that name"
        )
    path = first.with_name(f"{match['stem']}-{index + 1:05}-of-{n_parts:05}{first.suffix}")
    if not path.is_file():
        raise GgufError(f"{path.name} is missing beside {first.name}: pull or copy all {n_parts} files of the model")
    header = read_header(path)
    if header.metadata.get("split.count") != n_parts or header.metadata.get("split.no") != index:
        raise GgufError(f"{path} is not part {index} of {first.name}: pull the model again")
    return header
