"""Which type llama.cpp gives each matrix of a model, so that a plan without the file knows its bytes.

A quantisation is a mixture: Q4_K_M keeps half of the values and of the feed-forward's last matrices in Q6_K, and the
matrix that makes logits too. `benchmarks/catalogue_plans.py` holds these rules against the engine's own choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgellm.memory.architectures import FUSED_GATE, FUSED_QKV, NO_GATE
from edgellm.memory.gguf import TENSOR_TYPES, TYPE_IDS

Role = Literal["embedding", "output", "q", "k", "v", "qkv", "o", "up", "gate", "down", "other"]

# The type of most matrices.
BASE_TYPES = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K",
    "Q5_1": "Q5_1", "Q5_0": "Q5_0", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q4_1": "Q4_1", "Q4_0": "Q4_0",
    "IQ4_XS": "IQ4_XS", "IQ4_NL": "IQ4_NL", "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K", "IQ3_M": "IQ3_S",
    "Q2_K": "Q2_K", "IQ2_M": "IQ2_S",
}  # fmt: skip
_FLOATS = {"F32", "F16", "BF16"}
# Where a row is no whole number of a type's blocks.
_NARROWER = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL",
    "IQ3_S": "IQ4_NL", "IQ2_S": "IQ4_NL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Geometry:
    """The counts that decide a model's matrices."""

    architecture: str
    n_layers: int
    n_embd: int
    q_width: int
    kv_width: int
    n_ff: int
    n_vocab: int
    n_experts: int = 0  # 0: dense
    tied: bool = False  # the embedding is also the output matrix


@dataclass(frozen=True, slots=True)
class Matrix:
    """Equal matrices of one layer (the experts of a mixture), or one of the whole model. `n_in` is a row's length."""

    role: Role
    n_in: int
    n_out: int
    layer: int = 0
    n_experts: int = 0  # 0: not of a mixture

    @property
    def n_elements(self) -> int:
        return self.n_in * self.n_out * max(self.n_experts, 1)

    def n_bytes(self, kind: str) -> int:
        _, block, width = TENSOR_TYPES[TYPE_IDS[kind]]
        return -(-self.n_elements // block) * width


def matrices(of: Geometry) -> Iterator[Matrix]:
    """All of them. Gates of experts and norms are counted by `float_bytes`."""
    yield Matrix("embedding", of.n_embd, of.n_vocab)
    if not of.tied:
        yield Matrix("output", of.n_embd, of.n_vocab)
    for layer in range(of.n_layers):
        if of.architecture in FUSED_QKV:
            yield Matrix("qkv", of.n_embd, of.q_width + 2 * of.kv_width, layer)
        else:
            yield Matrix("q", of.n_embd, of.q_width, layer)
            yield Matrix("k", of.n_embd, of.kv_width, layer)
            yield Matrix("v", of.n_embd, of.kv_width, layer)
        yield Matrix("o", of.q_width, of.n_embd, layer)
        fused = of.architecture in FUSED_GATE
        yield Matrix("up", of.n_embd, of.n_ff * (2 if fused else 1), layer, of.n_experts)
        if not fused and of.architecture not in NO_GATE:
            yield Matrix("gate", of.n_embd, of.n_ff, layer, of.n_experts)
        yield Matrix("down", of.n_ff, of.n_embd, layer, of.n_experts)


def float_elements(of: Geometry) -> int:
    """Norms, biases of Qwen 2 and gates of experts, which stay in float32."""
    a_layer = 2 * of.n_embd + of.n_embd * of.n_experts
    if of.architecture in ("gemma2", "gemma3"):
        a_layer += 2 * of.n_embd
    if of.architecture in ("qwen2", "qwen2moe"):
        a_layer += of.q_width + 2 * of.kv_width
    return of.n_layers * a_layer + of.n_embd


def type_of(matrix: Matrix, quantisation: str, of: Geometry) -> str:
    """The type that llama.cpp's quantiser takes for it, without an importance matrix."""
    base = BASE_TYPES[quantisation]
    if base in _FLOATS:
        return base
    chosen = _head(base, quantisation, matrix) if _makes_logits(matrix, of) else _inner(base, quantisation, matrix, of)
    block = TENSOR_TYPES[TYPE_IDS[chosen]][1]
    if matrix.n_in % block:
        chosen = _NARROWER.get(chosen, chosen)
    return chosen if matrix.n_in % TENSOR_TYPES[TYPE_IDS[chosen]][1] == 0 else "F16"


def _makes_logits(matrix: Matrix, of: Geometry) -> bool:
    return matrix.role == "output" or (of.tied and matrix.role == "embedding")


def _head(base: str, quantisation: str, matrix: Matrix) -> str:
    if matrix.n_in % TENSOR_TYPES[TYPE_IDS[base]][1] or base == "Q8_0":
        return "Q8_0"
    return "Q5_K" if quantisation == "IQ2_M" else "Q6_K"


def _inner(base: str, quantisation: str, matrix: Matrix, of: Geometry) -> str:
    """The type of anything but the matrix that makes logits."""
    shares_values = of.q_width >= 4 * of.kv_width
    first_eighth = matrix.layer < of.n_layers // 8
    more = _more_bits(matrix.layer, of.n_layers)
    eight_experts = of.n_experts == 8
    match matrix.role, quantisation:
        case "embedding", "IQ2_M":
            return "IQ3_S"
        case "v" | "qkv", _:
            return _values(base, quantisation, matrix, of, shares_values)
        case "k", _ if eight_experts:
            return "Q4_K" if quantisation == "IQ2_M" else "Q8_0"
        case "down", "Q2_K":
            return "Q3_K"
        case "down", "Q3_K_M":
            return "Q5_K" if matrix.layer < of.n_layers // 16 else "Q4_K"
        case "down", "Q3_K_L":
            return "Q5_K"
        case "down", "Q4_K_M" | "Q5_K_M" if more:
            return "Q6_K"
        case "down", "Q4_K_S" | "IQ4_NL" | "IQ4_XS" if first_eighth:
            return "Q5_K"
        case "down", "IQ3_M" if first_eighth or (eight_experts and more):
            return "Q4_K"
        case "down", "IQ2_M" if first_eighth:
            return "IQ3_S"
        case "o", _:
            return _attention_output(base, quantisation, eight_experts)
    return base


def _values(base: str, quantisation: str, matrix: Matrix, of: Geometry, shares_values: bool) -> str:
    """Values are few where heads share them, and worth more bits."""
    layer = matrix.layer
    if quantisation == "IQ2_M":
        return "Q4_K" if shares_values or of.n_experts >= 4 else "IQ3_S"
    if of.n_experts == 8:
        return "Q8_0"
    chosen = base
    if quantisation == "Q2_K":
        chosen = "Q4_K" if shares_values else "Q3_K"
    elif quantisation == "IQ3_M":
        chosen = "Q4_K"
    elif quantisation == "Q3_K_M":
        chosen = "Q5_K" if layer < 2 else "Q4_K"
    elif quantisation == "Q3_K_L" or (quantisation in ("IQ4_NL", "IQ4_XS") and shares_values):
        chosen = "Q5_K"
    elif quantisation in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, of.n_layers):
        chosen = "Q6_K"
    elif quantisation == "Q4_K_S" and layer < 4:
        chosen = "Q5_K"
    is_70b = of.architecture == "llama" and of.n_layers == 80 and of.q_width != of.kv_width
    return "Q5_K" if is_70b and chosen in ("Q3_K", "Q4_K") else chosen


def _attention_output(base: str, quantisation: str, eight_experts: bool) -> str:
    if eight_experts:
        small = {"Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M", "IQ3_M", "IQ2_M"}
        return "Q5_K" if quantisation in small else base
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K", "IQ2_M": "IQ3_S"}.get(
        quantisation, base
    )


def _more_bits(layer: int, n_layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2
