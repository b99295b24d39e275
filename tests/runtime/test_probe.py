"""The formulas of `memory` against llama.cpp's own sizes, over the ways of keeping a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import ARCHITECTURES, write_tiny

from edgellm.memory.buffers import compute_bytes, estimate
from edgellm.memory.context import ContextSettings, KvType
from edgellm.memory.gguf import read_header
from edgellm.memory.kv import UnsupportedCache, cache_bytes
from edgellm.memory.shape import from_header
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.bringup.probe import accelerators, probe

# Proportions of real models, few layers, weights left out of the file.
REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3 8B": ("llama", {"n_embd": 4096, "n_ff": 14336, "n_heads": 32, "n_kv_heads": 8, "n_vocab": 128_256}),
    "SmolLM2 135M": ("llama", {"n_embd": 576, "n_ff": 1536, "n_heads": 9, "n_kv_heads": 3, "n_vocab": 49_152}),
    "Qwen2.5 1.5B": ("qwen2", {"n_embd": 1536, "n_ff": 8960, "n_heads": 12, "n_kv_heads": 2, "n_vocab": 151_936}),
    "Qwen3 4B": (
        "qwen3",
        {"n_embd": 2560, "n_ff": 9728, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "n_vocab": 151_936},
    ),
    "Gemma 3 4B": (
        "gemma3",
        {
            "n_embd": 2560, "n_ff": 10_240, "n_heads": 8, "n_kv_heads": 4, "head_dim": 256, "window": 1024,
            "n_layers": 12, "n_vocab": 262_144,
        },
    ),
    "Phi-3 mini": ("phi3", {"n_embd": 3072, "n_ff": 8192, "n_heads": 32, "n_kv_heads": 32, "n_vocab": 32_064}),
    "Qwen3 30B-A3B": (
        "qwen3moe",
        {
            "n_embd": 2048, "n_ff": 768, "n_heads": 32, "n_kv_heads": 4, "head_dim": 128, "n_experts": 128,
            "n_experts_used": 8, "n_vocab": 151_936,
        },
    ),
    "Mamba 1024": ("mamba", {"n_embd": 1024, "n_vocab": 50_280}),
    "LFM2 1.2B": ("lfm2", {"n_embd": 2048, "n_ff": 8192, "n_heads": 32, "n_kv_heads": 8, "n_vocab": 65_536}),
    "Mamba 2 1.3B": ("mamba2", {"n_embd": 2048, "d_state": 128, "n_ssm_heads": 64, "n_vocab": 50_288}),
    "Granite 4.0 H 1B": (
        "granitehybrid",
        {
            "n_embd": 1536, "n_ff": 4096, "n_heads": 12, "n_kv_heads": 4, "d_state": 128, "n_ssm_heads": 48,
            "n_vocab": 100_352,
        },
    ),
    "Falcon-H1 1.5B": (
        "falcon-h1",
        {
            "n_embd": 2048, "n_ff": 4096, "n_heads": 8, "n_kv_heads": 2, "d_state": 256, "d_inner": 3072,
            "n_ssm_heads": 48, "n_vocab": 65_537,
        },
    ),
    "Nemotron-H 4B": (
        "nemotron_h",
        {
            "n_embd": 3072, "n_ff": 12_288, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "d_state": 128,
            "d_inner": 7168, "n_ssm_heads": 112, "n_ssm_groups": 8, "n_vocab": 131_072,
        },
    ),
    "LFM2 8B-A1B": (
        "lfm2moe",
        {
            "n_embd": 2048, "n_ff": 1792, "n_heads": 32, "n_kv_heads": 8, "n_experts": 32, "n_experts_used": 4,
            "n_vocab": 65_536,
        },
    ),
    "Qwen3.5 4B": (
        "qwen35",
        {
            "n_embd": 2560, "n_ff": 9216, "n_heads": 16, "n_kv_heads": 4, "head_dim": 256, "n_vocab": 248_320,
            "d_state": 128, "n_ssm_heads": 32, "n_ssm_groups": 16,
        },
    ),
    "Qwen3.5 35B-A3B": (
        "qwen35moe",
        {
            "n_embd": 2048, "n_ff": 512, "n_heads": 16, "n_kv_heads": 2, "head_dim": 256, "n_vocab": 248_320,
            "d_state": 128, "n_ssm_heads": 32, "n_ssm_groups": 16, "n_experts": 256, "n_experts_used": 8,
        },
    ),
    "gpt-oss 20B": (
        "gpt-oss",
        {
            "n_embd": 2880, "n_ff": 2880, "n_heads": 64, "n_kv_heads": 8, "head_dim": 64, "n_experts": 32,
            "n_experts_used": 4, "n_vocab": 201_088, "window": 128,
        },
    ),
    "Gemma 3n E2B": (
        "gemma3n",
        {
            "n_layers": 30, "n_embd": 2048, "n_ff": 8192, "n_heads": 8, "n_kv_heads": 2, "head_dim": 256,
            "n_vocab": 262_144, "window": 512,
        },
    ),
    "Gemma 4 E4B": (
        "gemma4",
        {
            "n_layers": 40, "n_embd": 2560, "n_ff": 10_240, "n_heads": 8, "n_kv_heads": 2, "head_dim": 512,
            "n_vocab": 262_144, "window": 512, "per_layer": 256, "n_shared_kv": 16,
        },
    ),
    "DeepSeek V2 Lite": (
        "deepseek2",
        {"n_embd": 2048, "n_ff": 1408, "n_heads": 16, "n_experts": 64, "n_experts_used": 6, "n_vocab": 102_400},
    ),
}  # fmt: skip


def settings_for(kvs: tuple[KvType, ...], n_rs_seq: int) -> list[ContextSettings]:
    sizes = ((512, 128, 1), (4096, 128, 9), (4096, 32, 9), (16_384, 512, 17), (8192, 64, 1))
    return [ContextSettings(n_ctx, n_ubatch, rows, kv, n_rs_seq) for kv in kvs for n_ctx, n_ubatch, rows in sizes]


@pytest.mark.parametrize("name", REAL)
def test_formulas_agree_with_llama_cpp(name: str, tmp_path: Path) -> None:
    """Weights and caches to the byte; temporaries within a tenth, or a quarter where the cache is quantised."""
    architecture, sizes = REAL[name]
    path = write_tiny(tmp_path / "model.gguf", architecture, weights="Q8_0", sparse=True, **sizes)
    shape = from_header(read_header(path))
    quantised = not any(group.head_dim % 32 for group in shape.attention)
    wanted = settings_for(("f16", "q8_0", "q4_0") if quantised else ("f16",), 9 if shape.keeps_snapshots else 0)
    for settings, sizes_there in zip(wanted, probe(path, wanted), strict=True):
        assert sizes_there.exact
        assert shape.weight_bytes + shape.read_twice_bytes == sizes_there.weights_bytes
        assert cache_bytes(shape, settings) == sizes_there.kv_bytes, settings
        tolerance = 0.1 if settings.kv == "f16" else 0.25
        assert compute_bytes(shape, settings) == pytest.approx(sizes_there.compute_bytes, rel=tolerance), settings
        assert shape.state_elements * 4 == pytest.approx(sizes_there.state_bytes, abs=11_000)  # MiB, two decimals


@pytest.mark.parametrize("name", ["SmolLM2 135M", "Qwen2.5 1.5B", "Gemma 3 4B", "Qwen3 30B-A3B", "DeepSeek V2 Lite"])
def test_formulas_of_several_conversations_agree_with_llama_cpp(name: str, tmp_path: Path) -> None:
    architecture, sizes = REAL[name]
    path = write_tiny(tmp_path / "model.gguf", architecture, weights="Q8_0", sparse=True, **sizes)
    shape = from_header(read_header(path))
    wanted = [ContextSettings(2048, 128, rows, n_sequences=n) for n, rows in ((2, 17), (4, 32), (16, 32))]
    for settings, sizes_there in zip(wanted, probe(path, wanted), strict=True):
        assert cache_bytes(shape, settings) == sizes_there.kv_bytes, settings
        assert compute_bytes(shape, settings) == pytest.approx(sizes_there.compute_bytes, rel=0.1), settings


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_caches_of_tiny_models_agree_to_the_byte(architecture: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", architecture, n_layers=8)
    shape = from_header(read_header(path))
    wanted = [ContextSettings(300, 32, 3), ContextSettings(5000, 64, 3)]
    for settings, sizes in zip(wanted, probe(path, wanted), strict=True):
        weights_bytes = shape.weight_bytes + shape.read_twice_bytes
        assert (weights_bytes, cache_bytes(shape, settings)) == (sizes.weights_bytes, sizes.kv_bytes)


def test_rearranged_weights_are_told(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", "llama", weights="Q4_0", n_embd=128, n_ff=256, n_heads=4)
    shape, settings = from_header(read_header(path)), ContextSettings(512)
    (kept,), (rearranged,) = probe(path, [settings]), probe(path, [settings], repack=True)
    assert kept.repacked_bytes == 0
    assert rearranged.repacked_bytes in (
        estimate(shape, settings, True, isa="x86").repacked_bytes,
        0,  # a processor without the instructions for it
    )


def test_what_llama_cpp_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", "llama", n_embd=64, n_heads=4)  # heads of 16: no blocks of 32
    with pytest.raises(LoadError, match="block size 32"):
        probe(path, [ContextSettings(512, kv="q8_0")])
    with pytest.raises(UnsupportedCache, match="--kv f16"):
        cache_bytes(from_header(read_header(path)), ContextSettings(512, kv="q8_0"))


def test_an_unloadable_file_is_an_error_and_not_an_abort(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(LoadError, match=r"broken\.gguf"):
        probe(path, [ContextSettings(512)])


def test_accelerators_have_memory() -> None:
    assert all(0 < found.free_bytes <= found.total_bytes for found in accelerators())
