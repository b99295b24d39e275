"""Every family: exported, loaded by llama.cpp, and the same logits as an independent forward pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import FAMILIES, random_weights, tiny_model, write_torch, write_weights

from edgellm.export.check.reference import reference_logits
from edgellm.export.convert import engine_jobs
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.read.checkpoint import CheckpointError
from edgellm.export.read.facts import UnsupportedModel

TOKENS = [5, 17, 250, 260, 3, 99, 42, 42, 7, 200, 111, 64, 0, 88, 31, 9, 255, 258]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the worst row, by length. llama.cpp rounds activations to half precision before it multiplies by such
    weights.
    """
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_an_independent_forward_pass(tmp_path: Path, family: str) -> None:
    folder = tiny_model(tmp_path / family, family)
    to_gguf(folder, tmp_path / "model.gguf", float_type="F32")
    found, expected = engine_jobs.logits(tmp_path / "model.gguf", TOKENS), reference_logits(folder, TOKENS)
    assert expected.std() > 0.1
    assert relative_error(found, expected) < (5e-4 if family.startswith("gemma") else 1e-5)  # its GELU is a table


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen3", "gemma3"])
def test_a_real_tokenizer_and_half_precision_still_give_the_reference_logits(tmp_path: Path, family: str) -> None:
    folder = tiny_model(tmp_path / family, family, real_tokenizer=True, dtype="BF16")
    to_gguf(folder, tmp_path / "half.gguf")
    to_gguf(folder, tmp_path / "full.gguf", float_type="F32")
    tokens = engine_jobs.tokenise(tmp_path / "half.gguf", ["The quick brown fox: 123 👩‍👩‍👧‍👦"])[0]
    expected = reference_logits(folder, tokens)
    assert relative_error(engine_jobs.logits(tmp_path / "full.gguf", tokens), expected) < 5e-4
    assert relative_error(engine_jobs.logits(tmp_path / "half.gguf", tokens), expected) < 2e-3


def test_shards_precisions_and_torch_files_of_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    one = tiny_model(tmp_path / "a" / "tiny", "llama", dtype="F16")
    to_gguf(one, tmp_path / "one.gguf")
    expected = (tmp_path / "one.gguf").read_bytes()
    to_gguf(one, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == expected
    sharded = tiny_model(tmp_path / "b" / "tiny", "llama", dtype="F16", n_shards=3)
    to_gguf(sharded, tmp_path / "sharded.gguf")
    assert (tmp_path / "sharded.gguf").read_bytes() == expected
    (one / "model.safetensors").unlink()
    config = json.loads((one / "config.json").read_text())
    write_torch(one / "pytorch_model.bin", random_weights(config))
    to_gguf(one, tmp_path / "torch.gguf")
    assert (tmp_path / "torch.gguf").read_bytes() == expected


def edited(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM, which is not among .*--converter llama.cpp"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised already \(awq\)"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "stretches its context by 'dynamic' and does not say factor"),
        ({"num_hidden_layers": 3}, r"lacks the tensor for blk\.2"),
        ({"num_hidden_layers": 1}, r"beyond the layers"),
        ({"intermediate_size": 97}, "where config.json makes it"),
        ({"hidden_size": None}, "incomplete or damaged"),
        ({"tie_word_embeddings": False, "vocab_size": 10**9}, "beyond any real one"),
    ],
)
def test_what_cannot_be_exported_rightly_is_refused_in_a_sentence(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    folder = edited(tiny_model(tmp_path / "tiny", "llama"), **changes)
    with pytest.raises(ValueError, match=sentence):
        to_gguf(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_tensor_without_a_place_is_not_dropped_silently(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    weights = random_weights(json.loads((folder / "config.json").read_text()))
    weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
    write_weights(folder, weights)
    with pytest.raises(UnsupportedModel, match="has no place for"):
        to_gguf(folder, tmp_path / "model.gguf")
    del weights["lm_head.weight"], weights["model.layers.0.self_attn.q_norm.weight"]
    write_weights(folder, weights)
    with pytest.raises(UnsupportedModel, match=r"lacks lm_head\.weight"):
        to_gguf(folder, tmp_path / "model.gguf")


def test_numbers_beyond_half_precision_are_refused_and_fit_bfloat16(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama", dtype="BF16")
    weights = random_weights(json.loads((folder / "config.json").read_text()))
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = 1e6
    write_weights(folder, weights, dtype="BF16")
    with pytest.raises(UnsupportedModel, match="--quant BF16"):
        to_gguf(folder, tmp_path / "model.gguf")
    to_gguf(folder, tmp_path / "model.gguf", float_type="BF16")
    found, expected = engine_jobs.logits(tmp_path / "model.gguf", TOKENS), reference_logits(folder, TOKENS)
    assert relative_error(found, expected) < 1e-2


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama", n_shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shard model-00002-of-00002\.safetensors"):
        to_gguf(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["Phi-3-tuned", "plain"])
def test_a_name_that_llama_cpp_reads_meaning_into_still_loads(tmp_path: Path, name: str) -> None:
    folder = tiny_model(tmp_path / name, "llama")
    to_gguf(folder, tmp_path / "model.gguf")
    assert engine_jobs.logits(tmp_path / "model.gguf", TOKENS[:3]).shape == (3, 304)
