"""Draft heads that ship with models: a layer behind a model's own that guesses the token after next (MTP, NextN), and
small drafters in files of their own that read another model's states (Gemma 4's assistant, EAGLE-3, DFlash).
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any, Final

from edgellm.memory.architectures import DRAFT_HEADS
from edgellm.memory.gguf import GgufArray, GgufHeader, TensorInfo
from edgellm.memory.hparams import MAX_HEADS, MAX_LAYERS, MAX_TOKENS, MAX_WIDTH, UnknownShape, of_header
from edgellm.memory.shape import ModelShape, from_header, layer_of, products

OWN_HEAD: Final = "mtp"
"""What `--draft` calls the head inside a target's file, and what plans call it."""

ASSISTANTS = {"gemma4-assistant": "gemma4"}
"""Drafters in files of their own that read the cache of the target that they were made for -> its architecture."""

_UNREAD = {"eagle3": "EAGLE-3", "dflash": "DFlash", "medusa": "Medusa"}
_WANTED = ("nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "attn_norm")


def n_head_layers(header: GgufHeader) -> int:
    """Layers behind the model's own that a file says it has; 0 where it says no such number."""
    n = header.hparam("nextn_predict_layers", 0)
    return n if type(n) is int and n > 0 else 0


def has_head(header: GgufHeader) -> bool:
    """Whether the file has a head inside that drafts here."""
    return n_head_layers(header) > 0 and why_unused(header) is None


def why_unused(header: GgufHeader) -> str | None:
    """Why a head that a file speaks of does not draft here, in a sentence; None where it does, or there is none."""
    n, name = n_head_layers(header), header.path.name
    if not n:
        return None
    if header.architecture not in DRAFT_HEADS:
        known = ", ".join(sorted(DRAFT_HEADS))
        return (
            f"{name} has a draft head (MTP) that is not used: those of {known} are, and this is {header.architecture}"
        )
    if n > 1:
        return f"{name} has {n} draft heads (MTP), one for each further token, which are not used: one alone would be"
    n_blocks, names = header.hparam("block_count", 0), {tensor.name for tensor in header.tensors}
    first = n_blocks - n if type(n_blocks) is int else -1
    missing = next((want for want in _WANTED if f"blk.{first}.{want}.weight" not in names), None)
    if missing is None:
        return None
    return (
        f"{name} says that it has a draft head (MTP), but its {missing} is not in it, so it is not used: take a file "
        "that was converted with its head"
    )


def why_none(header: GgufHeader) -> str | None:
    """Why a file cannot draft for itself, in a sentence; None where it can."""
    if has_head(header):
        return None
    name = header.path.name
    return why_unused(header) or f"{name} has no draft head inside (MTP): name a small model as the drafter, or none"


def is_head_alone(header: GgufHeader) -> bool:
    """Whether a file holds a draft head of another model and nothing else, of a kind that drafts here."""
    if header.architecture in ASSISTANTS:
        return True
    return has_head(header) and not any(layer_of(tensor) == 0 for tensor in header.tensors)


def serves(assistant: GgufHeader, target: GgufHeader) -> bool:
    """Whether an assistant's file was made for models like a target: it looks at the cache of the target's last two
    layers, one that slides and one that does not, and llama.cpp does not ask whether they are as wide as it thinks.
    """
    if ASSISTANTS.get(assistant.architecture) != target.architecture:
        return False
    slides = _each(target, "attention.sliding_window_pattern")
    if [bool(one) for one in slides[-2:]] != [True, False] or len(slides) != target.hparam("block_count"):
        return False
    if assistant.hparam("embedding_length_out") != target.hparam("embedding_length"):
        return False
    same = ("attention.key_length", "attention.key_length_swa", "attention.value_length", "attention.value_length_swa")
    if any(assistant.hparam(key) != target.hparam(key) for key in same):
        return False
    theirs, own = _each(target, "attention.head_count_kv"), _each(assistant, "attention.head_count_kv")
    kinds = _each(assistant, "attention.sliding_window_pattern")
    wanted = {True: theirs[-2:-1] or theirs, False: theirs[-1:]}
    return all(own[i % len(own)] == wanted[bool(kind)][0] for i, kind in enumerate(kinds)) if own and theirs else False


def _each(header: GgufHeader, key: str) -> list[Any]:
    """An entry's items; one item where it is one number."""
    value = header.hparam(key)
    if isinstance(value, GgufArray):
        return header.array(f"{header.architecture}.{key}")
    return [] if value is None else [value]


def describe(header: GgufHeader) -> str | None:
    """What a file has of draft heads, for people; None where it has none."""
    if has_head(header):
        return f"inside (MTP): `--draft {OWN_HEAD}`, or no --draft, drafts with it"
    if is_head_alone(header):
        return "a draft head alone: name it with --draft beside its target"
    return foreign_head(header) or why_unused(header)


def foreign_head(header: GgufHeader) -> str | None:
    """What a file is that holds a head alone, and why it is not used, in a sentence; None for any other file."""
    kind = _UNREAD.get(header.architecture)
    if kind is None:
        return None
    return (
        f"{header.path.name} is a draft head ({kind}) that reads what goes into layers inside another model: llama.cpp "
        "hands that out by no public call, so it is not used; take a small model as the drafter, or a target whose "
        "file has its head inside (MTP)"
    )


def head_shape(header: GgufHeader, target: ModelShape) -> ModelShape | None:
    """The head inside a target's file as a drafter beside it, for plans; None where it has none that drafts.

    It keeps a cache of its own layer, and reads the target's embedding and output matrix.
    """
    if not (target.known and target.attention and has_head(header)):
        return None
    mine = [tensor for tensor in header.tensors if layer_of(tensor) >= target.n_layers]
    by_end = {tensor.name.split(".", 2)[2]: tensor.n_bytes for tensor in mine}
    whole = {tensor.name: tensor.n_bytes for tensor in header.tensors}
    output = whole.get("output.weight") or whole.get("token_embd.weight", 0)
    return replace(
        target,
        name=OWN_HEAD,
        n_layers=n_head_layers(header),
        n_params=sum(prod(tensor.shape) for tensor in mine),
        attention=(replace(target.attention[0], n_layers=n_head_layers(header), window=None),),
        state_elements=0,
        weight_bytes=_aligned(mine),
        lookup_bytes=by_end.get("nextn.embed_tokens.weight", 0),
        expert_bytes=sum(n for name, n in by_end.items() if "_exps." in name),
        matrix_bytes=tuple(sorted(products(mine).items())),
        tied=None,
        n_merges=0,
        adapter_bytes=0,
        adapter_width=0,
        adapter_head_width=0,
        layer_bytes=(),
        head_of=target.name,
        shared_bytes=0 if "nextn.shared_head_head.weight" in by_end else output,
    )


def shape_of(header: GgufHeader, name: str, *, ask: bool = False) -> ModelShape:
    """`from_header`, also of an assistant, which keeps no cache of its own. Raises UnknownShape."""
    if header.architecture not in ASSISTANTS:
        return from_header(header, name, ask=ask)
    told = of_header(header)
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None or len(embedding.shape) != 2:
        raise UnknownShape(f"{header.path} has no embedding of its tokens: it is damaged")
    n_layers = told.count("block_count", least=1, most=MAX_LAYERS)
    n_heads = max(told.counts("attention.head_count", n_layers, [1], most=MAX_HEADS))
    merges = header.metadata.get("tokenizer.ggml.merges")
    return ModelShape(
        name=name,
        architecture=header.architecture,
        quantisation=header.quantisation,
        n_layers=n_layers,
        n_embd=told.count("embedding_length", least=1),
        n_heads=n_heads,
        n_vocab=embedding.shape[1],
        n_ctx_train=told.count("context_length", least=1, most=MAX_TOKENS),
        n_params=header.n_params,
        q_width=n_heads * told.count("attention.key_length", 1, least=1),
        n_ff=max(told.counts("feed_forward_length", n_layers, [0], most=MAX_WIDTH)),
        n_experts_used=0,
        attention=(),
        state_elements=0,
        weight_bytes=_aligned(list(header.tensors)),
        lookup_bytes=0,
        expert_bytes=0,
        n_experts=0,
        matrix_bytes=tuple(sorted(products(header.tensors).items())),
        tied=None,  # the target's embedding is looked up in its place
        n_merges=merges.n_items if isinstance(merges, GgufArray) else 0,
        exact=True,
    )


def _aligned(tensors: list[TensorInfo]) -> int:
    return sum(-(-tensor.n_bytes // 32) * 32 for tensor in tensors)
