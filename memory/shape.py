"""The shape of a model: what its header says about the memory it will take. `counts.py` has it from counts alone.

Only cache layouts that are known are read; any other architecture is refused, since a guess would be wrong by the size
of a cache. `runtime/bringup/probe.py` sizes those exactly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgellm.memory import hparams
from edgellm.memory.architectures import (
    BESIDE,
    FULL_ATTENTION_INTERVAL,
    FUSED_QKV,
    HYBRID,
    LATENT,
    RECURRENT,
    REWINDABLE,
    WINDOWS,
    is_known,
    slides,
)
from edgellm.memory.gguf import GgufArray, GgufHeader, TensorInfo, shown
from edgellm.memory.hparams import MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_TOKENS, MAX_VOCABULARY, MAX_WIDTH, Hparams
from edgellm.memory.hparams import UnknownShape as UnknownShape

if TYPE_CHECKING:
    from edgellm.memory.onnx_graph import OnnxFacts

# Types that llama.cpp's CPU backend rearranges when it loads them, by instruction set.
_REPACKED_TYPES = {
    "x86": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4", "Q2_K"},
    "arm": {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0"},
}


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
    keeps_state: bool = False  # of one that is not known: it is recurrent in some layers at least
    adapter_bytes: int = 0  # of LoRA adapters that are applied beside the weights
    adapter_width: int = 0  # floats a token at most, that applying one to a layer's matrix holds beside its result
    adapter_head_width: int = 0  # likewise, floats a row of logits
    layer_bytes: tuple[int, ...] = ()  # weights of each layer; empty: not known apart
    layer_groups: tuple[int, ...] = ()  # of each layer, its place in `attention`; -1: it does not attend

    @property
    def is_recurrent(self) -> bool:
        return self.state_elements > 0 or self.keeps_state

    @property
    def keeps_snapshots(self) -> bool:
        """Whether llama.cpp can keep its recurrent state of the last tokens of a pass, to take them back."""
        return self.is_recurrent and self.architecture in REWINDABLE

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
        UnknownShape: an architecture whose cache is not known, a file without weights, or numbers that cannot be.
    """
    architecture, told = header.architecture, hparams.of_header(header)
    if not architecture:
        raise UnknownShape(f"{header.path} does not say its architecture: {told.remedy}")
    known = is_known(architecture)
    if not known and not ask:
        raise unknown(architecture)
    if not header.tensors:
        raise UnknownShape(f"{header.path} holds a vocabulary only: there are no weights in it to plan or to run")
    n_tensors = header.metadata.get("split.tensors.count", 0)
    if isinstance(n_tensors, int) and n_tensors > len(header.tensors):
        raise UnknownShape(f"{header.path} is a part of a model in several files: pull all of them and name the first")
    n_layers = _n_layers(told)
    n_embd = told.count("embedding_length", least=1)
    heads = told.counts("attention.head_count", n_layers, [0] * n_layers, most=MAX_HEADS)
    n_heads = max(heads)
    if known and not n_heads and architecture not in RECURRENT:
        raise UnknownShape(f"{header.path} does not say its attention.head_count: {told.remedy}")
    kv_heads = told.counts("attention.head_count_kv", n_layers, heads, most=MAX_HEADS)
    key = told.count("attention.key_length", n_embd // max(n_heads, 1), least=1)
    value = told.count("attention.value_length", n_embd // max(n_heads, 1), least=1)
    # Heads of another width where the window slides: llama.cpp computes them for architectures of its own alone.
    if known and (told.count("attention.key_length_swa", key), told.count("attention.value_length_swa", value)) != (
        key,
        value,
    ):
        known = False
        if not ask:
            raise unknown(architecture)
    n_experts = told.count("expert_count", 0, most=MAX_EXPERTS)
    kept = _attending(told, architecture, kv_heads)
    layers = _cached_layers(header, told, kept, kv_heads, key, value) if known else {}
    groups = Counter(layers.values())
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    if known:
        _check_tensors(header, embedding, n_layers, n_embd)
    sizes = {tensor.name: tensor.n_bytes for tensor in header.tensors}
    merges = header.metadata.get("tokenizer.ggml.merges")
    return ModelShape(
        name=name or header.path.stem,
        architecture=architecture,
        quantisation=header.quantisation,
        n_layers=n_layers,
        n_embd=n_embd,
        n_heads=n_heads,
        n_vocab=embedding.shape[-1] if embedding else told.count("vocab_size", least=1, most=MAX_VOCABULARY),
        n_ctx_train=told.count("context_length", least=1, most=MAX_TOKENS),
        n_params=header.n_params,
        q_width=n_heads * told.count("attention.value_length_mla", value, least=1),
        n_ff=_widest_ff(told, n_layers, n_experts),
        n_experts_used=told.count("expert_used_count", 0, most=n_experts) if n_experts else 0,
        attention=tuple(replace(group, n_layers=n) for group, n in groups.items()),
        state_elements=_state_elements(
            told, architecture, n_layers if architecture in BESIDE else n_layers - len(kept), n_embd
        ),
        weight_bytes=sum(-(-size // 32) * 32 for size in sizes.values()),  # the engine aligns each
        lookup_bytes=sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0,
        expert_bytes=sum(size for tensor, size in sizes.items() if "_exps." in tensor),
        n_experts=n_experts,
        matrix_bytes=tuple(sorted(_products(header.tensors).items())),
        tied=(embedding.type, embedding.n_bytes) if embedding and "output.weight" not in sizes else None,
        n_merges=merges.n_items if isinstance(merges, GgufArray) else 0,
        exact=True,
        n_words=_whole_vocabulary(header),
        known=known,
        layer_bytes=_layer_bytes(sizes, n_layers),
        layer_groups=tuple(list(groups).index(layers[i]) if i in layers else -1 for i in range(n_layers)),
        keeps_state=not known and any(key.startswith(_STATEFUL) for key in header.own_keys()),
    )


_STATEFUL = ("ssm.", "wkv.", "shortconv.", "kda.")  # entries that recurrent layers have


def has_fused_qkv(shape: ModelShape) -> bool:
    """Queries, keys and values come from one product, which spares a temporary."""
    return shape.architecture in FUSED_QKV


def unknown(architecture: str) -> UnknownShape:
    return UnknownShape(
        f"the cache of architecture {shown(architecture)} is not known: `edgellm plan FILE --probe` asks llama.cpp"
    )


def _n_layers(told: Hparams) -> int:
    """Layers that a token passes: heads that guess further tokens lie behind them."""
    n_blocks = told.count("block_count", least=1, most=MAX_LAYERS)
    return n_blocks - told.count("nextn_predict_layers", 0, most=n_blocks - 1)


def _widest_ff(told: Hparams, n_layers: int, n_experts: int) -> int:
    """Of one expert in a mixture."""
    dense = max(told.counts("feed_forward_length", n_layers, [0] * n_layers, most=MAX_WIDTH))
    if not n_experts:
        return dense
    return max(told.counts("expert_feed_forward_length", n_layers, [dense] * n_layers, most=MAX_WIDTH)) or dense


def _check_tensors(header: GgufHeader, embedding: TensorInfo | None, n_layers: int, n_embd: int) -> None:
    """The numbers stated are those of the tensors that are there, else llama.cpp will not load the file."""
    layers = {tensor.name.split(".", 2)[1] for tensor in header.tensors if tensor.name.startswith("blk.")}
    if embedding is None or len(embedding.shape) != 2 or not 0 < embedding.shape[1] <= MAX_VOCABULARY:
        raise UnknownShape(f"{header.path} has no embedding of its tokens: it is damaged, or no language model")
    missing = next((layer for layer in range(n_layers) if str(layer) not in layers), None)
    if missing is not None:
        raise UnknownShape(
            f"{header.path} says that it has {n_layers:,} layers, and no tensor is of layer {missing}: it is damaged"
        )
    if embedding.shape[0] != n_embd:
        raise UnknownShape(
            f"{header.path} says that it is {n_embd:,} wide, and its embedding is {embedding.shape[0]:,}: it is damaged"
        )


def _products(tensors: Sequence[TensorInfo]) -> Counter[str]:
    """Bytes by type of the matrices that kernels may rearrange."""
    n_bytes: Counter[str] = Counter()
    for tensor in tensors:
        in_product = tensor.name.startswith("blk.") or tensor.name == "output.weight"
        if in_product and len(tensor.shape) > 1 and tensor.shape[1] % 8 == 0:
            n_bytes[tensor.type] += tensor.n_bytes
    return n_bytes


def _layer_bytes(sizes: Mapping[str, int], n_layers: int) -> tuple[int, ...]:
    n_bytes = [0] * n_layers
    for name, size in sizes.items():
        layer = re.match(r"blk\.(\d{1,4})\.", name)
        if layer and int(layer[1]) < n_layers:
            n_bytes[int(layer[1])] += size
    return tuple(n_bytes)


def _whole_vocabulary(header: GgufHeader) -> int:
    """What export writes into a model whose vocabulary it trimmed."""
    n_words = header.metadata.get("edgellm.vocabulary.original_size", 0)
    return n_words if type(n_words) is int and 0 <= n_words <= MAX_VOCABULARY else 0


def _attending(told: Hparams, architecture: str, kv_heads: Sequence[int]) -> list[int]:
    """The layers that keep keys and values."""
    if architecture in RECURRENT:
        return []
    kept = [layer for layer, n_heads in enumerate(kv_heads) if n_heads]
    if architecture not in FULL_ATTENTION_INTERVAL:
        return kept
    every = told.count("full_attention_interval", FULL_ATTENTION_INTERVAL[architecture], least=1, most=MAX_LAYERS)
    recurrent = told.listed("attention.recurrent_layers")
    if recurrent and len(recurrent) < len(kv_heads):
        raise UnknownShape(f"{told.where} lists {len(recurrent)} of {len(kv_heads)} layers: {told.remedy}")
    return [layer for layer in kept if not (recurrent[layer] if recurrent else (layer + 1) % every)]


def _cached_layers(
    header: GgufHeader, told: Hparams, kept: Sequence[int], kv_heads: Sequence[int], key: int, value: int
) -> dict[int, AttentionLayers]:
    """What each attending layer keeps, alone."""
    latent = header.architecture in LATENT and header.hparam("attention.key_length_mla") is not None
    window, sliding = _windows(told, header.architecture, len(kv_heads))
    return {
        layer: AttentionLayers(
            n_layers=1,
            k_width=key * kv_heads[layer],
            v_width=0 if latent else value * kv_heads[layer],
            head_dim=key,
            window=window if layer in sliding else None,
        )
        for layer in kept
    }


def _windows(told: Hparams, architecture: str, n_layers: int) -> tuple[int, set[int]]:
    """(tokens, the layers that slide), as llama.cpp decides it."""
    rule = WINDOWS.get(architecture)
    if rule is None or rule.n_layers not in (None, n_layers):
        return 0, set()
    if isinstance(told.raw("attention.sliding_window"), GgufArray):
        raise UnknownShape(f"{told.where}: windows that differ by layer are not known; plan it with --probe")
    window = told.count("attention.sliding_window", rule.default, most=2**32 - 1)
    if window == 0 and rule.default == 0:
        return 0, set()
    listed = told.listed("attention.sliding_window_pattern") if rule.every else []
    if listed:
        sliding = {layer for layer, is_sliding in enumerate(listed[:n_layers]) if is_sliding}
    else:
        every = rule.every and told.count("attention.sliding_window_pattern", rule.every, most=2**32 - 1)
        sliding = {layer for layer in range(n_layers) if slides(rule, layer, every)}
    if not sliding:
        raise UnknownShape(f"{told.where} has a window that no layer uses, on which llama.cpp aborts: {told.remedy}")
    return window, sliding


def _state_elements(told: Hparams, architecture: str, n_recurrent: int, n_embd: int) -> int:
    if architecture not in RECURRENT | HYBRID:
        return 0
    if l_cache := told.count("shortconv.l_cache", 0, most=MAX_LAYERS):
        return n_recurrent * n_embd * (l_cache - 1)
    inner, state = told.count("ssm.inner_size", least=1), told.count("ssm.state_size", least=1)
    groups, kernel = told.count("ssm.group_count", 0), told.count("ssm.conv_kernel", least=1)
    return n_recurrent * ((kernel - 1) * (inner + 2 * groups * state) + state * inner)
