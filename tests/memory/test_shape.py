"""Shapes from headers, from config.json and from counts."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.memory.counts import Counts, from_config, from_counts
from edgellm.memory.device import sized_device
from edgellm.memory.gguf import parse_header, read_header
from edgellm.memory.kv import cache_bytes
from edgellm.memory.plan_request import PlanRequest
from edgellm.memory.shape import UnknownShape, from_header
from edgellm.memory.solve import solve

QWEN = {
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
GEMMA = {
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window": 512,
    "vocab_size": 262_144,
    "max_position_embeddings": 32_768,
}


def test_counts_and_config_give_the_same_cache_as_the_header(tmp_path: Path) -> None:
    sizes = {"n_layers": 12, "n_embd": 128, "n_ff": 256, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "window": 512}
    header = read_header(write_tiny(tmp_path / "model.gguf", "gemma3", **sizes))
    config = {
        "model_type": "gemma3_text", "num_hidden_layers": 12, "hidden_size": 128, "intermediate_size": 256,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 512, "vocab_size": 320,
    }  # fmt: skip
    settings = ContextSettings(4096, kv="q8_0")
    read = from_header(header)
    assert cache_bytes(read, settings) == cache_bytes(from_config(config, "F32", "tiny"), settings)
    assert from_config(config, "F32", "tiny").n_params == pytest.approx(read.n_params, rel=0.02)


def test_weights_counted_from_a_config_are_the_published_ones() -> None:
    assert from_config(QWEN, "Q4_K_M", "qwen").n_params == pytest.approx(1_543_714_304, rel=0.001)
    assert from_config(GEMMA, "Q4_K_M", "gemma").n_params == pytest.approx(268_098_176, rel=0.001)


def test_a_window_shrinks_the_cache_of_the_layers_that_have_it() -> None:
    shape = from_config(GEMMA, "Q4_K_M", "gemma")
    assert [(group.n_layers, group.window) for group in shape.attention] == [(3, None), (15, 512)]
    full, windowed = cache_bytes(shape, ContextSettings(32_768)), cache_bytes(shape, ContextSettings(1024))
    assert full - windowed == 3 * (32_768 - 1024) * 2 * 256 * 2


def test_the_header_alone_is_enough(tmp_path: Path) -> None:
    """The bytes that a range request would bring: everything before the weights."""
    path = write_tiny(tmp_path / "model.gguf", "qwen3")
    whole = read_header(path)
    head = memoryview(path.read_bytes()[: whole.data_offset])
    assert from_header(parse_header(head, path, None), "x") == from_header(whole, "x")


def test_an_unknown_cache_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "new.gguf"
    writer = gguf.GGUFWriter(path, "brandnew")
    writer.add_block_count(4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnknownShape, match="--probe"):
        from_header(read_header(path))
    with pytest.raises(UnknownShape, match="brandnew"):
        from_config({**QWEN, "model_type": "brandnew"}, "Q4_K_M", "x")
    with pytest.raises(UnknownShape, match="Q9_X"):
        from_config(QWEN, "Q9_X", "x")
    with pytest.raises(UnknownShape, match="hidden_size"):
        from_config({"model_type": "qwen2", "num_hidden_layers": 1, "num_attention_heads": 1}, "Q8_0", "x")


def test_a_token_of_a_mixture_reads_its_own_experts_alone(tmp_path: Path) -> None:
    sizes = {"n_experts": 8, "n_experts_used": 2}
    shape = from_header(read_header(write_tiny(tmp_path / "model.gguf", "qwen3moe", **sizes)))
    assert shape.weight_bytes - shape.bytes_read_per_token == shape.expert_bytes * 6 // 8
    read = [shape.bytes_read(n) for n in range(1, 40)]
    assert read == sorted(read)
    assert shape.weight_bytes - read[3] == pytest.approx(shape.expert_bytes * (6 / 8) ** 4, abs=2)
    assert read[-1] == pytest.approx(shape.weight_bytes, rel=1e-4)


def test_an_embedding_of_its_own_is_not_read_for_every_token(tmp_path: Path) -> None:
    tied = from_header(read_header(write_tiny(tmp_path / "tied.gguf")))
    own = from_header(read_header(write_tiny(tmp_path / "own.gguf", tied=False)))
    assert own.weight_bytes > tied.weight_bytes
    assert own.bytes_read_per_token == tied.bytes_read_per_token


def test_counts_alone_do_not_tell_a_latent_cache() -> None:
    counts = Counts("deepseek2", 1, 1, 1, head_dim=64, n_embd=64, n_ff=64, n_vocab=100, n_ctx_train=128)
    with pytest.raises(UnknownShape, match="deepseek2"):
        from_counts("x", "Q8_0", counts)


@pytest.mark.parametrize("architecture", ["qwen35", "lfm2", "granitehybrid"])
def test_of_a_model_that_keeps_a_state_counts_and_bytes_tell_what_its_header_does(
    tmp_path: Path, architecture: str
) -> None:
    path = write_tiny(tmp_path / "x.gguf", architecture, weights="Q8_0", n_layers=8, n_embd=256, n_ff=512, n_vocab=2000)
    told = from_header(read_header(path), "x")
    (attention,) = told.attention
    counts = Counts(
        architecture, told.n_layers, told.n_heads, attention.k_width // attention.head_dim, attention.head_dim,
        told.n_embd, told.n_ff, told.n_vocab, told.n_ctx_train, n_params=told.n_params, tied=True,
        n_attending=attention.n_layers, state_elements=told.state_elements,
    )  # fmt: skip
    counted = from_counts("x", "Q8_0", counts, weight_bytes=told.weight_bytes)
    assert (counted.attention, counted.state_elements) == (told.attention, told.state_elements)
    assert counted.bytes_read_per_token == pytest.approx(told.bytes_read_per_token, rel=0.01)
    place = sized_device(2**33)
    plans = [solve(shape, None, place, PlanRequest(n_ctx=4096, kv="f16")).plan for shape in (counted, told)]
    assert plans[0].process_bytes == pytest.approx(plans[1].process_bytes, rel=0.02)
    with pytest.raises(UnknownShape, match="pull the file"):
        from_counts("x", "Q8_0", counts)
