"""A drafter that learnt its target, on its way to a device: its GGUF file with the adapter, or a checkpoint alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.export.convert.metadata import Shape
from edgellm.export.convert.tensors import gguf_name
from edgellm.export.lora.adapters import Floats, floats_of
from edgellm.export.lora.merging import write_folder
from edgellm.export.obtain.source import ModelSource
from edgellm.export.read.checkpoint import StoredTensor, read_checkpoint
from edgellm.export.read.facts import UnsupportedModel, read_config
from edgellm.memory.draft_adapter import AdapterFile, merge, quantised_matrix, read_draft_adapter
from edgellm.memory.files import CHUNK_BYTES, discard
from edgellm.memory.gguf import GgufHeader, TensorInfo, read_header

KEEPS = ("Q8_0", "F16", "BF16", "F32", "int8", "fp16", "fp32")  # types that keep what was learnt, beside the file's own
MAX_DIFFERENCE = 0.3  # relative, of a quantised matrix from its checkpoint's; Q2_K has 0.2, another model 1.4


@dataclass(frozen=True, slots=True)
class AdaptedDraft:
    """An adapter and the very file that it was made for."""

    adapter: AdapterFile
    base: Path

    @property
    def quant(self) -> str:
        """The file's own type, which keeps all of what was learnt."""
        return read_header(self.base).quantisation

    def write(self, path: Path) -> None:
        """The file with the adapter. Raises DraftAdapterError, OSError."""
        merge(read_draft_adapter(self.adapter.path), self.base, path)

    def described(self) -> dict[str, Any]:
        """As a manifest tells of it."""
        adapter = self.adapter
        return {"sha256": adapter.sha256, "base": adapter.base, "record": dict(adapter.record)}

    def remark(self, quant: str) -> str | None:
        """What a type loses of it."""
        if quant == self.quant or quant in KEEPS:
            return None
        return f"{quant} rounds away much of what the drafter learnt: {self.quant}, as it is, and Q8_0 keep it"

    def write_checkpoint(self, source: ModelSource, output: Path) -> None:
        """The checkpoint that the file was made from as a Hub folder, its matrices those of the file with the adapter.

        Raises:
            UnsupportedModel: a family that is not known here, or another model's checkpoint.
            DraftAdapterError, CheckpointError, OSError: a damaged file, or the disk.
        """
        merged = output.with_name(f"{output.name}.gguf")
        try:
            self.write(merged)
            checkpoint = read_checkpoint(source.path)
            write_folder(source.path, output, {**checkpoint, **self._adapted(source, checkpoint, merged)})
        finally:
            discard(merged)

    def _adapted(
        self, source: ModelSource, checkpoint: Mapping[str, StoredTensor], merged: Path
    ) -> dict[str, StoredTensor]:
        """The matrices that the adapter changes, by the checkpoint's names."""
        family, config = read_config(source.path)
        shape, header = Shape.of(config), read_header(merged)
        names = {gguf: name for name in checkpoint if (gguf := gguf_name(name, family)) is not None}
        infos = {info.name: info for info in header.tensors}
        found: dict[str, StoredTensor] = {}
        for name in read_draft_adapter(self.adapter.path).changes:
            info = infos[name]
            if name not in names or checkpoint[names[name]].shape != tuple(reversed(info.shape)):
                raise UnsupportedModel(f"{source.name} has no {name} as {self.base.name} has it: name its checkpoint")
            paired = re.search(r"attn_([qk])\.", name) if family.permute else None
            n_heads = {"q": shape.n_heads, "k": shape.n_kv_heads}[paired[1]] if paired else 0
            stored = checkpoint[names[name]]
            if not found:
                _refuse_another(stored, _dense(read_header(self.base), info, n_heads), source, self.base)
            found[names[name]] = AdaptedTensor.of(stored, header, info, n_heads)
        return found


@dataclass(frozen=True, slots=True)
class AdaptedTensor(StoredTensor):
    """A matrix of a GGUF file as a checkpoint has it, which is computed when it is read."""

    header: GgufHeader = field(repr=False, compare=False, kw_only=True)
    info: TensorInfo = field(kw_only=True)
    n_heads: int = field(kw_only=True)

    @classmethod
    def of(cls, stored: StoredTensor, header: GgufHeader, info: TensorInfo, n_heads: int) -> AdaptedTensor:
        """`n_heads`: whose rows llama.cpp keeps in pairs; 0 where it does not."""
        return cls(stored.name, header.path, "F32", stored.shape, 0, header=header, info=info, n_heads=n_heads)

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        yield _dense(self.header, self.info, self.n_heads).astype("<f4").tobytes()


def _dense(header: GgufHeader, info: TensorInfo, n_heads: int) -> Floats:
    """[n_out, n_in], rows in the order of the Hub: the halves of a head apart, where llama.cpp has them in pairs."""
    dense = quantised_matrix(header, info).dense()
    if n_heads:
        pairs = dense.reshape(n_heads, dense.shape[0] // n_heads // 2, 2, dense.shape[1])
        dense = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(dense.shape)
    return dense


def _refuse_another(stored: StoredTensor, base: Floats, source: ModelSource, path: Path) -> None:
    """Raises UnsupportedModel: the file was not made of this checkpoint."""
    own = floats_of(stored.read(), stored).reshape(base.shape)
    if not np.linalg.norm(own - base) <= MAX_DIFFERENCE * np.linalg.norm(own):
        raise UnsupportedModel(
            f"{path.name}, which the adapter is for, was not made of {source.name}: name that model's checkpoint"
        )
