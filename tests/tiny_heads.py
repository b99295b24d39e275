"""Tiny models with a draft head inside (MTP), which is fitted to what its model says.

`write_with_head(path)` writes a model whose head has learnt nothing; `fit_head(path)` reads what the model goes on with
behind a few tokens, and fits the head's first matrix to it by least squares, which takes a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from tiny_gguf import Tiny, write_tiny

from edgellm.export.convert.gguf_copy import copied, raw_entries
from edgellm.export.convert.gguf_writer import PlannedTensor, u32, write_gguf
from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import GgufHeader, read_header
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel

# What a layer adds to what it was given.
_ADDED = ("attn_output.weight", "ssm_out.weight", "ffn_down.weight", "ffn_down_exps.weight", "ffn_down_shexp.weight")


def write_with_head(
    path: Path, architecture: str = "qwen35", *, depth: float = 0.05, seed: int = 0, **more: Any
) -> Path:
    """Write a model as `write_tiny` does, and a head behind its layers; returns its path.

    Args:
        depth: how much its layers add to what the embedding says; the less, the easier the model is to guess.
        more: as of `write_tiny`.
    """
    base = write_tiny(path.with_suffix(".base"), architecture, seed=seed, **more)
    header = read_header(base)
    tiny = Tiny(**{name: value for name, value in more.items() if name in Tiny.__dataclass_fields__})
    rng = np.random.default_rng(seed + 1)
    entries = dict(raw_entries(base))
    entries[f"{architecture}.block_count"] = u32(tiny.n_layers + 1)
    entries[f"{architecture}.nextn_predict_layers"] = u32(1)
    attends = f"blk.{tiny.n_layers // 4 * 4 - 1}."
    planned = []
    for tensor in header.tensors:
        if tensor.name.endswith(_ADDED):
            planned.append(as_tensor(tensor.name, matrix_of(header, tensor.name) * depth, tensor.type))
        elif tensor.name == "output_norm.weight":  # logits far enough apart that draws are not mere chance
            planned.append(as_tensor(tensor.name, matrix_of(header, tensor.name) * 6.0))
        else:
            planned.append(copied(header, tensor))
    for tensor in header.tensors:
        if tensor.name.startswith(attends):  # a layer like the last that attends, which adds nothing yet
            name = tensor.name.replace(attends, f"blk.{tiny.n_layers}.")
            silent = "output" in name or "down" in name
            values = rng.standard_normal(tensor.shape[::-1], np.float32) * (0.0 if silent else 0.08)
            planned.append(as_tensor(name, values + ("norm" in name), tensor.type))
    planned.append(as_tensor(f"blk.{tiny.n_layers}.nextn.enorm.weight", np.ones(tiny.n_embd)))
    planned.append(as_tensor(f"blk.{tiny.n_layers}.nextn.hnorm.weight", np.ones(tiny.n_embd)))
    first = rng.standard_normal((tiny.n_embd, 2 * tiny.n_embd), np.float32) * 0.08
    planned.append(as_tensor(f"blk.{tiny.n_layers}.nextn.eh_proj.weight", first, more.get("weights", "F32")))
    write_gguf(path, entries, planned)
    base.unlink()
    return path


def fit_head(path: Path, *, n_texts: int = 12, n_tokens: int = 64, noise: float = 0.0, seed: int = 0) -> Path:
    """Fit the head to what its model says, in place; returns `path`.

    Its layer adds nothing, so what is fitted is a map of a token and the state before it to the state behind it.

    Args:
        n_texts, n_tokens: that are read: some tokens at random, then what the model itself goes on with.
        noise: added to what was fitted, as a share of it, so that the head is wrong at times.
    """
    x, y = said(path, n_texts=n_texts, n_tokens=n_tokens, seed=seed)
    fitted = least_squares(x, y)
    rng = np.random.default_rng(seed)
    fitted += rng.standard_normal(fitted.shape) * noise * np.abs(fitted).mean()
    return with_first_matrix(path, fitted)


def with_first_matrix(path: Path, values: NDArray[Any]) -> Path:
    """Put what a head makes of a token (first half of its columns) and a state in its file; returns `path`."""
    header = read_header(path)
    name = next(tensor.name for tensor in header.tensors if tensor.name.endswith("eh_proj.weight"))
    planned = [as_tensor(name, values, t.type) if t.name == name else copied(header, t) for t in header.tensors]
    aside = path.with_suffix(".new")
    write_gguf(aside, dict(raw_entries(path)), planned)
    return aside.replace(path)


def said(
    path: Path, *, n_texts: int, n_tokens: int, seed: int, normed: bool = True, scale: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a head is given of texts that a model goes on with, and the states that it should make of it.

    Args:
        normed: the head brings both to length one first.
        scale: of the embedding, else.

    Returns:
        (n, 2 x n_embd) and (n, n_embd); the second without the weights of the model's last norm.
    """
    model = LlamaModel(path)
    backend = LlamaBackend(model, ContextSettings(n_tokens + 1, n_ubatch=32, n_outputs=1, n_threads=1))
    rng = np.random.default_rng(seed)
    given, states = [], []
    embedding = matrix_of(read_header(path), "token_embd.weight")
    backend.want_hidden_states()
    for _ in range(n_texts):
        backend.truncate(0)
        text = [int(token) for token in rng.integers(0, 256, 4)]
        rows = []
        for i in range(n_tokens):
            logits = backend.forward([text[i]], 1)
            rows.append(backend.hidden_states()[0].copy())
            if i + 1 == len(text):
                text.append(int(logits[0].argmax()))
        for i in range(1, n_tokens):
            token, row = scale * embedding[text[i]], rows[i - 1]
            given.append(np.concatenate([_normed(token), _normed(row)] if normed else [token, row]))
        states += rows[1:]
    backend.close()
    model.close()
    weights = matrix_of(read_header(path), "output_norm.weight")
    return np.array(given, np.float64), np.array(states, np.float64) / weights


def least_squares(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix that makes y of x, (n_y, n_x)."""
    fitted: NDArray[np.float64] = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ y).T
    return fitted


def head_alone(path: Path, to: Path) -> Path:
    """Write the head of a file as a file of its own, without the model's layers; returns `to`."""
    header = read_header(path)
    first = int(header.hparam("block_count")) - 1
    kept = [t for t in header.tensors if not t.name.startswith("blk.") or t.name.startswith(f"blk.{first}.")]
    write_gguf(to, dict(raw_entries(path)), [copied(header, tensor) for tensor in kept])
    return to


def _normed(row: NDArray[np.float32]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = row / np.sqrt((row.astype(np.float64) ** 2).mean() + 1e-6)
    return values


def matrix_of(header: GgufHeader, name: str) -> NDArray[np.float32]:
    """A tensor of a file in floats."""
    tensor = next(tensor for tensor in GGUFReader(header.path).tensors if tensor.name == name)
    return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)


def as_tensor(name: str, values: NDArray[Any], kind: str = "F32") -> PlannedTensor:
    """A tensor to be written, of a type."""
    whole = np.ascontiguousarray(values, np.float32)
    data = quantize(whole, GGMLQuantizationType[kind]).tobytes()
    return PlannedTensor(name, values.shape[::-1], kind, lambda: [data])
