"""A tiny Gemma 4 and its assistant: a drafter in a file of its own that reads the last layers of the target's cache."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from tiny_gguf import write_tiny
from tiny_heads import as_tensor, least_squares, matrix_of, said

from edgellm.export.convert.gguf_copy import raw_entries
from edgellm.export.convert.gguf_writer import PlannedTensor, f32, string, u32, write_gguf
from edgellm.memory.gguf import read_header

SLIDES = (True, True, True, False)  # of the target's layers
N_EMBD, N_OWN, N_FF, N_HEADS, HEAD_DIM = (
    64,
    96,
    128,
    4,
    64,
)  # HEAD_DIM: of a layer that does not slide; others have half
WINDOW = 64


def write_gemma4(path: Path, *, depth: float = 0.12, n_vocab: int = 320, seed: int = 0, **changed: bytes) -> Path:
    """Write a target; `depth`: how much its layers add to what the embedding says; `changed`: entries to write."""
    rng = np.random.default_rng(seed)
    entries = _entries(path, "gemma4", SLIDES, N_EMBD, n_vocab) | {f"gemma4.{k}": v for k, v in changed.items()}
    tensors = _layers(rng, SLIDES, N_EMBD, depth)
    for layer, sliding in enumerate(SLIDES):
        width = HEAD_DIM // 2 if sliding else HEAD_DIM
        for name in ("k", "v"):
            tensors.append(_random(rng, f"blk.{layer}.attn_{name}.weight", N_EMBD, 2 * width))
        tensors.append(as_tensor(f"blk.{layer}.attn_k_norm.weight", np.ones(width)))
    tensors += [_random(rng, name, N_EMBD, n_vocab) for name in ("token_embd.weight", "output.weight")]
    tensors.append(as_tensor("output_norm.weight", np.full(N_EMBD, 6.0)))
    write_gguf(path, entries, tensors)
    return path


def write_assistant(path: Path, target: Path, *, fitted: bool = True, seed: int = 1, **changed: bytes) -> Path:
    """Write an assistant for a target, and fit it to what that says; its layers add nothing."""
    rng = np.random.default_rng(seed)
    output = matrix_of(read_header(target), "output.weight")
    slides, n_vocab = (True, False), len(output)
    first = rng.standard_normal((N_OWN, 2 * N_EMBD)) * 0.08
    if fitted:
        x, y = said(target, n_texts=12, n_tokens=64, seed=0, normed=False, scale=float(np.sqrt(N_EMBD)))
        first = np.concatenate([least_squares(x, y), np.zeros((N_OWN - N_EMBD, 2 * N_EMBD))])
    own = np.concatenate([output, np.zeros((n_vocab, N_OWN - N_EMBD), np.float32)], 1)
    back = np.concatenate([np.eye(N_EMBD), np.zeros((N_EMBD, N_OWN - N_EMBD))], 1) * np.sqrt(N_EMBD / N_OWN)
    entries = _entries(path, "gemma4-assistant", slides, N_OWN, n_vocab)
    entries |= {
        "gemma4-assistant.embedding_length_out": u32(N_EMBD),
        "gemma4-assistant.nextn_predict_layers": u32(len(slides)),
    }
    entries |= {f"gemma4-assistant.{key}": value for key, value in changed.items()}
    tensors = [
        *_layers(rng, slides, N_OWN, 0.0),
        as_tensor("nextn.pre_projection.weight", first),
        as_tensor("nextn.post_projection.weight", back),
        as_tensor("token_embd.weight", own),
        as_tensor("output_norm.weight", np.full(N_OWN, 6.0)),
    ]
    write_gguf(path, entries, tensors)
    return path


def _entries(path: Path, architecture: str, slides: tuple[bool, ...], n_embd: int, n_vocab: int) -> dict[str, bytes]:
    words = write_tiny(path.with_suffix(".words"), n_vocab=n_vocab)
    kept = {key: value for key, value in raw_entries(words) if key.startswith("tokenizer.")}
    words.unlink()
    numbers = {
        "block_count": len(slides),
        "context_length": 32_768,
        "embedding_length": n_embd,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEADS,
        "attention.head_count_kv": 2,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.key_length_swa": HEAD_DIM // 2,
        "attention.value_length_swa": HEAD_DIM // 2,
        "attention.sliding_window": WINDOW,
        "attention.shared_kv_layers": 0,
        "rope.dimension_count": HEAD_DIM,
        "rope.dimension_count_swa": HEAD_DIM // 2,
        "embedding_length_per_layer_input": 0,
    }
    return {
        "general.architecture": string(architecture),
        **{f"{architecture}.{key}": u32(value) for key, value in numbers.items()},
        f"{architecture}.attention.layer_norm_rms_epsilon": f32(1e-6),
        f"{architecture}.attention.sliding_window_pattern": booleans(slides),
        **kept,
    }


def booleans(values: tuple[bool, ...]) -> bytes:
    """An entry that is an array of them."""
    return struct.pack("<IIQ", 9, 7, len(values)) + bytes(values)


def _layers(rng: np.random.Generator, slides: tuple[bool, ...], n_embd: int, depth: float) -> list[PlannedTensor]:
    tensors = [as_tensor("rope_freqs.weight", np.ones(HEAD_DIM // 2))]
    for layer, sliding in enumerate(slides):
        width = HEAD_DIM // 2 if sliding else HEAD_DIM
        at = f"blk.{layer}"
        tensors += [
            _random(rng, f"{at}.attn_q.weight", n_embd, N_HEADS * width),
            _random(rng, f"{at}.attn_output.weight", N_HEADS * width, n_embd),
            _random(rng, f"{at}.ffn_gate.weight", n_embd, N_FF),
            _random(rng, f"{at}.ffn_up.weight", n_embd, N_FF),
            _random(rng, f"{at}.ffn_down.weight", N_FF, n_embd),
            as_tensor(f"{at}.attn_q_norm.weight", np.ones(width)),
            as_tensor(f"{at}.layer_output_scale.weight", np.ones(1)),
        ]
        tensors += [as_tensor(f"{at}.{name}.weight", np.ones(n_embd)) for name in ("attn_norm", "ffn_norm")]
        for name in ("post_attention_norm", "post_ffw_norm"):
            tensors.append(as_tensor(f"{at}.{name}.weight", np.full(n_embd, depth)))
    return tensors


def _random(rng: np.random.Generator, name: str, n_in: int, n_out: int) -> PlannedTensor:
    return as_tensor(name, rng.standard_normal((n_out, n_in)) * 0.08)
