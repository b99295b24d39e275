"""The shape of a model: what its header says about the memory it will take. `counts.py` has it from counts alone.

Only cache layouts that are known are read; any other architecture is refused, since a guess would be wrong by the size
of a cache. `runtime/bringup/probe.py` sizes those exactly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgellm.memory import hparams
from edgellm.memory.architectures import (
    DRAFT_HEADS,
    EMBEDDING_TWICE,
    ENCODER_DECODER,
    FUSED_QKV,
    HYBRID,
    RECURRENT,
    REWINDABLE,
    WINDOW_HEADS,
    is_known,
)
from edgellm.memory.cache_layers import (
    AttentionLayers,
    attending,
    attending_layers,
    recurrent_layers,
    recurrent_width,
    state_elements,
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
class ModelShape:
    """Sizes of one model file. Bytes are those of the weights as they lie in the file."""

    name: str
    architecture: str
    quantisation: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_vocab: int
    n_ctx_train: int  # tokens; of a model with an encoder, of its input and its text together
    n_params: int
    q_width: int  # elements a token that attention hands to its output matrix
    n_ff: int  # widest feed-forward, elements a token; of one expert in a mixture
    n_experts_used: int  # 0: dense
    attention: tuple[AttentionLayers, ...]
    state_elements: int  # float32 of recurrent state, all layers, one snapshot
    weight_bytes: int
    lookup_bytes: int  # of these: embeddings that are no output matrix, of which a token reads one row
    expert_bytes: int  # of these: experts, of which a token reads n_experts_used of n_experts
    n_experts: int
    matrix_bytes: tuple[tuple[str, int], ...]  # (type, bytes) of the layers' matrices, which kernels may rearrange
    tied: tuple[str, int] | None  # (type, bytes) of an embedding that is also the output matrix
    n_merges: int  # of the tokenizer
    exact: bool  # False: weight bytes follow from counts and an average
    n_words: int = 0  # tokens of the whole vocabulary, which a trimmed model reads with; 0: not trimmed
    onnx: OnnxFacts | None = None  # set: onnxruntime runs it, whose memory follows other rules
    known: bool = True  # False: nothing is known of the cache, and llama.cpp must be asked
    n_recurrent: int = 0  # layers that keep a state
    recurrent_width: int = 0  # floats a token at the widest moment of one that is computed as Mamba 2 is
    per_layer_width: int = 0  # elements a token of a second embedding, of which each layer gets its part
    keeps_state: bool = False  # of one that is not known: it is recurrent in some layers at least
    adapter_bytes: int = 0  # of LoRA adapters that are applied beside the weights
    adapter_width: int = 0  # floats a token at most, that applying one to a layer's matrix holds beside its result
    adapter_head_width: int = 0  # likewise, floats a row of logits
    head_of: str = ""  # of a draft head inside a file: its model's name, whose vocabulary it has
    shared_bytes: int = 0  # of such a head: its model's weights that a token of it reads too
    layer_bytes: tuple[int, ...] = ()  # weights of each layer; empty: not known apart
    layer_groups: tuple[int, ...] = ()  # of each layer, its place in `attention`; -1: it does not attend

    @property
    def is_recurrent(self) -> bool:
        return self.state_elements > 0 or self.keeps_state

    @property
    def has_encoder(self) -> bool:
        """An encoder reads the whole prompt at once; the cache is the decoder's."""
        return self.architecture in ENCODER_DECODER

    @property
    def keeps_snapshots(self) -> bool:
        """Whether llama.cpp can keep its recurrent state of the last tokens of a pass, to take them back."""
        return self.is_recurrent and self.architecture in REWINDABLE

    @property
    def bytes_read_per_token(self) -> int:
        """Weights that one token's pass reads."""
        return self.bytes_read(1)

    def bytes_read(self, n_tokens: int) -> int:
        """Weights that a pass over so many tokens reads: of the experts, those that some token chose, at random."""
        idle = 0.0
        if self.n_experts:
            idle = self.expert_bytes * (1.0 - self.n_experts_used / self.n_experts) ** n_tokens
        return self.weight_bytes - self.lookup_bytes - int(idle) + self.shared_bytes

    def repacked_bytes(self, isa: str) -> int:
        """Bytes that llama.cpp would rearrange for this instruction set (`x86` or `arm`), if it is let."""
        kinds = _REPACKED_TYPES.get(isa, set())
        return sum(n_bytes for kind, n_bytes in self.matrix_bytes if kind in kinds) + self.doubled_bytes(isa)

    def doubled_bytes(self, isa: str) -> int:
        """Of these: an output matrix made from the embedding, which stays as it is for looking rows up."""
        return self.tied[1] if self.tied and self.tied[0] in _REPACKED_TYPES.get(isa, set()) else 0

    @property
    def read_twice_bytes(self) -> int:
        """Weights that the engine has twice in memory where it neither maps nor rearranges them."""
        return self.tied[1] if self.tied and self.architecture in EMBEDDING_TWICE else 0


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
    sliding_heads = told.count("attention.key_length_swa", key), told.count("attention.value_length_swa", value)
    if known and architecture not in WINDOW_HEADS and sliding_heads != (key, value):
        known = False
        if not ask:
            raise unknown(architecture)
    n_experts = told.count("expert_count", 0, most=MAX_EXPERTS)
    kept = attending(told, architecture, kv_heads)
    layers = attending_layers(header, told, kept, kv_heads, (key, value), sliding_heads) if known else {}
    groups = Counter(layers.values())
    n_recurrent = recurrent_layers(told, architecture, kv_heads, kept)
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    if known:
        _check_tensors(header, embedding, n_layers, n_embd)
    own = own_tensors(header, n_layers)
    sizes = {tensor.name: tensor.n_bytes for tensor in own}
    merges = header.metadata.get("tokenizer.ggml.merges")
    return ModelShape(
        name=name or header.path.stem,
        architecture=architecture,
        quantisation=header.quantisation,
        n_layers=n_layers,
        n_embd=n_embd,
        n_heads=n_heads,
        n_vocab=embedding.shape[-1] if embedding else told.count("vocab_size", least=1, most=MAX_VOCABULARY),
        n_ctx_train=told.count("context_length", least=1, most=MAX_TOKENS) * (1 + (architecture in ENCODER_DECODER)),
        n_params=header.n_params,
        q_width=n_heads * told.count("attention.value_length_mla", value, least=1),
        n_ff=_widest_ff(told, n_layers, n_experts),
        n_experts_used=told.count("expert_used_count", 0, most=n_experts) if n_experts else 0,
        attention=tuple(replace(group, n_layers=n) for group, n in groups.items()),
        state_elements=state_elements(told, architecture, n_recurrent, n_embd),
        weight_bytes=sum(-(-size // 32) * 32 for size in sizes.values()),  # the engine aligns each
        lookup_bytes=(sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0)
        + sizes.get("per_layer_token_embd.weight", 0),
        expert_bytes=sum(size for tensor, size in sizes.items() if "_exps." in tensor),
        n_experts=n_experts,
        matrix_bytes=tuple(sorted(products(own).items())),
        tied=(embedding.type, embedding.n_bytes) if embedding and "output.weight" not in sizes else None,
        n_merges=merges.n_items if isinstance(merges, GgufArray) else 0,
        exact=True,
        n_words=_whole_vocabulary(header),
        known=known,
        n_recurrent=n_recurrent if architecture in RECURRENT | HYBRID else 0,
        recurrent_width=recurrent_width(told, architecture, n_embd),
        per_layer_width=next((t.shape[0] for t in header.tensors if t.name == "per_layer_token_embd.weight"), 0),
        layer_bytes=_layer_bytes(own, n_layers),
        layer_groups=tuple(list(groups).index(layers[i]) if i in layers else -1 for i in range(n_layers)),
        keeps_state=not known and any(key.startswith(_STATEFUL) for key in header.own_keys()),
    )


_BLOCK = re.compile(r"(?:enc\.|dec\.)?blk\.([^.]+)\.")
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
    layers = {match[1] for tensor in header.tensors if (match := _BLOCK.match(tensor.name))}
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


def own_tensors(header: GgufHeader, n_layers: int) -> list[TensorInfo]:
    """Those that a model is loaded with where the head that lies behind its layers is not wanted."""
    if header.architecture not in DRAFT_HEADS:
        return list(header.tensors)
    return [tensor for tensor in header.tensors if layer_of(tensor) < n_layers]


def layer_of(tensor: TensorInfo) -> int:
    """The layer that a tensor is of; -1 where it is of none."""
    first, _, rest = tensor.name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if first == "blk" and number.isdecimal() and len(number) < 6 else -1


def products(tensors: Sequence[TensorInfo]) -> Counter[str]:
    """Bytes by type of the matrices that kernels may rearrange."""
    n_bytes: Counter[str] = Counter()
    for tensor in tensors:
        in_product = _BLOCK.match(tensor.name) or tensor.name == "output.weight"
        if in_product and len(tensor.shape) > 1 and tensor.shape[1] % 8 == 0:
            n_bytes[tensor.type] += tensor.n_bytes
    return n_bytes


def _layer_bytes(own: Sequence[TensorInfo], n_layers: int) -> tuple[int, ...]:
    n_bytes = [0] * n_layers
    for tensor in own:
        if 0 <= (layer := layer_of(tensor)) < n_layers:
            n_bytes[layer] += tensor.n_bytes
    return tuple(n_bytes)


def _whole_vocabulary(header: GgufHeader) -> int:
    """What export writes into a model whose vocabulary it trimmed."""
    n_words = header.metadata.get("edgellm.vocabulary.original_size", 0)
    return n_words if type(n_words) is int and 0 <= n_words <= MAX_VOCABULARY else 0
