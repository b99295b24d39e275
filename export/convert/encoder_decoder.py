"""A T5's checkpoint as a GGUF file: metadata and tensors of an encoder and a decoder.

The embedding is one for both halves. Where transformers scales the decoder's output before the head (by the root of
its width, in models that were trained with the embedding as their head), the norm before the head takes that factor:
llama.cpp has no place for it, and without it every sampled answer would be another.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.export.convert import gguf_writer as gguf
from edgellm.export.convert.dtypes import FILE_TYPES, FloatType, converted, items
from edgellm.export.convert.gguf_writer import PlannedTensor
from edgellm.export.convert.metadata import MAX_LAYERS
from edgellm.export.read.checkpoint import READABLE, StoredTensor, read_checkpoint
from edgellm.export.read.facts import UnsupportedModel
from edgellm.export.read.families import ENCODER_DECODERS
from edgellm.export.read.gguf_vocabulary import GgufVocabulary

_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_UNUSED = re.compile(r"decoder\.block\.\d+\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight")
_IN_LAYER = re.compile(r"(encoder|decoder)\.block\.(\d{1,4})\.layer\.(\d)\.(.+)\.weight")
_NORMS = {"encoder": ("attn_norm", "ffn_norm"), "decoder": ("attn_norm", "cross_attn_norm", "ffn_norm")}
_DAMAGED = "download the rest of its shards"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a T5, by its config.json."""

    n_embd: int
    n_ff: int
    n_heads: int
    head_dim: int
    n_encoder: int  # layers
    n_decoder: int
    n_buckets: int  # of distances
    n_vocab: int
    gated: bool

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> Sizes:
        """Raises UnsupportedModel: what llama.cpp cannot run, or no model has."""
        n_encoder = int(config["num_layers"])
        sizes = cls(
            n_embd=int(config["d_model"]),
            n_ff=int(config["d_ff"]),
            n_heads=int(config["num_heads"]),
            head_dim=int(config["d_kv"]),
            n_encoder=n_encoder,
            n_decoder=int(config.get("num_decoder_layers") or n_encoder),
            n_buckets=int(config["relative_attention_num_buckets"]),
            n_vocab=int(config["vocab_size"]),
            gated=str(config["feed_forward_proj"]).startswith("gated-"),
        )
        if n_encoder > MAX_LAYERS or sizes.n_buckets % 4:
            raise UnsupportedModel(f"{folder}: config.json tells of {n_encoder} layers and {sizes.n_buckets} distances")
        if sizes.n_decoder > n_encoder:
            raise UnsupportedModel(
                f"{folder} has {sizes.n_decoder} layers in its decoder and {n_encoder} in its encoder, and llama.cpp "
                "keeps a cache for no more than those of the encoder"
            )
        return sizes


def entries_of(
    folder: Path, config: Mapping[str, Any], sizes: Sizes, vocabulary: GgufVocabulary, float_type: FloatType, name: str
) -> dict[str, bytes]:
    """The metadata entries, packed.

    Raises:
        UnsupportedModel: an answer would begin with a token that is none.
    """
    start = int(config["decoder_start_token_id"])
    if not 0 <= start < sizes.n_vocab:
        raise UnsupportedModel(f"{folder}: decoder_start_token_id {start} in config.json is no token of the model")
    numbers = {
        "vocab_size": sizes.n_vocab,
        "context_length": int(config["n_positions"]),
        "embedding_length": sizes.n_embd,
        "feed_forward_length": sizes.n_ff,
        "block_count": sizes.n_encoder,
        "decoder_block_count": sizes.n_decoder,
        "attention.head_count": sizes.n_heads,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "attention.relative_buckets_count": sizes.n_buckets,
        "decoder_start_token_id": start,
    }
    epsilon = gguf.f32(float(config["layer_norm_epsilon"]))
    return {
        "general.architecture": gguf.string("t5"),
        "general.type": gguf.string("model"),
        "general.name": gguf.string(name.encode("utf-8", "replace").decode()),
        "general.file_type": gguf.u32(FILE_TYPES[float_type]),
        **{f"t5.{key}": gguf.u32(value) for key, value in numbers.items()},
        "t5.attention.layer_norm_epsilon": epsilon,
        "t5.attention.layer_norm_rms_epsilon": epsilon,
        **vocabulary.entries(),
        "general.quantization_version": gguf.u32(2),
    }


def output_scale(config: Mapping[str, Any]) -> float:
    """What transformers multiplies the decoder's output by, before the head."""
    if config.get("model_type", "t5") == "mt5":  # whatever its configuration says
        return 1.0
    told = config["scale_decoder_outputs"]
    scales = config["tie_word_embeddings"] is not False if told is None else told
    return float(config["d_model"]) ** -0.5 if scales else 1.0


def tensors_of(folder: Path, config: Mapping[str, Any], sizes: Sizes, float_type: FloatType) -> list[PlannedTensor]:
    """What is written, in the order in which it is read when the model runs.

    Args:
        float_type: of the matrices; vectors, and the biases of attention, stay F32.

    Raises:
        UnsupportedModel: weights that do not fit the configuration.
        CheckpointError: damaged or missing files.
    """
    stored = _by_gguf_name(folder, read_checkpoint(folder))
    _settle_head(folder, config, stored)
    extents = expected(sizes)
    for name, extent in extents.items():
        if name not in stored:
            raise UnsupportedModel(f"{folder} lacks the tensor for {name}: {_DAMAGED}")
        if stored[name].shape != extent:
            raise UnsupportedModel(f"{folder}: {name} is {stored[name].shape} where config.json makes it {extent}")
    for name, tensor in stored.items():
        if name.endswith("attn_rel_b.weight") and tensor.shape != (sizes.n_buckets, sizes.n_heads):
            raise UnsupportedModel(f"{folder}: {tensor.name} is {tensor.shape}, and not as config.json makes it")
        if name not in extents and name != "output.weight" and not _is_further_bias(name, sizes):
            raise UnsupportedModel(f"{folder}: {tensor.name} is nothing that config.json tells of")
    scale = output_scale(config)
    return [
        _planned(name, stored[name], float_type, scale if name == "dec.output_norm.weight" else 1.0)
        for name in sorted(stored, key=_order)
    ]


def expected(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Extents of every tensor that must be there, outermost first."""
    width = sizes.n_heads * sizes.head_dim
    extents: dict[str, tuple[int, ...]] = {"token_embd.weight": (sizes.n_vocab, sizes.n_embd)}
    for half, n_layers in (("enc", sizes.n_encoder), ("dec", sizes.n_decoder)):
        extents[f"{half}.output_norm.weight"] = (sizes.n_embd,)
        extents[f"{half}.blk.0.attn_rel_b.weight"] = (sizes.n_buckets, sizes.n_heads)
        for layer in range(n_layers):
            at = f"{half}.blk.{layer}."
            for kind in ("attn", "cross_attn") if half == "dec" else ("attn",):
                extents[f"{at}{kind}_norm.weight"] = (sizes.n_embd,)
                extents |= {f"{at}{kind}_{name}.weight": (width, sizes.n_embd) for name in "qkv"}
                extents[f"{at}{kind}_o.weight"] = (sizes.n_embd, width)
            extents[f"{at}ffn_norm.weight"] = (sizes.n_embd,)
            for name in ("ffn_gate", "ffn_up") if sizes.gated else ("ffn_up",):
                extents[f"{at}{name}.weight"] = (sizes.n_ff, sizes.n_embd)
            extents[f"{at}ffn_down.weight"] = (sizes.n_embd, sizes.n_ff)
    return extents


def _is_further_bias(name: str, sizes: Sizes) -> bool:
    """Of a layer behind the first, where each has its own (umT5)."""
    match = re.fullmatch(r"(enc|dec)\.blk\.(\d+)\.attn_rel_b\.weight", name)
    return match is not None and int(match[2]) < (sizes.n_encoder if match[1] == "enc" else sizes.n_decoder)


def gguf_name(name: str) -> str | None:
    """The GGUF name of a Hub tensor; None for one that no T5 has."""
    ends = {"lm_head.weight": "output.weight", "encoder.final_layer_norm.weight": "enc.output_norm.weight",
            "decoder.final_layer_norm.weight": "dec.output_norm.weight"}  # fmt: skip
    if name in ends:
        return ends[name]
    match = _IN_LAYER.fullmatch(name)
    if match is None:
        return None
    half, place, module = match[1], int(match[3]), match[4]
    norms = _NORMS[half]
    if place >= len(norms):
        return None
    part = norms[place] if module == "layer_norm" else ENCODER_DECODERS["T5ForConditionalGeneration"].layer.get(module)
    return f"{half[:3]}.blk.{int(match[2])}.{part}.weight" if part is not None else None


def _by_gguf_name(folder: Path, checkpoint: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for name, tensor in checkpoint.items():
        if _UNUSED.fullmatch(name):
            continue
        new_name = "token_embd.weight" if name in _EMBEDDINGS else gguf_name(name)
        if new_name is None:
            raise UnsupportedModel(f"{folder} has a tensor {name!r} that t5 has no place for")
        if tensor.type not in READABLE:
            raise UnsupportedModel(
                f"{folder}: {name!r} is stored as {tensor.type}, and weights of {', '.join(READABLE)} are exported: "
                "take the model that it was made from"
            )
        known = stored.get(new_name)
        if known is not None and not (new_name == "token_embd.weight" and _same(known, tensor)):
            raise UnsupportedModel(f"{folder} has {name!r} and {known.name!r}, which are not the same tensor")
        stored[new_name] = known or tensor
    return stored


def _settle_head(folder: Path, config: Mapping[str, Any], stored: dict[str, StoredTensor]) -> None:
    """Leave the head out where the embedding serves as one."""
    head, embedding = stored.get("output.weight"), stored.get("token_embd.weight")
    if head is None:
        if config["tie_word_embeddings"] is False and config.get("model_type") == "t5":
            raise UnsupportedModel(
                f"{folder} lacks lm_head.weight, and config.json says that the embedding is no head "
                f"(tie_word_embeddings): {_DAMAGED}"
            )
        return
    if embedding is not None and head.shape != embedding.shape:
        raise UnsupportedModel(f"{folder}: lm_head.weight is {head.shape} where the embedding is {embedding.shape}")
    if embedding is not None and _same(head, embedding):
        del stored["output.weight"]


def _same(left: StoredTensor, right: StoredTensor) -> bool:
    return (
        left.type == right.type and left.shape == right.shape and all(map(operator.eq, left.chunks(), right.chunks()))
    )


def _order(name: str) -> tuple[int, int, str]:
    """Embedding, encoder, decoder, head."""
    if name == "token_embd.weight":
        return (0, 0, name)
    match = re.match(r"(enc|dec)\.blk\.(\d+)\.", name)
    half = 3 if name == "output.weight" else 1 + name.startswith("dec.")
    return (half, int(match[2]) if match else MAX_LAYERS, name)


def _planned(name: str, stored: StoredTensor, float_type: FloatType, scale: float) -> PlannedTensor:
    type_name = "F32" if len(stored.shape) == 1 or name.endswith("attn_rel_b.weight") else float_type

    def chunks() -> Iterator[bytes]:
        for chunk in stored.chunks():
            data = converted(items(chunk, stored), stored, type_name, plus=0.0)
            yield (np.frombuffer(data, "<f4") * np.float32(scale)).tobytes() if scale != 1.0 else data

    return PlannedTensor(name, tuple(reversed(stored.shape)), type_name, chunks)
