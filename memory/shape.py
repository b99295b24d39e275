"""The shape of a model: what its header, its config.json or the catalogue says about the memory it will take.

Only cache layouts that are known are read; any other architecture is refused, since a guess would be wrong by the size
of a cache. `runtime/probe.py` sizes those exactly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.memory.gguf import GgufHeader
from edgellm.memory.onnx import OnnxFacts

# Every layer attends and keeps its keys and values.
_PLAIN = {
    "llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "phi3", "gemma", "smollm3", "granite", "granitemoe",
    "starcoder2", "internlm2", "command-r", "exaone", "glm4", "ernie4_5", "hunyuan-dense", "olmoe", "seed_oss", "arcee",
    "stablelm",
}  # fmt: skip
# Some layers attend to a window alone: one layer in so many is full, the last of each group unless the file lists them.
_WINDOWED = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "exaone4": 4, "olmo2": 4, "gpt-oss": 2}
# One latent row a token instead of keys and values.
_LATENT = {"deepseek2"}
# A state of fixed size in all layers, or in those that do not attend.
_RECURRENT = {"mamba", "mamba2"}
_HYBRID = {"lfm2", "lfm2moe", "granitehybrid", "qwen35", "qwen35moe"}
# llama.cpp can keep snapshots of the state of these, so that rejected tokens can be taken back.
_REWINDABLE = {"lfm2", "lfm2moe", "qwen35", "qwen35moe"}
_FUSED_QKV = {"phi3"}

# config.json's `model_type` -> the name in GGUF
_MODEL_TYPES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3",
    "smollm3": "smollm3",
    "granite": "granite", "starcoder2": "starcoder2", "internlm2": "internlm2", "cohere": "command-r",
    "cohere2": "cohere2", "exaone4": "exaone4", "olmo2": "olmo2", "glm4": "glm4", "stablelm": "stablelm",
}  # fmt: skip

# Bits a weight of llama.cpp's mixtures, averaged over models of 1 to 10 billion weights; a header has the true bytes.
BITS_PER_WEIGHT = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.57, "Q5_K_M": 5.70, "Q5_K_S": 5.57, "Q5_1": 6.0,
    "Q5_0": 5.55, "Q4_K_M": 4.89, "Q4_K_S": 4.66, "Q4_1": 5.1, "Q4_0": 4.64, "IQ4_XS": 4.46, "IQ4_NL": 4.68,
    "Q3_K_L": 4.30, "Q3_K_M": 4.00, "Q3_K_S": 3.64, "IQ3_M": 3.76, "Q2_K": 3.25, "IQ2_M": 2.93,
}  # fmt: skip

# Types that llama.cpp's CPU backend rearranges when it loads them, by instruction set.
_REPACKED_TYPES = {
    "x86": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4", "Q2_K"},
    "arm": {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0"},
}


class UnknownShape(ValueError):
    """A model whose memory cannot be told from what is known; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """Layers that keep the same cache. Widths are elements a token and layer."""

    n_layers: int
    k_width: int
    v_width: int  # 0: values are part of the key row (MLA)
    head_dim: int  # of a key
    window: int | None = None  # tokens; None: all of the context


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one model file. Bytes are those of the weights as they lie in the file."""

    name: str
    architecture: str
    quantisation: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_vocab: int
    n_ctx_train: int  # tokens
    n_params: int
    q_width: int  # elements a token that attention hands to its output matrix
    n_ff: int  # widest feed-forward, elements a token; of one expert in a mixture
    n_experts_used: int  # 0: dense
    attention: tuple[AttentionLayers, ...]
    state_elements: int  # float32 of recurrent state, all layers, one snapshot
    weight_bytes: int
    lookup_bytes: int  # of these: an embedding of its own, of which a token reads one row
    expert_bytes: int  # of these: experts, of which a token reads n_experts_used of n_experts
    n_experts: int
    matrix_bytes: tuple[tuple[str, int], ...]  # (type, bytes) of the layers' matrices, which kernels may rearrange
    tied: tuple[str, int] | None  # (type, bytes) of an embedding that is also the output matrix
    n_merges: int  # of the tokenizer
    exact: bool  # False: weight bytes follow from counts and an average
    n_words: int = 0  # tokens of the whole vocabulary, which a trimmed model reads with; 0: not trimmed
    onnx: OnnxFacts | None = None  # set: onnxruntime runs it, whose memory follows other rules
    known: bool = True  # False: nothing is known of the cache, and llama.cpp must be asked

    @property
    def is_recurrent(self) -> bool:
        return self.state_elements > 0

    @property
    def can_rewind(self) -> bool:
        """Whether rejected tokens can be taken back, which speculation needs of its target."""
        return not self.is_recurrent or self.architecture in _REWINDABLE

    @property
    def bytes_read_per_token(self) -> int:
        """Weights that one token's pass reads."""
        idle = self.expert_bytes * (self.n_experts - self.n_experts_used) // self.n_experts if self.n_experts else 0
        return self.weight_bytes - self.lookup_bytes - idle

    def repacked_bytes(self, isa: str) -> int:
        """Bytes that llama.cpp would rearrange for this instruction set (`x86` or `arm`), if it is let."""
        kinds = _REPACKED_TYPES.get(isa, set())
        return sum(n_bytes for kind, n_bytes in self.matrix_bytes if kind in kinds) + self.doubled_bytes(isa)

    def doubled_bytes(self, isa: str) -> int:
        """Of these: an output matrix made from the embedding, which stays as it is for looking rows up."""
        return self.tied[1] if self.tied and self.tied[0] in _REPACKED_TYPES.get(isa, set()) else 0


def from_header(header: GgufHeader, name: str | None = None, *, ask: bool = False) -> ModelShape:
    """The shape of a GGUF file, to the byte.

    Args:
        ask: take architectures whose cache is not known too; their buffers must then come from llama.cpp.

    Raises:
        UnknownShape: an architecture whose cache is not known, or a header without the sizes.
    """
    architecture = header.architecture
    known = _is_known(architecture)
    if not known and not ask:
        raise _unknown(architecture)
    n_layers = _whole(header, "block_count") - int(header.hparam("nextn_predict_layers", 0))
    n_heads, heads = _head_counts(header, "attention.head_count", n_layers)
    n_embd = _whole(header, "embedding_length")
    _, kv_heads = _head_counts(header, "attention.head_count_kv", n_layers, default=heads)
    key = int(header.hparam("attention.key_length", n_embd // max(n_heads, 1)))
    value = int(header.hparam("attention.value_length", n_embd // max(n_heads, 1)))
    _, widths = _head_counts(header, "feed_forward_length", n_layers, default=[0] * n_layers)
    n_experts = int(header.hparam("expert_count", 0))
    n_ff = max(widths, default=0)
    if n_experts:
        n_ff = int(header.hparam("expert_feed_forward_length", n_ff)) or n_ff
    kept = [layer for layer in range(n_layers) if kv_heads[layer] and architecture not in _RECURRENT]
    if architecture in ("qwen35", "qwen35moe"):
        every = int(header.hparam("full_attention_interval", 4))
        listed = header.array(f"{architecture}.attention.recurrent_layers")
        kept = [i for i in kept if not (listed[i] if listed else (i + 1) % every)]
    attention = _attention_layers(header, kept, kv_heads, key, value) if known else ()
    state = _state_elements(header, n_layers - len(kept), n_embd)
    matrices: Counter[str] = Counter()
    for tensor in header.tensors:
        in_product = tensor.name.startswith("blk.") or tensor.name == "output.weight"
        if in_product and len(tensor.shape) > 1 and tensor.shape[1] % 8 == 0:
            matrices[tensor.type] += tensor.n_bytes
    sizes = {tensor.name: tensor.n_bytes for tensor in header.tensors}
    embedding = next((t for t in header.tensors if t.name == "token_embd.weight"), None)
    merges = header.metadata.get("tokenizer.ggml.merges")
    return ModelShape(
        name=name or header.path.stem,
        architecture=architecture,
        quantisation=header.quantisation,
        n_layers=n_layers,
        n_embd=n_embd,
        n_heads=n_heads,
        n_vocab=embedding.shape[-1] if embedding else _whole(header, "vocab_size"),
        n_ctx_train=_whole(header, "context_length"),
        n_params=header.n_params,
        q_width=n_heads * int(header.hparam("attention.value_length_mla", value)),
        n_ff=n_ff,
        n_experts_used=int(header.hparam("expert_used_count", 0)) if n_experts else 0,
        attention=attention,
        state_elements=state,
        weight_bytes=sum(-(-size // 32) * 32 for size in sizes.values()),  # the engine aligns each
        lookup_bytes=sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0,
        expert_bytes=sum(size for tensor, size in sizes.items() if "_exps." in tensor),
        n_experts=n_experts,
        matrix_bytes=tuple(sorted(matrices.items())),
        tied=(embedding.type, embedding.n_bytes) if embedding and "output.weight" not in sizes else None,
        n_merges=merges.n_items if merges else 0,
        exact=True,
        n_words=_whole_vocabulary(header),
        known=known,
    )


def _whole_vocabulary(header: GgufHeader) -> int:
    """What export writes into a model whose vocabulary it trimmed."""
    n_words = header.metadata.get("edgellm.vocabulary.original_size", 0)
    return n_words if isinstance(n_words, int) and 0 <= n_words < 2**31 else 0


def from_config(config: Mapping[str, Any], quantisation: str, name: str, *, n_params: int | None = None) -> ModelShape:
    """The shape that a checkpoint will have once exported at `quantisation`, from its config.json.

    Raises:
        UnknownShape: a `model_type` or a quantisation that is not known, or a missing size.
    """
    model_type = str(config.get("model_type", ""))
    architecture = _MODEL_TYPES.get(model_type)
    if architecture is None:
        raise UnknownShape(
            f"{name}: the cache of model type {model_type!r} is not known; plan from a GGUF file of it, with --probe"
        )
    try:
        n_layers, n_heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        n_embd, n_vocab = int(config["hidden_size"]), int(config["vocab_size"])
        n_ff = int(config.get("moe_intermediate_size") or config["intermediate_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnknownShape(f"{name}: config.json lacks a usable {error}: is it a language model's?") from error
    return from_facts(
        name,
        quantisation,
        architecture=architecture,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=int(config.get("num_key_value_heads") or n_heads),
        head_dim=int(config.get("head_dim") or n_embd // n_heads),
        n_embd=n_embd,
        n_ff=n_ff,
        n_vocab=n_vocab,
        n_ctx_train=int(config.get("max_position_embeddings") or 4096),
        n_params=n_params,
        window=config.get("sliding_window") if architecture in _WINDOWED else None,
        n_experts=int(config.get("num_experts") or config.get("num_local_experts") or 0),
        n_experts_used=int(config.get("num_experts_per_tok") or 0),
        tied=bool(config.get("tie_word_embeddings", architecture.startswith("gemma"))),
    )


def from_facts(
    name: str,
    quantisation: str,
    *,
    architecture: str,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    n_embd: int,
    n_ff: int,
    n_vocab: int,
    n_ctx_train: int,
    n_params: int | None = None,
    window: int | None = None,
    n_experts: int = 0,
    n_experts_used: int = 0,
    tied: bool | None = None,
    weight_bytes: int | None = None,
) -> ModelShape:
    """The shape of a model of which only counts are known. Without `weight_bytes` they follow from the quantisation.

    Raises:
        UnknownShape: an architecture or quantisation that is not known, or a cache that counts do not tell.
    """
    if not _is_known(architecture):
        raise _unknown(architecture)
    if architecture not in _PLAIN and architecture not in _WINDOWED:
        raise UnknownShape(f"{name}: counts do not tell the cache of {architecture!r}; pull the file and plan from it")
    q_width, kv_width = n_heads * head_dim, n_kv_heads * head_dim
    experts = 3 * n_embd * n_ff * max(n_experts, 1) * n_layers
    layers = n_layers * (2 * n_embd * q_width + 2 * n_embd * kv_width + 2 * n_embd) + experts
    embedding = n_vocab * n_embd
    if tied is None:
        tied = n_params is None or n_params < layers + 1.5 * embedding
    if n_params is None:
        n_params = layers + embedding * (1 if tied else 2) + n_embd
    bits = BITS_PER_WEIGHT.get(quantisation.upper())
    if bits is None and weight_bytes is None:
        known = ", ".join(BITS_PER_WEIGHT)
        raise UnknownShape(f"{name}: quantisation {quantisation!r} is not known; known are {known}")
    total = weight_bytes if weight_bytes is not None else math.ceil(n_params * (bits or 0) / 8)
    share = total / n_params
    every = _WINDOWED.get(architecture, 1)
    n_full = n_layers if window is None or every == 1 else n_layers // every
    attention = [AttentionLayers(n_full, kv_width, kv_width, head_dim)] if n_full else []
    if n_full < n_layers:
        attention.append(AttentionLayers(n_layers - n_full, kv_width, kv_width, head_dim, window))
    main_type = quantisation.upper().removesuffix("_M").removesuffix("_S").removesuffix("_L")
    return ModelShape(
        name=name,
        architecture=architecture,
        quantisation=quantisation.upper(),
        n_layers=n_layers,
        n_embd=n_embd,
        n_heads=n_heads,
        n_vocab=n_vocab,
        n_ctx_train=n_ctx_train,
        n_params=n_params,
        q_width=q_width,
        n_ff=n_ff,
        n_experts_used=n_experts_used if n_experts else 0,
        attention=tuple(attention),
        state_elements=0,
        weight_bytes=total,
        lookup_bytes=0 if tied else int(embedding * share),
        expert_bytes=int(experts * share) if n_experts else 0,
        n_experts=n_experts,
        matrix_bytes=((main_type, int(layers * share)),),
        tied=None,  # mixtures keep a tied embedding in a type that is not rearranged
        n_merges=n_vocab,
        exact=False,
    )


def has_fused_qkv(shape: ModelShape) -> bool:
    """Queries, keys and values come from one product, which spares a temporary."""
    return shape.architecture in _FUSED_QKV


def _is_known(architecture: str) -> bool:
    return architecture in _PLAIN | _LATENT | _RECURRENT | _HYBRID or architecture in _WINDOWED


def _unknown(architecture: str) -> UnknownShape:
    return UnknownShape(
        f"the cache of architecture {architecture!r} is not known: `edgellm plan FILE --probe` asks llama.cpp"
    )


def _whole(header: GgufHeader, key: str) -> int:
    value = header.hparam(key)
    if not isinstance(value, int) or value < 1:
        raise UnknownShape(f"{header.path} does not say its {header.architecture}.{key}: the header is damaged")
    return value


def _head_counts(
    header: GgufHeader, key: str, n_layers: int, *, default: Sequence[int] | None = None
) -> tuple[int, list[int]]:
    """(largest, one a layer) of an entry that is a number or an array."""
    value = header.hparam(key)
    if isinstance(value, int):
        return value, [value] * n_layers
    listed = [int(item) for item in header.array(f"{header.architecture}.{key}")][:n_layers]
    if len(listed) == n_layers:
        return max(listed, default=0), listed
    if default is not None:
        return max(default, default=0), list(default)
    return 0, [0] * n_layers


def _attention_layers(
    header: GgufHeader, kept: Sequence[int], kv_heads: Sequence[int], key: int, value: int
) -> tuple[AttentionLayers, ...]:
    architecture = header.architecture
    latent = architecture in _LATENT and "attention.key_length_mla" in {
        name.removeprefix(f"{architecture}.") for name in header.metadata
    }
    window = header.hparam("attention.sliding_window", 0) if architecture in _WINDOWED else 0
    if not isinstance(window, int):
        raise UnknownShape(f"{header.path}: windows that differ by layer are not known; plan it with --probe")
    pattern = f"{architecture}.attention.sliding_window_pattern"
    listed = header.array(pattern)
    every = (
        header.metadata[pattern] if isinstance(header.metadata.get(pattern), int) else _WINDOWED.get(architecture, 1)
    )
    groups: Counter[AttentionLayers] = Counter()
    for layer in kept:
        slides = bool(window) and bool(listed[layer] if listed else (layer + 1) % every)
        groups[
            AttentionLayers(
                n_layers=1,
                k_width=key * kv_heads[layer],
                v_width=0 if latent else value * kv_heads[layer],
                head_dim=key,
                window=window if slides else None,
            )
        ] += 1
    return tuple(
        AttentionLayers(n, group.k_width, group.v_width, group.head_dim, group.window) for group, n in groups.items()
    )


def _state_elements(header: GgufHeader, n_recurrent: int, n_embd: int) -> int:
    if header.architecture not in _RECURRENT | _HYBRID:
        return 0
    if l_cache := int(header.hparam("shortconv.l_cache", 0)):
        return n_recurrent * n_embd * (l_cache - 1)
    inner, state = _whole(header, "ssm.inner_size"), _whole(header, "ssm.state_size")
    groups, kernel = int(header.hparam("ssm.group_count", 0)), _whole(header, "ssm.conv_kernel")
    return n_recurrent * ((kernel - 1) * (inner + 2 * groups * state) + state * inner)
