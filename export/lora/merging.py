"""A LoRA merged into its base's weights in float32, a few rows at a time as they are read."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.export.convert.tensors import gguf_name
from edgellm.export.lora.adapters import EMBEDDING, HEAD, Adapter, Floats, Pair, floats_of, read_floats
from edgellm.export.obtain.source import TOKENIZER_FILES
from edgellm.export.read.checkpoint import StoredTensor, read_checkpoint
from edgellm.export.read.facts import UnsupportedModel, read_config
from edgellm.export.read.json_file import read_json
from edgellm.memory.files import CHUNK_BYTES, appearing

_Change = Callable[[int, Floats], Floats]  # (number of the first row, rows of the base) -> rows of the sum


@dataclass(frozen=True, slots=True)
class MergedTensor(StoredTensor):
    """A tensor of the base with an adapter's change, which is computed a few rows at a time as they are read."""

    change: Callable[[], _Change] = field(repr=False, compare=False, kw_only=True)
    source: StoredTensor = field(kw_only=True)

    @classmethod
    def of(cls, source: StoredTensor, change: Callable[[], _Change]) -> MergedTensor:
        return cls(source.name, source.path, "F32", source.shape, 0, change=change, source=source)

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        row_bytes = self.source.n_bytes // self.shape[0]
        first, change = 0, self.change()
        for data in self.source.chunks(max(1, chunk_bytes // row_bytes) * row_bytes):
            block = floats_of(data, self.source).reshape(-1, *self.shape[1:])
            yield change(first, block).astype("<f4").tobytes()
            first += len(block)


def merge(stored: dict[str, StoredTensor], adapter: Adapter) -> dict[str, StoredTensor]:
    """A checkpoint's tensors by GGUF name with an adapter merged into them, in float32.

    A head that was the embedding becomes one of its own where either of them is changed.

    Raises:
        UnsupportedModel: the base lacks what the adapter changes, or is not what it was trained on.
    """
    merged = dict(stored)
    if {EMBEDDING, HEAD} & {*adapter.pairs, *adapter.whole} and HEAD not in merged:
        merged[HEAD] = merged[EMBEDDING]
    for name, tensor in adapter.frozen.items():
        if name in stored and not _same_numbers(stored[name], tensor):
            raise UnsupportedModel(
                f"{tensor.path} holds its base's {tensor.name} otherwise than {stored[name].path.parent.name} has it: "
                "it was trained on another model"
            )
    merged |= adapter.whole
    for name, pair in adapter.pairs.items():
        if name not in merged:
            raise UnsupportedModel(f"{adapter.facts.folder} adapts {name}, which its base lacks")
        merged[name] = MergedTensor.of(merged[name], partial(_change, name, pair))
    return merged


def _change(name: str, pair: Pair) -> _Change:
    """What makes rows of the merged tensor of rows of the base's, from row `first` on."""
    a, b = read_floats(pair.a), read_floats(pair.b)
    left, right = (a.T, b.T) if name == EMBEDDING else (b, a)
    left = left * np.float32(pair.scale)
    lengths = read_floats(pair.magnitude).reshape(-1, 1) if pair.magnitude is not None else None

    def change(first: int, rows: Floats) -> Floats:
        rows = rows + left[first : first + len(rows)] @ right
        if lengths is not None:
            rows = rows * (lengths[first : first + len(rows)] / np.linalg.norm(rows, axis=1, keepdims=True))
        return rows

    return change


def _same_numbers(left: StoredTensor, right: StoredTensor) -> bool:
    """Whether two tensors hold the same, at the precision of the coarser of them."""
    n_bytes = CHUNK_BYTES // 8
    for one, other in zip(_pieces(left, n_bytes), _pieces(right, n_bytes), strict=True):
        if not np.allclose(one, other, rtol=2**-7, atol=1e-7):
            return False
    return True


def _pieces(tensor: StoredTensor, n_items: int) -> Iterator[Floats]:
    item_bytes = tensor.n_bytes // math.prod(tensor.shape)
    return (floats_of(data, tensor) for data in tensor.chunks(n_items * item_bytes))


def write_merged(folder: Path, adapter: Adapter, output: Path) -> None:
    """The merged model as a Hub folder: what a check of its GGUF is made against."""
    family, _ = read_config(folder)
    checkpoint = read_checkpoint(folder)
    names = {gguf: name for name in checkpoint if (gguf := gguf_name(name, family)) is not None}
    merged = merge({gguf: checkpoint[name] for gguf, name in names.items()}, adapter)
    own_head = HEAD in merged and HEAD not in names
    tensors = {names.get(gguf, "lm_head.weight"): tensor for gguf, tensor in merged.items()}
    write_folder(folder, output, tensors, **({"tie_word_embeddings": False} if own_head else {}))


def write_folder(folder: Path, output: Path, tensors: Mapping[str, StoredTensor], **settings: Any) -> None:
    """A Hub folder with other tensors, and settings of config.json that are other ones then."""
    output.mkdir()
    for name in TOKENIZER_FILES - {"config.json"}:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)
    (output / "config.json").write_text(json.dumps(read_json(folder / "config.json") | settings), encoding="utf-8")
    _write_safetensors(output / "model.safetensors", tensors)


def _write_safetensors(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.n_bytes
        header[name] = {"dtype": tensor.type, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with appearing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for chunk in tensor.chunks():
                file.write(chunk)
