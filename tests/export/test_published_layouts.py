"""Repositories as their authors published them: every file name, every key of their config.json; sizes made small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Weights, config_of, random_weights, small_tokenizer, write_weights
from loopback_hub import LoopbackHub, Repo
from sentencepiece_file import sentencepiece_model
from vocabularies import tokenizer_folder

from edgellm.export.check.reference import reference_logits
from edgellm.export.convert import engine_jobs
from edgellm.memory.gguf import read_header

ALWAYS = {"config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"}


def gemma_3_4b(folder: Path) -> dict[str, Any]:
    """The text model's heads, widths of heads and vocabulary are what transformers takes where nothing is said."""
    text = {
        "hidden_size": 32, "intermediate_size": 64, "model_type": "gemma3_text", "num_hidden_layers": 7,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 16,
    }  # fmt: skip
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
        "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
        "model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {
            "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
        },
    }  # fmt: skip
    of_text = config_of("gemma3", 262_208) | text
    of_text |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
    weights: Weights = {
        f"language_model.{name}": array for name, array in random_weights(of_text).items() if name != "lm_head.weight"
    }
    seen = np.ones((4, 4), np.float32)
    weights |= {
        "multi_modal_projector.mm_input_projection_weight": seen,
        "vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight": seen,
        "vision_tower.vision_model.embeddings.patch_embedding.weight": np.ones((4, 3, 2, 2), np.float32),
    }
    write_weights(folder, weights, dtype="BF16", n_shards=2)
    return config


def phi_4_mini(folder: Path) -> dict[str, Any]:
    config = {
        "_name_or_path": "Phi-4-mini-instruct", "architectures": ["Phi3ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoTokenizer": "Xenova/gpt-4o",
                     "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        "bos_token_id": 199999, "embd_pdrop": 0.0, "eos_token_id": 199999, "full_attn_mod": 1, "hidden_act": "silu",
        "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96, "interpolate_factor": 1,
        "lm_head_bias": False, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "phi3",
        "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
        "original_max_position_embeddings": 4096, "pad_token_id": 199999, "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [1 + i / 2 for i in range(12)], "short_factor": [1.0] * 12, "type": "longrope"},
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0", "use_cache": True, "vocab_size": 200064,
    }  # fmt: skip
    write_weights(folder, random_weights(config), dtype="BF16", n_shards=2)
    return config


def mistral_7b_v3(folder: Path) -> dict[str, Any]:
    config = {
        "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0",
        "use_cache": True, "vocab_size": 32768,
    }  # fmt: skip
    write_weights(folder, random_weights(config), dtype="BF16", n_shards=3)
    return config


PUBLISHED: dict[str, tuple[Any, set[str], set[str]]] = {
    # repository -> weights and configuration, further files that are read, files that stay where they are
    "google/gemma-3-4b-it": (
        gemma_3_4b,
        {"tokenizer.json", "tokenizer.model", "chat_template.json", "added_tokens.json"},
        {"preprocessor_config.json", "processor_config.json", "README.md", ".gitattributes"},
    ),
    "microsoft/Phi-4-mini-instruct": (
        phi_4_mini,
        {"tokenizer.json", "added_tokens.json"},
        {"configuration_phi3.py", "modeling_phi3.py", "sample_finetune.py", "merges.txt", "vocab.json", "README.md"},
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": (
        mistral_7b_v3,
        {"tokenizer.json", "tokenizer.model"},
        {"consolidated.safetensors", "params.json", "tokenizer.model.v3", "README.md"},
    ),
}


@pytest.mark.parametrize("repo", PUBLISHED)
def test_a_published_layout_is_that_model_and_only_what_is_read_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: str
) -> None:
    make, read, left = PUBLISHED[repo]
    folder = tmp_path / "published"
    folder.mkdir()
    config = make(folder)
    llama = tokenizer_folder("llama2")
    if "tokenizer.model" in read:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((llama / name).read_bytes())
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(llama))
    else:
        small_tokenizer(folder)
    ends = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [min(end, 250) for end in ends]}))
    shards = {path.name for path in folder.glob("model*")}
    for name in {*read, "special_tokens_map.json"} - {path.name for path in folder.iterdir()}:
        (folder / name).write_text("{" + " " * len(name) + "}")  # equal files would be fetched once
    for name in left:
        (folder / name).write_bytes(b"not wanted")
    with LoopbackHub() as hub:
        hub.repos[repo] = Repo({path.name: path.read_bytes() for path in folder.iterdir()}, licence="other")
        for name, value in (("HF_ENDPOINT", hub.url), ("HF_HOME", "hf"), ("EDGELLM_HOME", "home")):
            monkeypatch.setenv(name, value if name == "HF_ENDPOINT" else str(tmp_path / value))
        done = subprocess.run(
            [sys.executable, "-m", "edgellm.cli", "export", repo, "-o", "out", "--quant=F16", "--no-verify", "--json"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        got = {r.path.rsplit("/", 1)[-1] for r in hub.requests if r.method == "GET" and "/resolve/" in r.path}
    made = json.loads(done.stdout)
    assert got == ALWAYS | read | shards
    path = tmp_path / "out" / made["files"][0]["path"]
    tokens = list(range(3, 99))
    found, expected = engine_jobs.logits(path, tokens), reference_logits(folder, tokens)
    assert (np.linalg.norm(found - expected, axis=1) < 0.01 * np.linalg.norm(expected, axis=1)).all()
    header = read_header(path)
    assert header.hparam("block_count", 0) == config.get("text_config", config)["num_hidden_layers"]
