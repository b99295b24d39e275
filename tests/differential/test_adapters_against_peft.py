"""Adapters applied by llama.cpp, and merged, against what PEFT itself computes: every family, every kind of target.

EDGELLM_TEST_PEFT names a Python that has peft and transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import FAMILIES, tiny_model
from loras import FUSED, LINEAR

from edgellm.export.convert import engine_jobs
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.lora.adapter_export import judged
from edgellm.export.lora.adapter_source import resolve_adapter, resolve_base
from edgellm.export.lora.adapters import read_adapter
from edgellm.export.lora.lora_gguf import check_can_be_applied, write_adapter
from edgellm.export.lora.merging import merge
from edgellm.export.read.facts import UnsupportedModel

PYTHON = os.environ.get("EDGELLM_TEST_PEFT")  # read before any test takes the user's settings away
pytestmark = [
    pytest.mark.differential,
    pytest.mark.skipif(PYTHON is None, reason="EDGELLM_TEST_PEFT names no Python that has peft"),
]
CHILD = Path(__file__).with_name("peft_child.py")
TOKENS = [3, 17, 42, 99, 120, 7, 200, 11, 64, 33, 90, 150, 8, 21, 77, 140]
MOST = {"F32": 1e-5, "F16": 0.01}  # relative; a random adapter of half precision changes as much as the model says
GEMMA = 2e-3  # whose GELU is a table in llama.cpp
MODEL_TYPES = {"LlamaForCausalLM": "llama", "Gemma3ForCausalLM": "gemma3_text"}


def cases(family: str) -> dict[str, dict[str, Any]]:
    linear = list(FUSED if family == "phi3" else LINEAR)
    few = ["qkv_proj"] if family == "phi3" else ["q_proj", "v_proj"]
    same: dict[str, Any] = {"r": 4, "lora_alpha": 8}
    patterns = {"rank_pattern": {linear[0]: 2}, "alpha_pattern": {linear[-1]: 32}}
    return {
        "few": {**same, "target_modules": few},
        "linear": {**same, "target_modules": linear, **patterns},
        "rooted": {**same, "target_modules": linear, "use_rslora": True, "layers_to_transform": [1]},
        "embedding": {**same, "target_modules": ["embed_tokens", *linear]},
        "head": {**same, "target_modules": ["lm_head", *linear]},
        "dora": {**same, "target_modules": linear, "use_dora": True},
        "saved": {**same, "target_modules": linear, "modules_to_save": ["lm_head"]},
        "biases": {**same, "target_modules": linear, "bias": "lora_only"},
    }


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_peft_computes_the_same(family: str, tmp_path: Path) -> None:
    assert PYTHON is not None
    base, folder = tiny_model(tmp_path / "base", family), tmp_path / "adapters"
    config = json.loads((base / "config.json").read_text())
    kind = config["architectures"][0]
    config.setdefault("model_type", MODEL_TYPES.get(kind, kind.removesuffix("ForCausalLM").lower()))
    (base / "config.json").write_text(json.dumps(config | {"pad_token_id": 0}))
    folder.mkdir()
    (folder / "tokens.json").write_text(json.dumps(TOKENS))
    command = [PYTHON, "-I", str(CHILD), str(base), str(folder), json.dumps(cases(family))]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]

    whole = tmp_path / "base.gguf"
    to_gguf(base, whole, float_type="F32")
    gemma = family.startswith("gemma")
    for name in cases(family):
        if family == "gemma2" and name in {"embedding", "head", "saved"}:
            continue  # llama.cpp has no place for a head of its own there, so these are refused
        expected = np.load(folder / name / "expected.npy")
        shapes = judged(resolve_adapter(str(folder / name)), resolve_base(str(base)), merge=True)
        adapter = read_adapter(folder / name, shapes)
        found = {}
        merged = tmp_path / "merged.gguf"
        to_gguf(base, merged, float_type="F32", adapt=partial(merge, adapter=adapter))
        found["merged", "F32"] = engine_jobs.logits(merged, TOKENS)
        try:
            check_can_be_applied(adapter, shapes)
        except UnsupportedModel:
            assert name in {"dora", "saved"} or adapter.whole or shapes.tied
        else:
            for kind in MOST:
                write_adapter(adapter, shapes, tmp_path / "lora.gguf", kind, {})
                found["applied", kind] = engine_jobs.logits(whole, TOKENS, lora=tmp_path / "lora.gguf")
        for (how, kind), rows in found.items():
            error = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
            assert error.max() < max(MOST[kind], GEMMA if gemma else 0), (family, name, how, kind)
