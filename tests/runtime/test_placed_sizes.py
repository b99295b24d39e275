"""Sizes by formula of models whose layers lie on a device, against llama.cpp's own; `pytest -m vulkan`."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny

from edgellm.memory.buffer_sizes import BufferSizes
from edgellm.memory.buffers import estimate
from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import read_header
from edgellm.memory.placement import Accelerator
from edgellm.memory.shape import from_header
from edgellm.runtime.backends.llama_process import accelerators
from edgellm.runtime.bringup.probe import probe

pytestmark = pytest.mark.vulkan

WANTED = [
    ContextSettings(4096, 128, 16), ContextSettings(4096, 32, 9), ContextSettings(2048, 64, 1, "q8_0"),
]  # fmt: skip
# Proportions of real models, few layers, weights left out of the file. Heads that lavapipe addresses, and two that not.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2 135M": ("llama", {"n_embd": 576, "n_ff": 1536, "n_heads": 9, "n_kv_heads": 3, "n_vocab": 49_152}),
    "Llama, head apart": (
        "llama", {"n_embd": 2048, "n_ff": 5632, "n_heads": 32, "n_kv_heads": 8, "n_vocab": 32_000, "tied": False},
    ),
    "Qwen2.5 0.5B": ("qwen2", {"n_embd": 896, "n_ff": 4864, "n_heads": 14, "n_kv_heads": 2, "n_vocab": 151_936}),
    "Gemma 3 270M": (
        "gemma3",
        {"n_embd": 640, "n_ff": 2048, "n_kv_heads": 1, "head_dim": 256, "window": 512, "n_vocab": 190_000},
    ),
    "Qwen3, experts": (
        "qwen3moe",
        {"n_embd": 1024, "n_ff": 768, "n_heads": 16, "n_kv_heads": 4, "head_dim": 128, "n_experts": 16,
         "n_experts_used": 4, "n_vocab": 32_000, "tied": False},
    ),
}  # fmt: skip
N_LAYERS = 7


@pytest.fixture(scope="module")
def device() -> Accelerator:
    found = accelerators()
    if not found:
        pytest.skip("this llama.cpp sees no accelerator: docs/gpu.md says how it is built for one")
    return found[0]


def parts(sizes: BufferSizes) -> dict[str, int]:
    (there,) = sizes.devices
    return {
        "host": sizes.weights_bytes + sizes.kv_bytes + sizes.compute_bytes,
        "device": there.weights_bytes + there.kv_bytes + there.compute_bytes,
    }


@pytest.mark.parametrize("name", MODELS)
def test_formulas_of_placed_layers_agree_with_llama_cpp(name: str, device: Accelerator, tmp_path: Path) -> None:
    """Weights and caches but for alignment; temporaries within a third, which is 3 % of a device's share at most."""
    architecture, sizes = MODELS[name]
    path = write_tiny(
        tmp_path / "model.gguf", architecture, weights="Q8_0", sparse=True, n_layers=N_LAYERS, **sizes
    )  # fmt: skip
    shape = from_header(read_header(path))
    errors = []
    for n in (N_LAYERS + 1, N_LAYERS, 4):
        placed = [
            replace(each, placed=((device.name, n),), largest_bytes=device.largest_bytes) for each in WANTED
        ]  # fmt: skip
        for settings, there in zip(placed, probe(path, placed), strict=True):
            said, (on, really) = estimate(shape, settings), (estimate(shape, settings).devices[0], there.devices[0])
            assert there.exact
            assert said.weights_bytes == pytest.approx(there.weights_bytes, abs=16_384), settings
            assert on.weights_bytes == pytest.approx(really.weights_bytes, abs=16_384), settings
            assert (said.kv_bytes, on.kv_bytes) == (there.kv_bytes, really.kv_bytes), settings
            assert said.compute_bytes == pytest.approx(there.compute_bytes, rel=0.33), settings
            assert on.compute_bytes == pytest.approx(really.compute_bytes, rel=0.33), settings
            errors += [abs(said_bytes / parts(there)[part] - 1) for part, said_bytes in parts(said).items()]
    assert statistics.median(errors) < 0.01
    assert max(errors) < 0.03
