"""Every fact of a configuration and of a checkpoint is read, declared idle, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import FAMILIES, LONG_ROPE, random_weights, tiny_model, write_safetensors, write_weights
from numpy.typing import NDArray

from edgellm.export.check.reference import reference_logits
from edgellm.export.convert import engine_jobs
from edgellm.export.convert.hf_to_gguf import examine, to_gguf
from edgellm.export.read.checkpoint import CheckpointError, read_checkpoint
from edgellm.export.read.facts import UnsupportedModel
from edgellm.memory.gguf import read_header

TOKENS = [5, 17, 250, 260, 3, 99, 42, 42, 7, 200, 111, 64, 0, 88, 31, 9, 255, 258]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def config_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return document


def edited(folder: Path, **changes: Any) -> Path:
    config = {**config_of(folder), **changes}
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def worst_error(folder: Path, path: Path, tokens: list[int] = TOKENS) -> float:
    """Relative, of a row of logits against an independent forward pass."""
    to_gguf(folder, path, float_type="F32")
    found, expected = engine_jobs.logits(path, tokens), reference_logits(folder, tokens)
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # activations
    ("llama", {"hidden_act": "gelu"}, 'hidden_act "gelu" in config.json, where llama.cpp\'s llama computes "silu"'),
    ("mistral", {"hidden_act": "relu"}, "hidden_act"),
    ("gemma2", {"hidden_activation": "silu"}, 'computes "gelu_pytorch_tanh"'),
    ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    # windows
    ("mistral", {"sliding_window": 8}, "looks back 8 tokens"),
    ("mistral", {"sliding_window": ..., "max_position_embeddings": 8192, "sliding_windows": 3}, "sliding_windows"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "looks back 8 tokens"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "looks back 8 tokens"),
    ("phi3", {"sliding_window": 8}, "looks back 8 tokens"),
    # rotary embeddings
    ("llama", {"rope_parameters": {**YARN, "beta_fast": 4.0}}, "beta_fast 4.0 among its rotary settings"),
    ("llama", {"rope_parameters": {**YARN, "beta_slow": 2}}, "beta_slow"),
    ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "does not say factor"),
    ("llama", {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}}, "mrope_section"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
        "a part of each head",
    ),
    ("qwen2", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "stretches its context by 'llama3'"),
    ("qwen3", {"rope_scaling": {"rope_type": "proportional"}}, "stretches its context by 'proportional'"),
    ("gemma3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "stretches its context by 'yarn'"),
    ("gemma3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "leaves aside for Gemma 3"),
    ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "where Gemma 3 has two"),
    ("phi3", {"rope_scaling": {**LONG_ROPE, "short_mscale": 1.1}}, "short_mscale"),
    ("phi3", {"original_max_position_embeddings": 128}, "texts of up to 128 tokens, which llama.cpp never takes"),
    # Gemma
    ("gemma2", {"query_pre_attn_scalar": ...}, "scales its queries by 256"),
    ("gemma3", {"query_pre_attn_scalar": 64}, "scales its queries by 64"),
    # Phi-4-mini's own code
    ("phi3", {"full_attn_mod": 2}, "full_attn_mod 2 in config.json"),
    ("phi3", {"interpolate_factor": 4}, "interpolate_factor 4"),
    ("phi3", {"lm_head_bias": True}, "lm_head_bias true"),
    # values of another kind than the setting has
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps NaN in config.json, which must be a number above 0"),
    ("llama", {"rope_theta": True}, "rope_theta true in config.json, which must be a number above 0"),
    ("llama", {"hidden_size": "64"}, 'hidden_size "64" in config.json, which must be a whole number above 0'),
    ("mistral", {"sliding_window": 0}, "sliding_window 0"),
    ("gemma2", {"final_logit_softcapping": float("inf")}, "final_logit_softcapping Infinity"),
    ("qwen2", {"tie_word_embeddings": "false"}, 'tie_word_embeddings "false" in config.json, which must be true or'),
    ("qwen3", {"eos_token_id": "<end>"}, "the number of a token"),
    ("llama", {"rope_parameters": {**YARN, "factor": "4"}}, 'factor "4" in config.json'),
    ("phi3", {"rope_scaling": {**LONG_ROPE, "long_factor": [1.0, None] * 4}}, "numbers above 0"),
    ("gemma3", {"layer_types": ["full_attention"] * 6 + ["chunked_attention"]}, "of the kind 'chunked_attention'"),
    ("gemma3", {"layer_types": ["full_attention"] * 6}, "tells of 6 of 7 layers"),
    ("llama", {"text_config": {"rms_norm_eps": 0.05}}, "has a text_config"),
    # shapes and kinds
    ("qwen2", {"head_dim": 24}, "4 heads of 24"),
    ("qwen3", {"attention_bias": True}, "attention_bias true"),
    ("llama", {"embedding_multiplier": 12.0}, "embedding_multiplier 12.0"),
    ("llama", {"model_type": "smollm3"}, "LlamaForCausalLM of type 'smollm3'"),
    ("llama", {"architectures": None, "model_type": "olmo2"}, "model of type 'olmo2'"),
    ("llama", {"quantization": {"bits": 4, "group_size": 64}}, r"quantised already \(MLX\)"),
    ("llama", {"quantization_config": {"quant_method": "fp8"}}, r"quantised already \(fp8\)"),
    ("llama", {"compression_config": {"format": "int-quantized"}}, r"quantised already \(int-quantized\)"),
    ("llama", {"num_experts": 8}, "a mixture of experts"),
]


@pytest.mark.parametrize(("family", "changes", "sentence"), REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused_before_any_weights_are_there(
    tmp_path: Path, family: str, changes: dict[str, Any], sentence: str
) -> None:
    folder = edited(tiny_model(tmp_path / "tiny", family), **changes)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match=sentence):
        examine(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_setting_that_no_table_knows_is_refused_by_name_in_every_family(tmp_path: Path, family: str) -> None:
    folder = tiny_model(tmp_path / "tiny", family)
    for says_nothing in (None, False, "", [], {}):
        examine(edited(folder, residual_scale=says_nothing))
    with pytest.raises(UnsupportedModel, match=r"residual_scale 0\.5 in config\.json"):
        examine(edited(folder, residual_scale=0.5))


RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_parameters": {**YARN}}),
    ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.0}}),
    ("qwen2", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    ("qwen3", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    ("llama3", {"rope_theta": ...}),
    ("gemma3", {"rope_theta": ..., "rope_local_base_freq": ..., "model_type": "gemma3_text"}),
    ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("phi3", {"rope_scaling": {**LONG_ROPE, "attention_factor": 1.0}}),
    ("phi3", {"rope_scaling": {**LONG_ROPE, "factor": 2.0}}),
    ("phi3", {"rms_norm_eps": ...}),
    ("qwen3", {"max_position_embeddings": ...}),
    ("llama", {"architectures": None, "model_type": "llama", "sliding_window": 4096}),
    # transformers reads a part to rotate only where positions are stretched
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    ("mistral", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}),
    ("llama", {"rope_parameters": {**YARN, "factor": None}}),
    ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "attention_factor": 0.5}}),
    ("qwen2", {"rope_parameters": {**YARN}, "original_max_position_embeddings": 128}),
    ("llama", {"rope_scaling": LONG_ROPE, "original_max_position_embeddings": 256}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma3", {"attn_logit_softcapping": 2.0}),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("gemma3", {"layer_types": ["full_attention"] * 7}),
    ("gemma3", {"sliding_window_pattern": 3}),
]


@pytest.mark.parametrize(("family", "changes"), RIGHT)
def test_what_is_read_gives_the_logits_that_the_configuration_means(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    folder = edited(tiny_model(tmp_path / "tiny", family), **changes)
    assert worst_error(folder, tmp_path / "model.gguf") < (1e-3 if family.startswith("gemma") else 1e-5)


def test_what_stands_beside_a_text_config_is_not_the_texts(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "gemma3")
    text = config_of(folder)
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    (folder / "config.json").write_text(json.dumps({**outer, "rms_norm_eps": 0.5, "sliding_window": 100}))
    assert worst_error(folder, tmp_path / "model.gguf") < 5e-4
    header = read_header(tmp_path / "model.gguf")
    assert header.hparam("attention.sliding_window") == text["sliding_window"]


def test_what_grows_with_a_text_is_right_within_the_context_and_said(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    folder = edited(tiny_model(tmp_path / "tiny", "llama"), rope_parameters=rope)
    assert any("as a text grows beyond 256 tokens (dynamic)" in remark for remark in examine(folder))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_head_of_its_own_counts_where_config_says_tied(tmp_path: Path, family: str) -> None:
    folder = edited(tiny_model(tmp_path / "tiny", family), tie_word_embeddings=True)
    weights = random_weights(config_of(folder))
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding[::-1].copy()
    write_weights(folder, weights)
    assert worst_error(folder, tmp_path / "apart.gguf") < 5e-4
    assert "output.weight" in {tensor.name for tensor in read_header(tmp_path / "apart.gguf").tensors}
    write_weights(folder, weights | {"lm_head.weight": embedding})
    assert worst_error(folder, tmp_path / "same.gguf") < 5e-4
    assert "output.weight" not in {tensor.name for tensor in read_header(tmp_path / "same.gguf").tensors}


def test_gemma_2_has_no_place_for_a_head_of_its_own(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "gemma2")
    weights = random_weights(config_of(folder))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"][::-1].copy()
    write_weights(folder, weights)
    with pytest.raises(UnsupportedModel, match="a head of its own"):
        to_gguf(folder, tmp_path / "model.gguf")


def test_a_missing_head_is_the_embedding_only_where_config_says_so(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "qwen3")
    weights = random_weights(config_of(folder))
    del weights["lm_head.weight"]
    write_weights(folder, weights)
    with pytest.raises(UnsupportedModel, match=r"lacks lm_head\.weight, and config\.json does not say"):
        to_gguf(folder, tmp_path / "model.gguf")


def test_biases_of_the_feed_forward_layers_are_exported(tmp_path: Path) -> None:
    folder = edited(tiny_model(tmp_path / "tiny", "llama"), mlp_bias=True)
    weights = random_weights(config_of(folder))
    rng = np.random.default_rng(5)
    for name in [name for name in weights if ".mlp." in name]:
        weights[name.replace("weight", "bias")] = rng.standard_normal(len(weights[name])).astype(np.float32) * 0.1
    write_weights(folder, weights)
    assert worst_error(folder, tmp_path / "model.gguf") < 1e-5
    del weights["model.layers.1.mlp.up_proj.bias"]
    write_weights(folder, weights)
    with pytest.raises(UnsupportedModel, match=r"lacks the tensor for blk\.1\.ffn_up\.bias"):
        to_gguf(folder, tmp_path / "model.gguf")


def test_a_bias_that_config_does_not_tell_of_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    weights = random_weights(config_of(folder))
    weights["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
    write_weights(folder, weights)
    with pytest.raises(UnsupportedModel, match=r"q_proj\.bias is nothing that config\.json tells of"):
        to_gguf(folder, tmp_path / "model.gguf")


def spoilt(value: float) -> Callable[[NDArray[Any]], None]:
    def spoil(array: NDArray[Any]) -> None:
        array[3, 5] = value

    return spoil


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_refused_by_the_name_of_their_tensor(
    tmp_path: Path, dtype: str, value: float
) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    weights = random_weights(config_of(folder))
    spoilt(value)(weights["model.layers.1.mlp.up_proj.weight"])
    write_weights(folder, weights, dtype=dtype)
    for float_type in ("F16", "BF16", "F32"):
        with pytest.raises(UnsupportedModel, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinite"):
            to_gguf(folder, tmp_path / "model.gguf", float_type=float_type)  # type: ignore[arg-type]
    assert not (tmp_path / "model.gguf").exists()


def test_a_weight_of_an_unreadable_type_is_named_and_not_taken_for_missing(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    entry = header["model.layers.0.self_attn.q_proj.weight"]
    entry["dtype"], entry["shape"] = "F8_E4M3", [entry["shape"][0], entry["shape"][1] * 4]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])
    with pytest.raises(UnsupportedModel, match=r"q_proj\.weight' is stored as F8_E4M3"):
        to_gguf(folder, tmp_path / "model.gguf")


def test_one_whole_file_comes_before_an_index_beside_it(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama", n_shards=2)
    other = random_weights(config_of(folder), seed=9)
    write_safetensors(folder / "model.safetensors", other)
    write_safetensors(folder / "consolidated.safetensors", {"tok_embeddings.weight": other["model.norm.weight"]})
    assert {tensor.path.name for tensor in read_checkpoint(folder).values()} == {"model.safetensors"}
    (folder / "model.safetensors").unlink()
    assert len({tensor.path.name for tensor in read_checkpoint(folder).values()}) == 2


def test_a_window_shorter_than_the_context_caps_it_and_is_said(tmp_path: Path) -> None:
    folder = edited(tiny_model(tmp_path / "tiny", "mistral"), sliding_window=1024, max_position_embeddings=4096)
    assert any("states a context of 1024 tokens" in remark for remark in examine(folder))
    to_gguf(folder, tmp_path / "model.gguf")
    assert read_header(tmp_path / "model.gguf").hparam("context_length") == 1024
    assert examine(edited(folder, sliding_window=4096)) == ()


def test_an_adapter_and_a_pointer_are_named_as_what_they_are(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "acme/base"}))
    with pytest.raises(UnsupportedModel, match=r"is an adapter .* for acme/base"):
        examine(adapter)
    folder = tiny_model(tmp_path / "tiny", "llama")
    (folder / "adapter_config.json").write_text("{}")
    examine(folder)  # an adapter beside a whole model
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        to_gguf(folder, tmp_path / "model.gguf")
