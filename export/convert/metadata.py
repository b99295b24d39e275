"""The metadata of a checkpoint's GGUF file: llama.cpp's keys, and refusals of what it would compute otherwise."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.export.convert import gguf_writer as gguf
from edgellm.export.convert.dtypes import FILE_TYPES, FloatType
from edgellm.export.read.facts import UnsupportedModel
from edgellm.export.read.families import Family
from edgellm.export.read.gguf_vocabulary import GgufVocabulary
from edgellm.export.read.rope import Rope, rope_entries
from edgellm.export.read.tokenizer_facts import TokenizerError

MAX_LAYERS = 1024
_NO_CAP = 65_536.0  # cap * tanh(x / cap) is x to a millionth for any x up to a hundred


@dataclass(frozen=True, slots=True)
class Shape:
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        n_heads = int(config["num_attention_heads"])
        shape = cls(
            n_layers=int(config["num_hidden_layers"]),
            n_embd=int(config["hidden_size"]),
            n_ff=int(config["intermediate_size"]),
            n_heads=n_heads,
            n_kv_heads=int(config.get("num_key_value_heads") or n_heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // n_heads),
            n_vocab=int(config["vocab_size"]),
        )
        if shape.n_layers > MAX_LAYERS or min(shape.n_embd, shape.n_heads, shape.n_kv_heads, shape.head_dim) < 1:
            raise ValueError(f"{shape}")
        return shape


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a Hub folder says of its model, accounted for key by key."""

    folder: Path
    family: Family
    config: Mapping[str, Any]
    shape: Shape


@contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """A value of another kind than expected, or none at all, fails in any way there is."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, ZeroDivisionError, struct.error) as error:
        if isinstance(error, (UnsupportedModel, TokenizerError)):
            raise
        raise UnsupportedModel(f"{folder}: config.json is incomplete or damaged ({error!r})") from error


def entries_of(
    settings: ModelSettings,
    rope: Rope,
    vocabulary: GgufVocabulary,
    *,
    float_type: FloatType,
    name: str,
    window: int | None,
) -> dict[str, bytes]:
    """The metadata entries, packed.

    Args:
        float_type: of the file's matrices.
        name: the model's own, kept in the file.
        window: tokens that the file's context is capped to, where llama.cpp computes no window.

    Raises:
        UnsupportedModel: llama.cpp would compute another model.
    """
    family, config, shape = settings.family, settings.config, settings.shape
    arch = family.arch
    # Where a layer looks back less far than llama.cpp lets it, the model is itself up to there.
    n_context = window or int(config["max_position_embeddings"])
    entries = {
        "general.architecture": gguf.string(arch),
        "general.type": gguf.string("model"),
        "general.name": gguf.string(_telling_name(name, vocabulary)),
        "general.file_type": gguf.u32(FILE_TYPES[float_type]),
        f"{arch}.vocab_size": gguf.u32(shape.n_vocab),
        f"{arch}.context_length": gguf.u32(n_context),
        f"{arch}.embedding_length": gguf.u32(shape.n_embd),
        f"{arch}.block_count": gguf.u32(shape.n_layers),
        f"{arch}.feed_forward_length": gguf.u32(shape.n_ff),
        f"{arch}.attention.head_count": gguf.u32(shape.n_heads),
        f"{arch}.attention.head_count_kv": gguf.u32(shape.n_kv_heads),
        f"{arch}.attention.layer_norm_rms_epsilon": gguf.f32(float(config["rms_norm_eps"])),
        f"{arch}.attention.key_length": gguf.u32(shape.head_dim),
        f"{arch}.attention.value_length": gguf.u32(shape.head_dim),
    }
    entries |= rope_entries(arch, config, rope)
    if family.gemma:
        entries |= _gemma_entries(settings)
    if arch == "phi3":
        entries["phi3.attention.sliding_window"] = gguf.u32(0)  # it computes none, whatever is said here
    return entries | vocabulary.entries() | {"general.quantization_version": gguf.u32(2)}


def _telling_name(name: str, vocabulary: GgufVocabulary) -> str:
    """The model's name as llama.cpp must find it: control tokens swallow spaces where it says Phi-3 and only there,
    and a name that says so without Phi-3's tokens does not load.
    """
    name = name.encode("utf-8", "replace").decode()  # a folder's name may be none
    if not vocabulary.strips_right:
        return re.sub("(phi)-?3", r"\1 3", name, flags=re.IGNORECASE)
    return name if re.search("phi-?3", name, re.IGNORECASE) else f"{name} (phi-3 tokenizer)"


def _gemma_entries(settings: ModelSettings) -> dict[str, bytes]:
    folder, arch, config, shape = settings.folder, settings.family.arch, settings.config, settings.shape
    # llama.cpp takes the scale from the number of layers: the 27B models divide by the width of a head, all others by
    # head_dim.
    is_27b = shape.n_layers == {"gemma2": 46, "gemma3": 62}[arch]
    expected = shape.n_embd // shape.n_heads if is_27b else shape.head_dim
    if config["query_pre_attn_scalar"] != expected:
        raise UnsupportedModel(
            f"{folder} scales its queries by {config['query_pre_attn_scalar']} where llama.cpp would by {expected}"
        )
    if not config["sliding_window"]:
        raise UnsupportedModel(f"{folder} says no sliding_window, which every {arch} has")
    period = {"gemma2": 2, "gemma3": 6}[arch]
    told = int(config.get("sliding_window_pattern") or period)
    kinds = config["layer_types"] or [
        "full_attention" if (layer + 1) % told == 0 else "sliding_attention" for layer in range(shape.n_layers)
    ]
    expected_kinds = [
        "full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in range(shape.n_layers)
    ]
    kinds = kinds[: shape.n_layers]
    if strange := set(kinds) - {"full_attention", "sliding_attention"}:
        raise UnsupportedModel(f"{folder} has layers of the kind {sorted(strange)[0]!r} (layer_types), unlike {arch}")
    if len(kinds) < shape.n_layers:
        raise UnsupportedModel(f"{folder}: layer_types in config.json tells of {len(kinds)} of {shape.n_layers} layers")
    window = int(config["sliding_window"])
    if "sliding_attention" not in kinds:  # llama.cpp's gemma2 has such layers, and one that reaches everywhere is none
        window, kinds = (0 if arch == "gemma3" else int(config["max_position_embeddings"])), expected_kinds
    entries = {f"{arch}.attention.sliding_window": gguf.u32(window)}
    if kinds != expected_kinds:
        entries[f"{arch}.attention.sliding_window_pattern"] = gguf.i32s([kind == "sliding_attention" for kind in kinds])
    # transformers' Gemma 3 has a cap of the scores in its configuration and computes none, as llama.cpp.
    for key in ("final_logit_softcapping", *(("attn_logit_softcapping",) if arch == "gemma2" else ())):
        if config[key]:
            entries[f"{arch}.{key}"] = gguf.f32(float(config[key]))
        elif arch == "gemma2":  # it always computes one
            entries[f"{arch}.{key}"] = gguf.f32(_NO_CAP)
    return entries
