"""Models in several files, as llama.cpp's splitter writes them: a part says which it is, the first all the rest."""

from __future__ import annotations

import struct
from pathlib import Path

from edgellm.export.convert.gguf_copy import copied, raw_entries
from edgellm.export.convert.gguf_writer import write_gguf
from edgellm.memory.gguf import read_header


def split(whole: Path, folder: Path, n: int, stem: str = "") -> list[Path]:
    """The tensors of a model in `n` files of about as many; the first has the model's metadata."""
    header, entries = read_header(whole), dict(raw_entries(whole))
    folder.mkdir(parents=True, exist_ok=True)
    n_tensors, found = len(header.tensors), []
    for index in range(n):
        own = header.tensors[index * n_tensors // n : (index + 1) * n_tensors // n]
        about = {
            "split.no": struct.pack("<IH", 2, index),
            "split.count": struct.pack("<IH", 2, n),
            "split.tensors.count": struct.pack("<Ii", 5, n_tensors),
        }
        path = folder / f"{stem or whole.stem}-{index + 1:05}-of-{n:05}.gguf"
        write_gguf(path, {**(entries if index == 0 else {}), **about}, [copied(header, tensor) for tensor in own])
        found.append(path)
    return found


def relabelled(part: Path, target: Path, number: int) -> Path:
    """A part that says that it is another one, counted from 1."""
    header, entries = read_header(part), dict(raw_entries(part))
    entries["split.no"] = struct.pack("<IH", 2, number - 1)
    write_gguf(target, entries, [copied(header, tensor) for tensor in header.tensors])
    return target
