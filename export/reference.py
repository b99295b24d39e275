"""The models' arithmetic once more, in plain numpy, to check an export against.

It shares nothing with the way to GGUF but the reading of the files: Hub tensor names, Hub conventions, float32
throughout, one layer in memory at a time. Slow and clear on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.export.checkpoint import CHUNK_BYTES, StoredTensor, read_checkpoint
from edgellm.export.facts import UnsupportedModel, read_config

Floats = NDArray[np.float32]


class NoReference(ValueError):
    """A model whose arithmetic is not known here."""


def reference_logits(folder: Path, tokens: Sequence[int]) -> Floats:
    """The logits behind each of `tokens`, shape (n_tokens, n_vocab), of the model in a Hub folder.

    Raises:
        NoReference: a model that this module does not know.
    """
    try:
        family, config = read_config(folder)
    except UnsupportedModel as error:
        raise NoReference(str(error)) from error
    stored = read_checkpoint(folder)
    prefix = next(name.removesuffix("embed_tokens.weight") for name in stored if name.endswith("embed_tokens.weight"))

    def weight(name: str) -> Floats | None:
        tensor = stored.get(name)
        return None if tensor is None else _floats(tensor.read(), tensor).reshape(tensor.shape)

    gemma, eps = family.gemma, float(config["rms_norm_eps"])
    embedding = stored[f"{prefix}embed_tokens.weight"]
    x = np.zeros((len(tokens), embedding.shape[1]), np.float32)
    for first, rows in _rows(embedding):
        for position, token in enumerate(tokens):
            if first <= token < first + len(rows):
                x[position] = rows[token - first]
    if gemma:
        x = x * np.float32(math.sqrt(config["hidden_size"]))
    for layer in range(config["num_hidden_layers"]):
        at = f"{prefix}layers.{layer}."

        def part(name: str, at: str = at) -> Floats | None:
            return weight(f"{at}{name}.weight")

        def norm(y: Floats, name: str, part: Callable[[str], Floats | None] = part) -> Floats:
            return _rms_norm(y, _there(part(name)), eps, gemma)

        def linear(y: Floats, name: str, at: str = at) -> Floats:
            bias = weight(f"{at}{name}.bias")
            out = y @ _there(weight(f"{at}{name}.weight")).T
            return out if bias is None else out + bias

        y = _attention(norm(x, "input_layernorm"), family.arch, config, layer, linear, part, eps)
        x = x + (norm(y, "post_attention_layernorm") if gemma else y)
        y = norm(x, "pre_feedforward_layernorm" if gemma else "post_attention_layernorm")
        if family.arch == "phi3":
            gate, up = np.split(linear(y, "mlp.gate_up_proj"), 2, axis=-1)
        else:
            gate, up = linear(y, "mlp.gate_proj"), linear(y, "mlp.up_proj")
        y = linear((_gelu(gate) if gemma else gate / (1 + np.exp(-gate))) * up, "mlp.down_proj")
        x = x + (norm(y, "post_feedforward_layernorm") if gemma else y)
    x = _rms_norm(x, _there(weight(f"{prefix}norm.weight")), eps, gemma)
    heads = [tensor for name, tensor in stored.items() if name.removeprefix("language_model.") == "lm_head.weight"]
    head = heads[0] if heads else embedding
    out: Floats = np.concatenate([x @ rows.T for _, rows in _rows(head)], axis=1)
    cap = config.get("final_logit_softcapping")
    return np.tanh(out / cap) * np.float32(cap) if cap else out


def _floats(data: bytes, tensor: StoredTensor) -> Floats:
    if tensor.type == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if tensor.type == "F32" else "<f2").astype(np.float32)


def _rows(tensor: StoredTensor) -> Iterator[tuple[int, Floats]]:
    """A matrix in pieces of some megabytes: (number of the first row, rows)."""
    n_rows, width = tensor.shape
    row_bytes = tensor.n_bytes // n_rows
    first = 0
    for chunk in tensor.chunks(max(1, CHUNK_BYTES // row_bytes) * row_bytes):
        rows = _floats(chunk, tensor).reshape(-1, width)
        yield first, rows
        first += len(rows)


def _there(weight: Floats | None) -> Floats:
    assert weight is not None
    return weight


def _rms_norm(x: Floats, weight: Floats, eps: float, gemma: bool) -> Floats:
    y: Floats = (
        x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * (weight + 1 if gemma else weight)
    )
    return y


def _gelu(x: Floats) -> Floats:
    y: Floats = 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
    return y


def _attention(
    x: Floats,
    arch: str,
    config: Mapping[str, Any],
    layer: int,
    linear: Callable[[Floats, str], Floats],
    part: Callable[[str], Floats | None],
    eps: float,
) -> Floats:
    n, n_heads = len(x), config["num_attention_heads"]
    n_kv = config.get("num_key_value_heads") or n_heads
    dim = config.get("head_dim") or config["hidden_size"] // n_heads
    if part("self_attn.qkv_proj") is not None:
        q, k, v = np.split(linear(x, "self_attn.qkv_proj"), [n_heads * dim, (n_heads + n_kv) * dim], axis=-1)
    else:
        q, k, v = (linear(x, f"self_attn.{name}_proj") for name in "qkv")
    q, k, v = q.reshape(n, n_heads, dim), k.reshape(n, n_kv, dim), v.reshape(n, n_kv, dim)
    q_norm, k_norm = part("self_attn.q_norm"), part("self_attn.k_norm")
    if q_norm is not None and k_norm is not None:
        q, k = (_rms_norm(x, weight, eps, arch == "gemma3") for x, weight in ((q, q_norm), (k, k_norm)))
    sliding = _is_sliding(arch, config, layer)
    cos, sin = _rotation(arch, config, n, dim, local=sliding and arch == "gemma3")
    q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
    k, v = np.repeat(k, n_heads // n_kv, axis=1), np.repeat(v, n_heads // n_kv, axis=1)
    scale = 1 / math.sqrt(config.get("query_pre_attn_scalar") or dim)
    scores = np.einsum("qhd,khd->hqk", q, k) * np.float32(scale)
    if config.get("attn_logit_softcapping"):
        cap = np.float32(config["attn_logit_softcapping"])
        scores = np.tanh(scores / cap) * cap
    ages = np.arange(n)[:, None] - np.arange(n)[None, :]  # of the key, seen from the query
    hidden = (ages < 0) | (ages >= config["sliding_window"] if sliding else False)
    scores = np.where(hidden, np.float32(-np.inf), scores)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return linear(np.einsum("hqk,khd->qhd", scores, v).reshape(n, n_heads * dim), "self_attn.o_proj")


def _is_sliding(arch: str, config: Mapping[str, Any], layer: int) -> bool:
    if arch not in {"gemma2", "gemma3"}:
        return False  # elsewhere a file states no more context than its window
    if config.get("layer_types"):
        return bool(config["layer_types"][layer] == "sliding_attention")
    return (layer + 1) % (config.get("sliding_window_pattern") or 2) != 0


def _rotation(arch: str, config: Mapping[str, Any], n: int, dim: int, *, local: bool) -> tuple[Floats, Floats]:
    """Cosines and sines of each position and frequency, shape (n, rotated / 2)."""
    told = dict(config.get("rope_parameters") or {})
    if arch == "gemma3":
        told = {} if local else dict(told.get("full_attention") or {}) | (config.get("rope_scaling") or {})
        of_local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
        base = of_local.get("rope_theta") or config.get("rope_local_base_freq") or 1e4
        base = float(base if local else told.get("rope_theta") or config.get("rope_theta") or 1e6)
    else:
        told = dict(config.get("rope_scaling") or told)
        base = float(told.get("rope_theta") or config.get("rope_theta") or 1e4)
    kind = told.get("rope_type") or told.get("type") or "default"
    rotated = int(dim * (told.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0))
    frequencies = base ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    amplitude, most = 1.0, config["max_position_embeddings"]
    original = told.get("original_max_position_embeddings") or most
    if kind == "linear":
        frequencies = frequencies / told["factor"]
    elif kind == "llama3":
        turns = original * frequencies / (2 * math.pi)  # within the context of the training
        low, high = told["low_freq_factor"], told["high_freq_factor"]
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = frequencies * (smooth + (1 - smooth) / told["factor"])
    elif kind in {"longrope", "su"}:
        original = config["original_max_position_embeddings"] if arch == "phi3" else original
        stretch = told.get("factor") or most / original
        frequencies = frequencies / np.asarray(told["short_factor" if n <= original else "long_factor"])
        amplitude = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    elif kind == "yarn":
        # The dimension whose wave turns so often within the original context (arXiv:2309.00071, section 3.2).
        first, last = (rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1))
        first, last = max(math.floor(first), 0), min(math.ceil(last), rotated - 1)
        kept = 1 - np.clip((np.arange(rotated // 2) - first) / max(last - first, 0.001), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / told["factor"])
        scale, all_dim = told.get("mscale"), told.get("mscale_all_dim")
        grown = 0.1 * math.log(told["factor"])
        amplitude = (grown * scale + 1) / (grown * all_dim + 1) if scale and all_dim else grown + 1
    elif kind != "default":
        raise NoReference(f"the reference does not know rope scaling {kind!r}")
    if kind in {"yarn", "longrope", "su"} and told.get("attention_factor") is not None:
        amplitude = float(told["attention_factor"])
    angles = np.arange(n)[:, None] * frequencies[None, :]
    return (np.cos(angles) * amplitude).astype(np.float32), (np.sin(angles) * amplitude).astype(np.float32)


def _rotated(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Pairs (i, i + rotated / 2) of each head turned by their angle; x has shape (n, heads, dim)."""
    half = cos.shape[1]
    left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1)
