"""Which layers slide is decided as llama.cpp decides it, where the file names a window and where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from tiny_gguf import ARCHITECTURES, write_tiny
from tiny_parts import Tensors, Tiny, attention_metadata, output_norm

from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import read_header
from edgellm.memory.kv import cache_bytes
from edgellm.memory.shape import UnknownShape, from_header
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.bringup.probe import probe

SETTINGS = [ContextSettings(8192, 64, 3), ContextSettings(300, 32, 3)]


def model(path: Path, architecture: str, n_layers: int, window: int | None, pattern: Any) -> Path:
    """A tiny model of an architecture with windows; `pattern`: a list for the layers, a group's size, or None."""

    def write(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
        attention_metadata(writer, tiny, head_dim=tiny.head_dim)
        if window is not None:
            writer.add_sliding_window(window)
        if isinstance(pattern, int):
            writer.add_uint32(f"{architecture}.attention.sliding_window_pattern", pattern)
        elif pattern is not None:
            writer.add_sliding_window_pattern(pattern)
        if architecture == "cohere2":
            writer.add_logit_scale(1.0)
            writer.add_layer_norm_eps(1e-6)
        output_norm(tensors, tiny)
        for layer in range(tiny.n_layers):
            _layer(tensors, tiny, layer, architecture)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, architecture, write)
        return write_tiny(path, architecture, n_layers=n_layers, n_embd=128)


def test_a_window_that_no_layer_has_is_refused(tmp_path: Path) -> None:
    """llama.cpp aborts on it."""
    for index, (architecture, pattern) in enumerate([("gemma3", 1), ("gemma2", [False] * 8)]):
        path = model(tmp_path / f"{index}.gguf", architecture, 8, 100, pattern)
        with pytest.raises(UnknownShape, match="no layer"):
            from_header(read_header(path))


def _layer(tensors: Tensors, tiny: Tiny, layer: int, architecture: str) -> None:
    n_q, n_kv = tiny.n_heads * tiny.head_dim, tiny.n_kv_heads * tiny.head_dim
    matrices = {
        "attn_q": (tiny.n_embd, n_q), "attn_k": (tiny.n_embd, n_kv), "attn_v": (tiny.n_embd, n_kv),
        "attn_output": (n_q, tiny.n_embd), "ffn_gate": (tiny.n_embd, tiny.n_ff), "ffn_up": (tiny.n_embd, tiny.n_ff),
        "ffn_down": (tiny.n_ff, tiny.n_embd),
    }  # fmt: skip
    norms = {
        "cohere2": ["attn_norm"], "exaone4": ["post_attention_norm", "post_ffw_norm"],
        "gemma2": ["attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"],
        "gemma3": ["attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"],
    }.get(architecture, ["attn_norm", "ffn_norm"])  # fmt: skip
    for name, shape in matrices.items():
        tensors.add(f"blk.{layer}.{name}.weight", *shape)
    for name in norms:
        tensors.add(f"blk.{layer}.{name}.weight", tiny.n_embd)
    if architecture in ("exaone4", "gemma3"):
        for name in ("attn_q_norm", "attn_k_norm"):
            tensors.add(f"blk.{layer}.{name}.weight", tiny.head_dim)
    if architecture == "qwen2":
        for name, width in (("q", n_q), ("k", n_kv), ("v", n_kv)):
            tensors.add(f"blk.{layer}.attn_{name}.bias", width)


@pytest.mark.parametrize(
    ("architecture", "n_layers", "window", "pattern"),
    [
        ("gemma2", 8, None, None), ("gemma2", 8, 100, None), ("gemma2", 8, 100, 3), ("gemma2", 8, 100, 0),
        ("gemma2", 8, 100, [True] * 3 + [False] * 5),
        ("gemma3", 8, None, None), ("gemma3", 8, 0, None), ("gemma3", 8, 100, 3),
        ("exaone4", 8, 100, None), ("exaone4", 8, None, None), ("exaone4", 64, None, None), ("exaone4", 64, 100, None),
        ("cohere2", 8, 100, None), ("cohere2", 8, None, None),
        ("llama", 8, 100, None), ("qwen2", 8, 100, None),
    ],
)  # fmt: skip
def test_a_cache_with_windows_agrees_to_the_byte(
    architecture: str, n_layers: int, window: int | None, pattern: Any, tmp_path: Path
) -> None:
    path = model(tmp_path / "model.gguf", architecture, n_layers, window, pattern)
    try:
        there = [sizes.kv_bytes for sizes in probe(path, SETTINGS)]
    except LoadError:
        with pytest.raises(UnknownShape):  # what llama.cpp refuses is not planned either
            from_header(read_header(path))
        return
    shape = from_header(read_header(path))
    assert [cache_bytes(shape, settings) for settings in SETTINGS] == there
