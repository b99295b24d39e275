"""Random LoRA adapters: PEFT folders for the checkpoints of `checkpoints.py`, and GGUF files for any model."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import Weights, write_safetensors

from edgellm.export.convert import gguf_writer as writer
from edgellm.export.convert.gguf_writer import PlannedTensor
from edgellm.memory.split import read_model

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def peft_folder(
    folder: Path, base: Weights, targets: Sequence[str], *, rank: int = 4, seed: int = 0, **config: Any
) -> Path:
    """A random adapter of a checkpoint's tensors whose module's name ends in one of `targets`."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for name, weight in base.items():
        module = name.removesuffix(".weight")
        if module == name or module.rpartition(".")[2] not in targets:
            continue
        n_out, n_in = weight.shape
        a, b = (0.3 * rng.standard_normal(size).astype(np.float32) for size in ((rank, n_in), (n_out, rank)))
        at = f"base_model.model.{module}"
        if module.endswith("embed_tokens"):
            weights[f"{at}.lora_embedding_A"], weights[f"{at}.lora_embedding_B"] = b.T.copy(), a.T.copy()
            weights[f"{at}.base_layer.weight"] = weight
        else:
            weights[f"{at}.lora_A.weight"], weights[f"{at}.lora_B.weight"] = a, b
    return write_peft(folder, weights, r=rank, target_modules=list(targets), **config)


def write_peft(folder: Path, weights: Weights, **config: Any) -> Path:
    """An adapter's folder as PEFT saves it, of these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    write_safetensors(folder / "adapter_model.safetensors", weights)
    return folder


def gguf_adapter(
    path: Path,
    model: Path,
    *,
    parts: Collection[str] = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    rank: int = 4,
    kind: str = "F16",
    strength: float = 0.3,
    seed: int = 0,
    **entries: bytes,
) -> Path:
    """A random adapter of a GGUF model's matrices; `entries` replace its metadata, `_` for `.` in their names."""
    header, rng = read_model(model), np.random.default_rng(seed)
    tensors = []
    for tensor in header.tensors:
        if tensor.name.split(".")[-2] in parts and tensor.name.endswith(".weight"):
            n_in, n_out = tensor.shape
            sides = {"lora_a": (rank, n_in), "lora_b": (n_out, rank)}
            for side, size in sides.items():
                values = rng.standard_normal(size) * (strength if side == "lora_b" else n_in**-0.5)
                data = values.astype("<f2" if kind == "F16" else "<f4").tobytes()
                shape = tuple(reversed(size))
                tensors.append(PlannedTensor(f"{tensor.name}.{side}", shape, kind, lambda data=data: [data]))
    head = {
        "general.architecture": writer.string(header.architecture),
        "general.type": writer.string("adapter"),
        "adapter.type": writer.string("lora"),
        "adapter.lora.alpha": writer.f32(float(rank)),
    } | {key.replace("__", "."): value for key, value in entries.items()}
    writer.write_gguf(path, {key: value for key, value in head.items() if value}, tensors)
    return path
