"""A PEFT folder's LoRA, tensor by tensor, each in its place among its base's and of the shape that it has there."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.export.convert.metadata import Shape, damage_told
from edgellm.export.convert.tensors import PICTURES, expected, gguf_name
from edgellm.export.lora.lora_facts import LoraFacts, read_facts
from edgellm.export.read.checkpoint import READABLE, StoredTensor, read_weights
from edgellm.export.read.facts import UnsupportedModel, read_config
from edgellm.export.read.families import FAMILIES, Family
from edgellm.memory.adapter import refuse_adapter
from edgellm.memory.gguf import GgufHeader
from edgellm.memory.split import read_model

Floats = NDArray[np.float32]
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
_PREFIX = "base_model.model."
_MLX = "adapters.safetensors"


@dataclass(frozen=True, slots=True)
class Base:
    """What of a base model an adapter must fit. Extents as in torch, outermost first."""

    name: str
    family: Family
    extents: Mapping[str, tuple[int, ...]]
    n_heads: int
    n_kv_heads: int
    tied: bool  # the embedding is the head too

    @property
    def arch(self) -> str:
        return self.family.arch


def read_base(path: Path, name: str) -> Base:
    """The base's shapes, from a Hub folder's config.json or a GGUF file's header.

    Raises:
        UnsupportedModel: a family whose tensors are not known here.
        GgufError: a damaged file.
    """
    if path.is_file():
        return _base_of_header(read_model(path), name)
    with damage_told(path):
        family, config = read_config(path, weights=False)
        shape = Shape.of(config)
        extents, tied = expected(family, config, shape), bool(config["tie_word_embeddings"])
        if not tied:
            extents[HEAD] = extents[EMBEDDING]
        return Base(name, family, extents, shape.n_heads, shape.n_kv_heads, tied)


def _base_of_header(header: GgufHeader, name: str) -> Base:
    refuse_adapter(header)
    family = next((family for family in FAMILIES.values() if family.arch == header.architecture), None)
    if family is None:
        known = ", ".join(sorted({family.arch for family in FAMILIES.values()}))
        raise UnsupportedModel(
            f"{header.path} is a model of architecture {header.architecture!r}, for which no adapter is exported here: "
            f"those of {known} are"
        )
    extents = {tensor.name: tuple(reversed(tensor.shape)) for tensor in header.tensors}
    heads = [header.hparam(f"attention.{key}") for key in ("head_count", "head_count_kv")]
    if not all(type(n) is int and n > 0 for n in heads):
        raise UnsupportedModel(f"{header.path} does not say how many heads it has: take another file of the base model")
    return Base(name, family, extents, heads[0], heads[1], HEAD not in extents)


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices that change one: W + scale B A."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    magnitude: StoredTensor | None = None  # DoRA: lengths of the rows of the sum

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's tensors by the GGUF name of what they change."""

    facts: LoraFacts
    pairs: dict[str, Pair] = field(default_factory=dict)
    whole: dict[str, StoredTensor] = field(default_factory=dict)  # trained, and saved as they are
    frozen: dict[str, StoredTensor] = field(default_factory=dict)  # the base's own, saved beside


def read_adapter(folder: Path, base: Base) -> Adapter:
    """Every tensor of a PEFT folder, each in its place and of the shape that its base makes it.

    Raises:
        UnsupportedModel: a variant that is not exported, or tensors that do not fit the base or the configuration.
        CheckpointError: damaged or missing files.
    """
    facts = read_facts(folder)
    adapter, halves = Adapter(facts), _sorted(folder, base, read_weights(weights_of(folder)))
    for (name, module), parts in halves.pairs.items():
        for half in "AB":
            if half not in parts:
                raise UnsupportedModel(f"{folder}: {module} has no lora_{half}: download the adapter again")
        pair = Pair(parts["A"], parts["B"], facts.scale_of(module), parts.get("m"))
        _check_pair(folder, base, facts, name, module, pair)
        if name in adapter.pairs:
            raise UnsupportedModel(f"{folder} adapts {module} twice, by two names")
        adapter.pairs[name] = pair
    for kept, found in ((adapter.whole, halves.whole), (adapter.frozen, halves.frozen)):
        for name, tensor in found.items():
            expected = base.extents.get(name) or (base.extents[EMBEDDING] if name == HEAD else None)
            if tensor.shape != expected:
                raise UnsupportedModel(
                    f"{folder}: {tensor.name} is {_by(tensor.shape)} where {base.name} has "
                    f"{_by(expected) if expected else 'no such tensor'}: its vocabulary was resized, or it is for "
                    "another model"
                )
            kept[name] = tensor
    if not adapter.pairs and not adapter.whole:
        raise UnsupportedModel(f"{folder} holds no tensors that change anything")
    _check_none_missing(folder, base, adapter)
    if facts.tying and {EMBEDDING, HEAD} & {*adapter.pairs, *adapter.whole}:
        raise UnsupportedModel(
            f"{folder} adapts the embedding and the head as one (ensure_weight_tying), which is not done here: merge "
            "it with PEFT (merge_and_unload) and export the result"
        )
    return adapter


def weights_of(folder: Path) -> Path:
    """Raises UnsupportedModel: the folder has none, or another program's."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    if (folder / _MLX).is_file():
        raise UnsupportedModel(f"{folder} holds an adapter of MLX ({_MLX}): let mlx_lm.fuse merge it, then export")
    raise UnsupportedModel(f"{folder} lacks {WEIGHTS[0]}: download the rest of the adapter")


@dataclass(frozen=True, slots=True)
class _Halves:
    pairs: dict[tuple[str, str], dict[str, StoredTensor]] = field(default_factory=dict)  # (GGUF name, module) -> A, B
    whole: dict[str, StoredTensor] = field(default_factory=dict)
    frozen: dict[str, StoredTensor] = field(default_factory=dict)


_HALF = re.compile(r"(?P<module>.+)\.lora_(?:(?P<half>[AB])\.weight|embedding_(?P<of_rows>[AB]))")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.weight)?")
_FROZEN = re.compile(r"(?P<module>.+)\.base_layer\.weight")
_WHOLE = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.(?P<kind>weight|bias)")


def _sorted(folder: Path, base: Base, tensors: Mapping[str, StoredTensor]) -> _Halves:
    found = _Halves()
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(_PREFIX)
        if PICTURES.search(name) and base.arch == "gemma3":
            continue  # of what sees, which is not exported
        if tensor.type not in READABLE:
            raise UnsupportedModel(f"{folder}: {full_name} is stored as {tensor.type}: save it as F32, F16 or BF16")
        if name == full_name:
            raise UnsupportedModel(f"{folder} has a tensor {full_name!r}, which PEFT would not look at")
        if match := _HALF.fullmatch(name):
            key = _place(folder, base, full_name, match["module"]), match["module"]
            found.pairs.setdefault(key, {})[match["half"] or match["of_rows"]] = tensor
        elif match := _MAGNITUDE.fullmatch(name):
            key = _place(folder, base, full_name, match["module"]), match["module"]
            found.pairs.setdefault(key, {})["m"] = tensor
        elif match := _FROZEN.fullmatch(name):
            found.frozen[_place(folder, base, full_name, match["module"])] = tensor
        elif ".lora_" not in name and "token_adapter" not in name and (match := _WHOLE.fullmatch(name)):
            found.whole[_place(folder, base, full_name, match["module"], match["kind"])] = tensor
        else:
            raise UnsupportedModel(f"{folder} has a tensor {full_name!r} that no LoRA is known to have")
    return found


def _place(folder: Path, base: Base, full_name: str, module: str, kind: str = "weight") -> str:
    name = gguf_name(f"{module}.{kind}", base.family)
    if name is None or (name not in base.extents and name != HEAD):
        why = f"{base.name} has no place for" if name is None else f"is not in {base.name}: it has no {name}"
        tail = f"{full_name!r} {why}" if name is not None else f"a tensor {full_name!r} that {why}"
        raise UnsupportedModel(f"{folder} has {tail}: it is for another model")
    return name


def _check_pair(folder: Path, base: Base, facts: LoraFacts, name: str, module: str, pair: Pair) -> None:
    rows, columns = base.extents.get(name) or base.extents[EMBEDDING]
    if len(pair.a.shape) != 2 or len(pair.b.shape) != 2 or pair.a.shape[0] != pair.b.shape[1]:
        raise UnsupportedModel(
            f"{folder}: the halves for {module} are {_by(pair.a.shape)} and {_by(pair.b.shape)}, which do not "
            "multiply: download the adapter again"
        )
    given = (pair.b.shape[0], pair.a.shape[1])
    if given != ((columns, rows) if name == EMBEDDING else (rows, columns)):
        raise UnsupportedModel(
            f"{folder} adapts {module} as {_by(given)} where {base.name} has {_by((rows, columns))}: it is for "
            "another model"
        )
    if pair.rank != facts.rank_of(module):
        raise UnsupportedModel(
            f"{folder}: {module} has rank {pair.rank} where adapter_config.json says {facts.rank_of(module)}: its "
            "files are of different versions"
        )
    if facts.takes(module) is False:
        raise UnsupportedModel(
            f"{folder} has tensors for {module}, which adapter_config.json does not name (target_modules): its files "
            "are of different versions"
        )
    if (pair.magnitude is not None) != facts.dora:
        raise UnsupportedModel(
            f"{folder}: {module} {'lacks its' if facts.dora else 'has a'} magnitude vector (DoRA), which is not what "
            "adapter_config.json says: download the adapter again"
        )
    if pair.magnitude is not None and (name == EMBEDDING or math.prod(pair.magnitude.shape) != rows):
        raise UnsupportedModel(f"{folder}: the magnitudes for {module} ({_by(pair.magnitude.shape)}) are not exported")


def _check_none_missing(folder: Path, base: Base, adapter: Adapter) -> None:
    """Every module that the configuration names must have its tensors, in the layers that it names."""
    facts = adapter.facts
    there = set(adapter.pairs)
    for name in base.extents:
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        hub = next((hub for hub, part in base.family.layer.items() if match and part == match[2]), None)
        if match is None or hub is None or len(base.extents[name]) != 2 or name in there:
            continue
        module = f"model.layers.{match[1]}.{hub}"
        if facts.takes(module):
            raise UnsupportedModel(
                f"{folder} lacks the tensors for {module}, which adapter_config.json names (target_modules): download "
                "the rest of the adapter"
            )
    for name in (name for name in base.extents if name.endswith(".bias") and facts.bias != "none"):
        trains = facts.bias == "all" or f"{name.removesuffix('.bias')}.weight" in adapter.pairs
        if trains and name not in adapter.whole:
            raise UnsupportedModel(f"{folder} lacks {name}, which was trained (bias {facts.bias!r})")
    trained = {hub for hub in facts.whole if hub.rpartition(".")[2] in {"embed_tokens", "lm_head"}}
    for module in trained:
        name = EMBEDDING if module.endswith("embed_tokens") else HEAD
        if name not in adapter.whole:
            raise UnsupportedModel(f"{folder} lacks {module}, which was trained whole (modules_to_save)")


def read_floats(tensor: StoredTensor) -> Floats:
    """All of a tensor in float32.

    Raises:
        UnsupportedModel: it holds NaN or infinity.
    """
    floats = floats_of(tensor.read(), tensor).reshape(tensor.shape)
    if not np.isfinite(floats).all():
        raise UnsupportedModel(
            f"{tensor.path}: {tensor.name} holds NaN or infinite numbers: the adapter is damaged, download it again"
        )
    return floats


def floats_of(data: bytes, tensor: StoredTensor) -> Floats:
    if tensor.type == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if tensor.type == "F32" else "<f2").astype(np.float32)


def _by(shape: tuple[int, ...] | Any) -> str:
    return " x ".join(map(str, shape))
