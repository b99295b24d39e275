"""The models' arithmetic once more, in plain numpy, to check an export against.

It shares nothing with the way to GGUF but the reading of the weights' files: Hub tensor names, Hub conventions,
float32 throughout, one layer in memory at a time. Slow and clear on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.export.check.reference_config import NoReference as NoReference
from edgellm.export.check.reference_config import ReferenceConfig, Rope, read_reference_config
from edgellm.export.read.checkpoint import StoredTensor, read_checkpoint
from edgellm.memory.files import CHUNK_BYTES

Floats = NDArray[np.float32]
_N_QUERIES = 256  # whose scores are in memory at once


def reference_logits(folder: Path, tokens: Sequence[int], rows: Sequence[int] | None = None) -> Floats:
    """The logits behind `tokens` of the model in a Hub folder.

    Args:
        rows: positions in `tokens` whose logits are wanted, in order. None: all of them.

    Returns:
        Shape (n_rows, n_vocab).

    Raises:
        NoReference: a model that this module does not know.
    """
    config = read_reference_config(folder)
    weights = _Weights(folder)
    x = weights.embedded(tokens) * np.float32(config.embedding_scale)
    for layer in range(config.n_layers):
        x = _layer(x, config, layer, weights)
    if rows is not None:
        x = x[np.asarray(rows)]
    x = _rms_norm(x, weights.of(f"{weights.prefix}norm.weight"), config)
    out: Floats = np.concatenate([x @ part.T for _, part in _row_blocks(weights.head(config))], axis=1)
    return _capped(out, config.logit_cap)


class _Weights:
    """The tensors of a checkpoint by their Hub names, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._stored = read_checkpoint(folder)
        self._embedding = next((name for name in self._stored if name.endswith("embed_tokens.weight")), "")
        if not self._embedding:
            raise NoReference("the reference finds no embed_tokens.weight in the checkpoint")
        self.prefix = self._embedding.removesuffix("embed_tokens.weight")

    def of(self, name: str) -> Floats:
        """
        Raises:
            NoReference: the checkpoint lacks it, so that transformers would make it up.
        """
        tensor = self._stored.get(name)
        if tensor is None:
            raise NoReference(f"the checkpoint lacks {name}")
        return _floats(tensor.read(), tensor).reshape(tensor.shape)

    def embedded(self, tokens: Sequence[int]) -> Floats:
        """The rows of `tokens`, shape (n_tokens, n_embd)."""
        table = self._stored[self._embedding]
        x = np.zeros((len(tokens), table.shape[1]), np.float32)
        for first, rows in _row_blocks(table):
            for position, token in enumerate(tokens):
                if first <= token < first + len(rows):
                    x[position] = rows[token - first]
        return x

    def head(self, config: ReferenceConfig) -> StoredTensor:
        """A head of its own counts, whatever config.json says."""
        for name, tensor in self._stored.items():
            if name == "lm_head.weight" or name.endswith(".lm_head.weight"):
                return tensor
        if not config.is_tied:
            raise NoReference("the checkpoint lacks lm_head.weight, and config.json does not say tie_word_embeddings")
        return self._stored[self._embedding]


def _layer(x: Floats, config: ReferenceConfig, layer: int, weights: _Weights) -> Floats:
    at = f"{weights.prefix}layers.{layer}."

    def norm(y: Floats, name: str) -> Floats:
        return _rms_norm(y, weights.of(f"{at}{name}.weight"), config)

    def linear(y: Floats, name: str) -> Floats:
        out = y @ weights.of(f"{at}{name}.weight").T
        return out + weights.of(f"{at}{name}.bias") if name in config.biased else out

    y = _attention(norm(x, "input_layernorm"), config, layer, linear, norm)
    x = x + (norm(y, "post_attention_layernorm") if config.is_gemma else y)
    y = norm(x, "pre_feedforward_layernorm" if config.is_gemma else "post_attention_layernorm")
    if config.model_type == "phi3":
        gate, up = np.split(linear(y, "mlp.gate_up_proj"), 2, axis=-1)
    else:
        gate, up = linear(y, "mlp.gate_proj"), linear(y, "mlp.up_proj")
    y = linear(_activated(gate, config.activation) * up, "mlp.down_proj")
    return x + (norm(y, "post_feedforward_layernorm") if config.is_gemma else y)


def _floats(data: bytes, tensor: StoredTensor) -> Floats:
    if tensor.type == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if tensor.type == "F32" else "<f2").astype(np.float32)


def _row_blocks(tensor: StoredTensor) -> Iterator[tuple[int, Floats]]:
    """A matrix in pieces of some megabytes: (number of the first row, rows)."""
    n_rows, width = tensor.shape
    row_bytes = tensor.n_bytes // n_rows
    first = 0
    for chunk in tensor.chunks(max(1, CHUNK_BYTES // row_bytes) * row_bytes):
        rows = _floats(chunk, tensor).reshape(-1, width)
        yield first, rows
        first += len(rows)


def _rms_norm(x: Floats, weight: Floats, config: ReferenceConfig) -> Floats:
    root = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(config.eps))
    y: Floats = x / root * (weight + np.float32(config.norm_offset))
    return y


def _capped(x: Floats, cap: float | None) -> Floats:
    return x if cap is None else np.tanh(x / np.float32(cap)) * np.float32(cap)


def _activated(x: Floats, name: str) -> Floats:
    y: Floats
    if name in {"silu", "swish"}:
        y = x / (1 + np.exp(-x))
    elif name == "relu":
        y = np.maximum(x, 0)
    elif name in {"gelu_pytorch_tanh", "gelu_new", "gelu_fast"}:
        y = 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
    elif name == "gelu":
        y = 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float32])(x * np.float32(math.sqrt(0.5))))
    else:
        raise NoReference(f"the reference does not know the activation {name!r}")
    return y


def _attention(
    x: Floats,
    config: ReferenceConfig,
    layer: int,
    linear: Callable[[Floats, str], Floats],
    norm: Callable[[Floats, str], Floats],
) -> Floats:
    n, n_heads, n_kv, dim = len(x), config.n_heads, config.n_kv_heads, config.head_dim
    if config.model_type == "phi3":
        q, k, v = np.split(linear(x, "self_attn.qkv_proj"), [n_heads * dim, (n_heads + n_kv) * dim], axis=-1)
    else:
        q, k, v = (linear(x, f"self_attn.{name}_proj") for name in "qkv")
    q, k, v = q.reshape(n, n_heads, dim), k.reshape(n, n_kv, dim), v.reshape(n, n_kv, dim)
    if config.has_qk_norms:
        q, k = norm(q, "self_attn.q_norm"), norm(k, "self_attn.k_norm")
    cos, sin = _rotation(config.ropes[layer], n)
    q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
    out = np.empty_like(q)
    # Heads of one key together, and few queries at a time: the scores of a long text would not fit.
    q = q.reshape(n, n_kv, n_heads // n_kv, dim)
    for first in range(0, n, _N_QUERIES):
        last = min(first + _N_QUERIES, n)
        start = 0 if config.windows[layer] is None else max(0, first - int(config.windows[layer] or 0))
        weights = _attention_weights(q[first:last], k[start:last], first, start, config, layer)
        out[first:last] = np.einsum("grqk,kgd->qgrd", weights, v[start:last], optimize=True).reshape(-1, n_heads, dim)
    return linear(out.reshape(n, n_heads * dim), "self_attn.o_proj")


def _attention_weights(q: Floats, k: Floats, first: int, start: int, config: ReferenceConfig, layer: int) -> Floats:
    """Of queries from position `first` to keys from `start`, shape (n_kv_heads, heads of each, n_queries, n_keys)."""
    scores: Floats = np.einsum("qgrd,kgd->grqk", q, k, optimize=True) * np.float32(config.query_scale)
    scores = _capped(scores, config.attention_cap)
    ages = (first + np.arange(len(q)))[:, None] - (start + np.arange(len(k)))[None, :]  # of the key, for the query
    window = config.windows[layer]
    hidden = ages < 0 if window is None else (ages < 0) | (ages >= window)
    scores = np.where(hidden, np.float32(-np.inf), scores)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Floats = scores / scores.sum(axis=-1, keepdims=True)
    return weights


def _rotation(rope: Rope, n: int) -> tuple[Floats, Floats]:
    """Cosines and sines of each position and frequency, shape (n, n_rotated / 2)."""
    frequencies, amplitude = rope.at(n)
    angles = np.arange(n)[:, None] * frequencies[None, :]
    return (np.cos(angles) * amplitude).astype(np.float32), (np.sin(angles) * amplitude).astype(np.float32)


def _rotated(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Pairs (i, i + rotated / 2) of each head turned by their angle; x has shape (n, heads, dim)."""
    half = cos.shape[1]
    left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1)
