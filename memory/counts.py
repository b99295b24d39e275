"""The shape of a model of which only counts are known: from the catalogue, or from a checkpoint's config.json."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgellm.memory import hparams, mixtures
from edgellm.memory.architectures import HYBRID, MODEL_TYPES, PLAIN, WINDOWS, is_known, slides
from edgellm.memory.cache_layers import AttentionLayers
from edgellm.memory.gguf import TYPE_IDS, shown
from edgellm.memory.hparams import MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_TOKENS, MAX_VOCABULARY
from edgellm.memory.mixtures import Geometry
from edgellm.memory.shape import ModelShape, UnknownShape, unknown

# A file within this of the rules' sum was made by them; what lies between is how long its header was taken for.
SAME_SIZE, SAME_HEADER_BYTES = 0.01, 30  # of the weights, and a token of the vocabulary


@dataclass(frozen=True, slots=True)
class Counts:
    """What is known of a model before any file of it is here."""

    architecture: str  # as GGUF names it
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_embd: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int  # tokens
    n_params: int | None = None
    window: int | None = None  # tokens that a sliding-window layer attends to
    n_experts: int = 0
    n_experts_used: int = 0
    tied: bool | None = None  # the output matrix is the embedding
    n_merges: int | None = None  # of a byte-pair tokenizer
    n_attending: int = 0  # layers that keep keys and values, where others keep a state; 0: all
    state_elements: int = 0  # float32 of recurrent state, all layers

    def merges(self) -> int:
        """As many as tokens where nobody says."""
        if self.n_merges is not None:
            return self.n_merges
        return 0 if self.architecture.startswith("gemma") else self.n_vocab


def from_config(config: Mapping[str, Any], quantisation: str, name: str, *, n_params: int | None = None) -> ModelShape:
    """The shape that a checkpoint will have once exported at `quantisation`, from its config.json.

    Raises:
        UnknownShape: a `model_type` or a quantisation that is not known, or a size that is missing or no number.
    """
    model_type = config.get("model_type")
    architecture = MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        if model_type is None:
            raise UnknownShape(f"config.json of {name} states no model_type: is it a language model's?")
        raise UnknownShape(
            f"{name}: the cache of model type {shown(model_type)} is not known; "
            "plan from a GGUF file of it, with --probe"
        )
    told = hparams.of_config({key: value for key, value in config.items() if value is not None}, name)
    n_heads = told.count("num_attention_heads", least=1, most=MAX_HEADS)
    n_embd = told.count("hidden_size", least=1)
    dense = "intermediate_size" if "moe_intermediate_size" not in config else "moe_intermediate_size"
    n_experts = told.count("num_experts", told.count("num_local_experts", 0, most=MAX_EXPERTS), most=MAX_EXPERTS)
    counts = Counts(
        architecture=architecture,
        n_layers=told.count("num_hidden_layers", least=1, most=MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=told.count("num_key_value_heads", n_heads, least=1, most=MAX_HEADS),
        head_dim=told.count("head_dim", max(n_embd // n_heads, 1), least=1),
        n_embd=n_embd,
        n_ff=told.count(dense, least=1),
        n_vocab=told.count("vocab_size", least=1, most=MAX_VOCABULARY),
        n_ctx_train=told.count("max_position_embeddings", 4096, least=1, most=MAX_TOKENS),
        n_params=n_params,
        window=told.count("sliding_window", 0, most=MAX_TOKENS) if architecture in WINDOWS else None,
        n_experts=n_experts,
        n_experts_used=told.count("num_experts_per_tok", 0, most=n_experts) if n_experts else 0,
        tied=bool(config.get("tie_word_embeddings", architecture.startswith("gemma"))),
    )
    return from_counts(name, quantisation, counts)


def from_counts(name: str, quantisation: str, counts: Counts, *, weight_bytes: int | None = None) -> ModelShape:
    """The shape of a model of which only counts are known; the types of its matrices are those llama.cpp would choose.

    Args:
        weight_bytes: of a file that is known: it also tells whether the file has an output matrix of its own, since
            some do for a model whose embedding would serve.

    Raises:
        UnknownShape: an architecture or quantisation that is not known, or a cache that counts do not tell.
    """
    architecture, quantisation = counts.architecture, quantisation.upper()
    if not is_known(architecture):
        raise unknown(architecture)
    is_hybrid = architecture in HYBRID
    by_bytes = counts.state_elements > 0 if is_hybrid else quantisation in TYPE_IDS.keys() - mixtures.BASE_TYPES.keys()
    if by_bytes and weight_bytes and counts.n_params:
        return _of_file(name, quantisation, counts, weight_bytes)
    if (architecture not in PLAIN and architecture not in WINDOWS) or is_hybrid:
        raise UnknownShape(f"{name}: counts do not tell the cache of {architecture!r}; pull the file and plan from it")
    if quantisation not in mixtures.BASE_TYPES:
        known = ", ".join(mixtures.BASE_TYPES)
        raise UnknownShape(f"{name}: quantisation {shown(quantisation)} is not known; known are {known}")
    geometry, scale = _fitted(counts, quantisation, weight_bytes)
    sizes = _sizes(geometry, quantisation)
    return ModelShape(
        name=name,
        architecture=architecture,
        quantisation=quantisation,
        n_layers=counts.n_layers,
        n_embd=counts.n_embd,
        n_heads=counts.n_heads,
        n_vocab=counts.n_vocab,
        n_ctx_train=counts.n_ctx_train,
        n_params=sizes.n_params,
        q_width=geometry.q_width,
        n_ff=counts.n_ff,
        n_experts_used=counts.n_experts_used if counts.n_experts else 0,
        attention=_attention(architecture, counts.n_layers, geometry.kv_width, counts.head_dim, counts.window),
        state_elements=0,
        weight_bytes=int(sizes.n_bytes * scale),
        lookup_bytes=0 if geometry.tied else int(sizes.embedding[1] * scale),
        expert_bytes=int(sizes.expert_bytes * scale),
        n_experts=counts.n_experts,
        matrix_bytes=tuple((kind, int(n_bytes * scale)) for kind, n_bytes in sizes.products),
        tied=(sizes.embedding[0], int(sizes.embedding[1] * scale)) if geometry.tied else None,
        n_merges=counts.merges(),
        exact=False,
    )


def _of_file(name: str, quantisation: str, counts: Counts, weight_bytes: int) -> ModelShape:
    """The shape of a file of which bytes and counts are known, its matrices' types not: each weight takes as much."""
    assert counts.n_params is not None
    base = mixtures.BASE_TYPES.get(quantisation, quantisation)
    embedding_bytes = int(counts.n_vocab * counts.n_embd * weight_bytes / counts.n_params)
    n_expert_weights = 3 * counts.n_embd * counts.n_ff * counts.n_experts * counts.n_layers
    n_attending = counts.n_attending or counts.n_layers
    kv_width = counts.n_kv_heads * counts.head_dim
    return ModelShape(
        name=name,
        architecture=counts.architecture,
        quantisation=quantisation,
        n_layers=counts.n_layers,
        n_embd=counts.n_embd,
        n_heads=counts.n_heads,
        n_vocab=counts.n_vocab,
        n_ctx_train=counts.n_ctx_train,
        n_params=counts.n_params,
        q_width=counts.n_heads * counts.head_dim,
        n_ff=counts.n_ff,
        n_experts_used=counts.n_experts_used if counts.n_experts else 0,
        attention=_attention(counts.architecture, n_attending, kv_width, counts.head_dim, counts.window),
        state_elements=counts.state_elements,
        weight_bytes=weight_bytes,
        lookup_bytes=0 if counts.tied else embedding_bytes,
        expert_bytes=int(n_expert_weights * weight_bytes / counts.n_params),
        n_experts=counts.n_experts,
        matrix_bytes=((base, weight_bytes - embedding_bytes),),
        tied=(base, embedding_bytes) if counts.tied else None,
        n_merges=counts.merges(),
        exact=False,
    )


def _fitted(counts: Counts, quantisation: str, weight_bytes: int | None) -> tuple[Geometry, float]:
    """The geometry whose matrices come nearest to what is known of a file, and what its bytes are of theirs."""
    geometry = Geometry(
        counts.architecture,
        counts.n_layers,
        counts.n_embd,
        counts.n_heads * counts.head_dim,
        counts.n_kv_heads * counts.head_dim,
        counts.n_ff,
        counts.n_vocab,
        counts.n_experts,
        bool(counts.tied),
    )
    if counts.tied is None:
        own = _sizes(replace(geometry, tied=False), quantisation)
        embedding = counts.n_vocab * counts.n_embd
        geometry = replace(geometry, tied=counts.n_params is None or counts.n_params < own.n_params - embedding // 2)
    if weight_bytes is None:
        return geometry, 1.0
    both = [replace(geometry, tied=tied) for tied in (geometry.tied, not geometry.tied)]
    geometry = min(both, key=lambda one: abs(_sizes(one, quantisation).n_bytes - weight_bytes))
    n_bytes = _sizes(geometry, quantisation).n_bytes
    if abs(n_bytes - weight_bytes) > SAME_SIZE * weight_bytes + SAME_HEADER_BYTES * counts.n_vocab:
        return geometry, weight_bytes / n_bytes  # made by other rules: a later llama.cpp, an importance matrix
    return geometry, 1.0


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What a geometry takes at a quantisation."""

    n_params: int
    n_bytes: int
    embedding: tuple[str, int]  # (type, bytes)
    expert_bytes: int
    products: tuple[tuple[str, int], ...]  # (type, bytes) of all matrices but the embedding


@functools.cache
def _sizes(geometry: Geometry, quantisation: str) -> _Sizes:
    n_floats = mixtures.float_elements(geometry)
    n_params, n_bytes, n_expert_bytes, embedding = n_floats, 4 * n_floats, 0, ("", 0)
    products: Counter[str] = Counter()
    for matrix in mixtures.matrices(geometry):
        kind = mixtures.type_of(matrix, quantisation, geometry)
        size = matrix.n_bytes(kind)
        n_params += matrix.n_elements
        n_bytes += size
        n_expert_bytes += size if matrix.n_experts else 0
        if matrix.role == "embedding":
            embedding = (kind, size)
        else:
            products[kind] += size
    return _Sizes(n_params, n_bytes, embedding, n_expert_bytes, tuple(sorted(products.items())))


def _attention(
    architecture: str, n_layers: int, kv_width: int, head_dim: int, window: int | None
) -> tuple[AttentionLayers, ...]:
    """Full layers and those that slide."""
    rule, n_sliding, tokens = WINDOWS.get(architecture), 0, window
    if rule is not None and rule.n_layers in (None, n_layers):
        tokens = window or rule.default
        n_sliding = sum(slides(rule, layer) for layer in range(n_layers)) if tokens else 0
    groups = []
    if n_sliding < n_layers:
        groups.append(AttentionLayers(n_layers - n_sliding, kv_width, kv_width, head_dim))
    if n_sliding:
        groups.append(AttentionLayers(n_sliding, kv_width, kv_width, head_dim, tokens))
    return tuple(groups)
