"""A checkpoint's tensors as a GGUF file's: their names, extents and order, and what is done to each on the way.

Two things are done at all. Llama's query and key rows change places, since the Hub keeps the halves of a head apart
that llama.cpp rotates as pairs. Gemma's norms gain the 1 that its authors leave out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from edgellm.export.convert.dtypes import FloatType, converted, items, paired
from edgellm.export.convert.gguf_writer import PlannedTensor
from edgellm.export.convert.metadata import MAX_LAYERS, ModelSettings, Shape
from edgellm.export.read.checkpoint import READABLE, StoredTensor, read_checkpoint
from edgellm.export.read.facts import UnsupportedModel
from edgellm.export.read.families import Family

Adapt = Callable[[dict[str, StoredTensor]], dict[str, StoredTensor]]  # by GGUF name: the tensors to write of these

# Hub prefixes of the text model, the commonest first; multimodal checkpoints bury it.
_PREFIXES = ("model.language_model.", "language_model.model.", "model.")
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$")  # computed from the configuration
PICTURES = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.")  # what sees, beside Gemma 3's text model


def gguf_name(name: str, family: Family) -> str | None:
    """The GGUF name of a Hub tensor; None for one that the family does not know."""
    if name.removeprefix("language_model.") == "lm_head.weight":
        return "output.weight"
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    if name in {"embed_tokens.weight", "norm.weight"}:
        return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
    match = re.fullmatch(r"layers\.(\d{1,4})\.(.+)\.(weight|bias)", name)
    if match is None or match[2] not in family.layer:
        return None
    return f"blk.{int(match[1])}.{family.layer[match[2]]}.{match[3]}"


def tensors_of(settings: ModelSettings, float_type: FloatType, adapt: Adapt | None) -> list[PlannedTensor]:
    """What is written, in the order in which it is read when the model runs.

    Args:
        float_type: of the matrices; vectors stay F32.

    Raises:
        UnsupportedModel: weights that do not fit the configuration.
        CheckpointError: damaged or missing files.
    """
    folder, family, shape = settings.folder, settings.family, settings.shape
    stored: dict[str, StoredTensor] = {}
    for name, tensor in read_checkpoint(folder).items():
        if _BUFFERS.search(name) or (family.arch == "gemma3" and PICTURES.search(name)):
            continue
        new_name = gguf_name(name, family)
        if new_name is None:
            raise UnsupportedModel(f"{folder} has a tensor {name!r} that {family.arch} has no place for")
        if new_name in stored:
            raise UnsupportedModel(f"{folder} has {name!r} and {stored[new_name].name!r}, which are the same tensor")
        if tensor.type not in READABLE:
            raise UnsupportedModel(
                f"{folder}: {name!r} is stored as {tensor.type}, and weights of {', '.join(READABLE)} are exported: "
                "take the model that it was made from"
            )
        stored[new_name] = tensor
    stored = adapt(stored) if adapt is not None else stored
    _settle_head(settings, stored)
    extents = expected(family, settings.config, shape)
    for name, extent in extents.items():
        if name not in stored:
            raise UnsupportedModel(f"{folder} lacks the tensor for {name}: download the rest of its shards")
        if stored[name].shape != extent:
            raise UnsupportedModel(f"{folder}: {name} is {stored[name].shape} where config.json makes it {extent}")
    for name, tensor in stored.items():
        if name not in extents and name != "output.weight":
            layer = re.match(r"blk\.(\d+)", name)
            beyond = layer is not None and int(layer[1]) >= shape.n_layers
            why = "is beyond the layers that config.json tells of" if beyond else "is nothing that config.json tells of"
            raise UnsupportedModel(f"{folder}: {tensor.name} {why}")
    return [_planned(name, stored[name], family, shape, float_type) for name in sorted(stored, key=order)]


def _settle_head(settings: ModelSettings, stored: dict[str, StoredTensor]) -> None:
    """Leave the head out where the embedding serves as one; a head of its own counts, whatever config.json says."""
    folder, arch = settings.folder, settings.family.arch
    head, embedding = stored.get("output.weight"), stored.get("token_embd.weight")
    tied = bool(settings.config["tie_word_embeddings"])
    if head is None and not tied:
        raise UnsupportedModel(
            f"{folder} lacks lm_head.weight, and config.json does not say that the embedding serves as the head "
            "(tie_word_embeddings): download the rest of its shards"
        )
    if head is None or embedding is None:
        return
    if head.shape != embedding.shape:
        raise UnsupportedModel(f"{folder}: lm_head.weight is {head.shape} where the embedding is {embedding.shape}")
    if (tied or arch == "gemma2") and _same(head, embedding):
        del stored["output.weight"]
    elif arch == "gemma2":
        raise UnsupportedModel(f"{folder} has a head of its own (lm_head.weight), for which gemma2 has no place")


def _same(left: StoredTensor, right: StoredTensor) -> bool:
    return left.type == right.type and all(map(operator.eq, left.chunks(), right.chunks()))


def expected(family: Family, config: Mapping[str, Any], shape: Shape) -> dict[str, tuple[int, ...]]:
    """Extents of every tensor that must be there, outermost first."""
    n_q, n_kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    known: dict[str, tuple[int, ...]] = {
        "attn_q": (n_q, shape.n_embd),
        "attn_k": (n_kv, shape.n_embd),
        "attn_v": (n_kv, shape.n_embd),
        "attn_qkv": (n_q + 2 * n_kv, shape.n_embd),
        "attn_output": (shape.n_embd, n_q),
        "attn_q_norm": (shape.head_dim,),
        "attn_k_norm": (shape.head_dim,),
        "ffn_gate": (shape.n_ff, shape.n_embd),
        "ffn_up": (shape.n_ff * (2 if "attn_qkv" in family.layer.values() else 1), shape.n_embd),
        "ffn_down": (shape.n_embd, shape.n_ff),
    }
    extents: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.n_vocab, shape.n_embd),
        "output_norm.weight": (shape.n_embd,),
    }
    biased = family.bias_parts(config)
    for layer in range(shape.n_layers):
        for part in family.layer.values():
            extents[f"blk.{layer}.{part}.weight"] = known.get(part, (shape.n_embd,))
        for part in biased:
            extents[f"blk.{layer}.{part}.bias"] = known[part][:1]
    return extents


def order(name: str) -> tuple[int, str]:
    """Embedding, blocks, head: the order in which they are read when the model runs."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]), name) if match else (-1 if name.startswith("token_embd") else MAX_LAYERS, name)


def _planned(name: str, stored: StoredTensor, family: Family, shape: Shape, float_type: FloatType) -> PlannedTensor:
    type_name = "F32" if len(stored.shape) == 1 else float_type
    permute = re.search(r"attn_([qk])\.", name) if family.permute else None

    def chunks() -> Iterator[bytes]:
        if permute:
            n_heads = shape.n_heads if permute[1] == "q" else shape.n_kv_heads
            yield converted(paired(items(stored.read(), stored), n_heads, stored.shape[0]), stored, type_name, plus=0.0)
            return
        plus = 1.0 if family.gemma and name.endswith("norm.weight") else 0.0
        for chunk in stored.chunks():
            yield converted(items(chunk, stored), stored, type_name, plus=plus)

    return PlannedTensor(name, tuple(reversed(stored.shape)), type_name, chunks)


def vector(name: str, values: list[float]) -> PlannedTensor:
    return PlannedTensor(name, (len(values),), "F32", lambda: iter([np.asarray(values, "<f4").tobytes()]))
