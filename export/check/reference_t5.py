"""T5's arithmetic once more, in plain numpy, to check an export against: Hub tensor names and conventions, float32.

Nothing is shared with the way to GGUF but the reading of the weights' files. As transformers 5 has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.export.check.reference_config import NoReference
from edgellm.export.read.checkpoint import StoredTensor, read_checkpoint

Floats = NDArray[np.float32]
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_TYPES = {"t5", "mt5", "umt5"}


def t5_logits(folder: Path, tokens: Sequence[int], rows: Sequence[int]) -> Floats:
    """The logits of a T5 whose encoder reads `tokens`, and whose decoder reads them one place later.

    Args:
        rows: positions of the decoder whose logits are wanted, in order.

    Returns:
        Shape (n_rows, n_vocab).

    Raises:
        NoReference: a model that this module does not know.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type", "t5") not in _TYPES:
        raise NoReference(f"the reference does not know {config.get('model_type')!r}")
    model = _T5(config, read_checkpoint(folder))
    encoded = model.half("encoder", tokens, None)
    start = int(config.get("decoder_start_token_id") or 0)
    x = model.half("decoder", [start, *tokens[:-1]], encoded)[np.asarray(rows)]
    return model.head(x)


class _T5:
    def __init__(self, config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> None:
        self._config, self._stored = config, stored
        try:
            self._n_heads, self._head_dim = int(config["num_heads"]), int(config["d_kv"])
            self._n_layers = int(config["num_layers"])
        except (KeyError, TypeError, ValueError) as error:
            raise NoReference(f"config.json lacks {error}") from error
        self._eps = np.float32(config.get("layer_norm_epsilon") or 1e-6)

    def half(self, name: str, tokens: Sequence[int], encoded: Floats | None) -> Floats:
        """The states behind the last norm, shape (n_tokens, d_model)."""
        n_layers = self._n_layers if encoded is None else int(self._config.get("num_decoder_layers") or self._n_layers)
        x: Floats = self._embedding()[np.asarray(tokens)]
        bias = self._bias(f"{name}.block.0.layer.0.SelfAttention", len(tokens), bidirectional=encoded is None)
        for layer in range(n_layers):
            at = f"{name}.block.{layer}.layer."
            if layer and self._has(f"{at}0.SelfAttention.relative_attention_bias.weight"):
                bias = self._bias(f"{at}0.SelfAttention", len(tokens), bidirectional=encoded is None)
            y = self._norm(x, f"{at}0.layer_norm")
            x = x + self._attention(y, y, f"{at}0.SelfAttention", bias)
            if encoded is not None:
                x = x + self._attention(self._norm(x, f"{at}1.layer_norm"), encoded, f"{at}1.EncDecAttention", None)
            last = 1 if encoded is None else 2
            x = x + self._feed_forward(self._norm(x, f"{at}{last}.layer_norm"), f"{at}{last}.DenseReluDense")
        return self._norm(x, f"{name}.final_layer_norm")

    def head(self, x: Floats) -> Floats:
        kind, config = self._config.get("model_type", "t5"), self._config
        scales = config.get("scale_decoder_outputs")
        if scales is None:
            scales = config.get("tie_word_embeddings") is not False
        if scales and kind != "mt5":
            x = x * np.float32(x.shape[1] ** -0.5)
        weight = self._of("lm_head.weight") if self._has("lm_head.weight") else self._embedding()
        out: Floats = x @ weight.T
        return out

    def _embedding(self) -> Floats:
        return self._of(next((name for name in _EMBEDDINGS if self._has(name)), _EMBEDDINGS[0]))

    def _has(self, name: str) -> bool:
        return name in self._stored

    def _of(self, name: str) -> Floats:
        tensor = self._stored.get(name)
        if tensor is None:
            raise NoReference(f"the checkpoint lacks {name}")
        data = tensor.read()
        if tensor.type == "BF16":
            found = (np.frombuffer(data, "<u2").astype("<u4") << 16).view(np.float32)
        else:
            found = np.frombuffer(data, "<f4" if tensor.type == "F32" else "<f2").astype(np.float32)
        return found.reshape(tensor.shape)

    def _norm(self, x: Floats, name: str) -> Floats:
        y: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self._eps) * self._of(f"{name}.weight")
        return y

    def _bias(self, name: str, n: int, *, bidirectional: bool) -> Floats:
        """Added to scores, shape (n_heads, n, n); minus infinity where a token may not look."""
        table = self._of(f"{name}.relative_attention_bias.weight")  # (n_buckets, n_heads)
        distances = np.arange(n)[None, :] - np.arange(n)[:, None]  # of the key, for the query
        n_buckets = len(table) // 2 if bidirectional else len(table)
        far = np.abs(distances) if bidirectional else np.maximum(-distances, 0)
        n_exact, most = n_buckets // 2, int(self._config.get("relative_attention_max_distance") or 128)
        logs = np.log(np.maximum(far, 1).astype(np.float32) / n_exact) / np.float32(math.log(most / n_exact))
        large = np.minimum(n_exact + (logs * (n_buckets - n_exact)).astype(np.int64), n_buckets - 1)
        buckets = np.where(far < n_exact, far, large) + (n_buckets * (distances > 0) if bidirectional else 0)
        bias: Floats = table[buckets].transpose(2, 0, 1)
        return bias if bidirectional else np.where(distances > 0, np.float32(-np.inf), bias)

    def _attention(self, x: Floats, to: Floats, name: str, bias: Floats | None) -> Floats:
        def heads(y: Floats, part: str) -> Floats:
            return (y @ self._of(f"{name}.{part}.weight").T).reshape(len(y), self._n_heads, self._head_dim)

        scores = np.einsum("qhd,khd->hqk", heads(x, "q"), heads(to, "k"), optimize=True)  # not divided by a root
        scores = scores if bias is None else scores + bias
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, heads(to, "v"), optimize=True).reshape(len(x), -1)
        out: Floats = mixed @ self._of(f"{name}.o.weight").T
        return out

    def _feed_forward(self, x: Floats, name: str) -> Floats:
        kind = self._config.get("feed_forward_proj") or ("relu" if self._has(f"{name}.wi.weight") else "gated-gelu")
        if kind == "relu":
            inside = np.maximum(x @ self._of(f"{name}.wi.weight").T, 0)
        elif kind == "gated-gelu":
            gate = x @ self._of(f"{name}.wi_0.weight").T
            root = np.float32(math.sqrt(2 / math.pi))
            gate = 0.5 * gate * (1 + np.tanh(root * (gate + np.float32(0.044715) * gate**3)))
            inside = gate * (x @ self._of(f"{name}.wi_1.weight").T)
        else:
            raise NoReference(f"the reference does not know the feed-forward network {kind!r}")
        out: Floats = inside @ self._of(f"{name}.wo.weight").T
        return out
