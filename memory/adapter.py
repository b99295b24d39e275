"""LoRA adapters as GGUF files: what a header says of one, whether it fits a model, and what it adds to a plan.

llama.cpp applies an adapter beside its model's weights: y = W x + scale alpha / rank B (A x). A file names the tensor W
and holds `W.lora_a` and `W.lora_b`. What it would leave out without a word, or end the process for, is refused here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgellm.memory.errors import EdgellmError
from edgellm.memory.gguf import GgufHeader, TensorInfo, read_header, shown
from edgellm.memory.shape import ModelShape

_ENDINGS = (".lora_a", ".lora_b")
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_TYPES = {"F32", "F16", "BF16", "Q8_0"}  # whose products are the same however many tokens are read at once


class AdapterError(EdgellmError, ValueError):
    """An adapter that is damaged, or not for this model; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter's file and how much of it counts: 1 is as it was trained, 0 is not at all."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise AdapterError(f"{self.path.name}: a scale of {self.scale} is none; 1 is as it was trained")

    @property
    def reference(self) -> str:
        """As an option names it."""
        return f"{self.path}:{self.scale:g}"


@dataclass(frozen=True, slots=True)
class Adapter:
    """The header of an adapter's file. `pairs`: the adapted tensor's name -> A and B."""

    header: GgufHeader
    pairs: dict[str, tuple[TensorInfo, TensorInfo]]

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({_rank(name, pair) for name, pair in self.pairs.items()}))


def is_adapter(header: GgufHeader) -> bool:
    return header.metadata.get("general.type") == "adapter"


def read_adapter(path: Path) -> Adapter:
    """The header of an adapter's file, checked by itself.

    Raises:
        AdapterError: the file is no LoRA adapter, or one that cannot be applied as it was meant.
        GgufError: it is no GGUF, damaged or truncated.
        OSError: it cannot be read.
    """
    header = read_header(path)
    if not is_adapter(header):
        raise AdapterError(f"{path} is a model and no adapter: name it as the model, without --lora")
    kind = header.metadata.get("adapter.type")
    if kind != "lora":
        raise AdapterError(f"{path} is an adapter of type {shown(kind)}, and LoRA adapters alone are applied")
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise AdapterError(f"{path} is meant to work from a phrase of the text on (aLoRA), which is not done here")
    alpha = header.metadata.get("adapter.lora.alpha", 0.0)
    if type(alpha) is not float or not math.isfinite(alpha):
        raise AdapterError(f"{path} has alpha {shown(alpha)}, which is no scale: export it again")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    for name, tensor in tensors.items():
        if not name.endswith(_ENDINGS):
            raise AdapterError(f"{path} holds {shown(name)}, which llama.cpp does not apply: merge it into its model")
        if tensor.type not in _TYPES:
            raise AdapterError(
                f"{path} holds {shown(name)} as {tensor.type}: take an adapter in F16, F32, BF16 or Q8_0"
            )
        if len(tensor.shape) < 2 or min(tensor.shape) < 1:
            raise AdapterError(f"{path}: {shown(name)} is no matrix: export it again")
    pairs = {}
    for name in dict.fromkeys(name[: -len(_ENDINGS[0])] for name in tensors):
        halves = [tensors.get(name + ending) for ending in _ENDINGS]
        if halves[0] is None or halves[1] is None:
            raise AdapterError(f"{path} holds one half alone of the pair for {shown(name)}: export it again")
        pairs[name] = halves[0], halves[1]
        if _rank(name, pairs[name]) != halves[1].shape[0]:
            raise AdapterError(f"{path}: the halves for {shown(name)} are of different rank: export it again")
    if not pairs:
        raise AdapterError(f"{path} holds no tensors: it changes nothing")
    return Adapter(header, pairs)


def check_fits(adapter: Adapter, model: GgufHeader) -> None:
    """Whether llama.cpp can apply an adapter to a model.

    Raises:
        AdapterError: it is for another architecture, other tensors or other widths.
    """
    path, name = adapter.path, model.path.name
    _check_architecture(adapter, model.architecture, name)
    tensors = {tensor.name: tensor for tensor in model.tensors}
    for tensor_name, (a, b) in adapter.pairs.items():
        base = tensors.get(tensor_name)
        if base is None or len(base.shape) < 2:
            raise AdapterError(
                f"{path} adapts {shown(tensor_name)}, which {name} does not have: it is for another model"
            )
        if tensor_name == _EMBEDDING and _HEAD not in tensors:
            raise AdapterError(
                f"{path} adapts the embedding, which is the head of {name} too, where llama.cpp cannot tell them "
                "apart: `edgellm export ADAPTER --base MODEL --merge` makes one file of both"
            )
        if base.type == "NVFP4":
            raise AdapterError(f"{path} adapts {shown(tensor_name)}, which {name} holds as NVFP4: take another type")
        given = (b.shape[1], a.shape[1]) if tensor_name == _EMBEDDING else (a.shape[0], b.shape[1])
        if (*given, *a.shape[2:]) != base.shape or a.shape[2:] != b.shape[2:]:
            raise AdapterError(
                f"{path} adapts {shown(tensor_name)} as {_by(given)} where {name} has {_by(base.shape)}: it is for "
                "another model"
            )


def adapted(shape: ModelShape, loras: Sequence[Lora], model: GgufHeader | None = None) -> ModelShape:
    """The shape of a model with these adapters on.

    Args:
        model: its header, where it is here: adapters are then checked against it.

    Raises:
        AdapterError, GgufError, OSError: one of them cannot be applied.
    """
    if not loras:
        return shape
    if shape.onnx is not None:
        raise AdapterError(
            f"{shape.name} is an ONNX model, to which no adapter is applied: merge it (`edgellm export ADAPTER --base "
            "MODEL --merge`), or run the model as GGUF"
        )
    n_bytes, widths = 0, {False: 0, True: 0}
    for lora in loras:
        adapter = read_adapter(lora.path)
        if model is not None:
            check_fits(adapter, model)
        _check_architecture(adapter, shape.architecture, shape.name)
        n_bytes += adapter.header.tensor_bytes
        for name, (_, b) in adapter.pairs.items():
            widths[name == _HEAD] = max(widths[name == _HEAD], b.shape[0] + b.shape[1])
    return replace(shape, adapter_bytes=n_bytes, adapter_width=widths[False], adapter_head_width=widths[True])


def fingerprint(loras: Sequence[Lora]) -> str:
    """What tells one choice of adapters from another on this machine; "" for none."""
    return " ".join(f"{lora.path.name} {os.stat(lora.path).st_size} {lora.scale:g}" for lora in loras)


def refuse_adapter(header: GgufHeader) -> None:
    """Raises AdapterError: the file that was named as a model is an adapter."""
    if is_adapter(header):
        raise AdapterError(f"{header.path} is an adapter and no model: give it with --lora beside its base model")


def _check_architecture(adapter: Adapter, architecture: str, name: str) -> None:
    own = adapter.header.architecture
    if own != architecture:
        raise AdapterError(f"{adapter.path} is for {own or 'an unnamed architecture'} and {name} is {architecture}")


def _rank(name: str, pair: tuple[TensorInfo, TensorInfo]) -> int:
    """Of A: its rows; of an embedding's, where a row is looked up, its columns."""
    return pair[0].shape[0 if name == _EMBEDDING else 1]


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
