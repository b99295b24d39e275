"""A tiny random T5 that llama.cpp loads and runs: encoder, decoder, and a unigram vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

WORDS = ("▁the", "▁a", "▁cat", "▁in", "▁hat", "▁of", "▁is", "the", "ing", "er", "at", "in", "▁and", "▁to", "ed", "on")
N_BUCKETS = 32  # of distances


def pieces() -> list[tuple[str, float, int]]:
    """(text, score, kind) of each token, as T5 numbers its first."""
    normal, unknown, control, user = (int(gguf.TokenType[k]) for k in ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED"))
    found = [("<pad>", 0.0, control), ("</s>", 0.0, control), ("<unk>", 0.0, unknown), ("▁", -3.0, normal)]
    signs = [chr(code) for code in range(33, 127)]
    found += [(word, -2.0 - 0.01 * i, normal) for i, word in enumerate(WORDS)]
    found += [(sign, -6.0 - 0.01 * i, normal) for i, sign in enumerate(signs)]
    return [*found, *((f"<extra_id_{i}>", 0.0, user) for i in range(2))]


def write_tiny_t5(
    path: Path,
    *,
    n_layers: int = 2,
    n_decoder_layers: int | None = None,
    n_embd: int = 64,
    n_ff: int = 128,
    n_heads: int = 4,
    head_dim: int = 16,
    n_vocab: int = 128,
    n_ctx_train: int = 512,
    gated: bool = True,
    tied: bool = False,
    n_buckets: int = N_BUCKETS,
    scale: float = 0.3,
    weights: Literal["F32", "F16", "Q8_0"] = "F32",
    seed: int = 0,
    **entries: Any,
) -> Path:
    """Write the model and return its path.

    Args:
        scale: standard deviation of the matrices.
        weights: type of the matrices; Q8_0 needs widths that are multiples of 32.
        entries: metadata written over what follows from the sizes, as uint32.
    """
    writer, rng = gguf.GGUFWriter(path, "t5"), np.random.default_rng(seed)
    n_decoder_layers = n_layers if n_decoder_layers is None else n_decoder_layers
    numbers = {
        "context_length": n_ctx_train, "embedding_length": n_embd, "feed_forward_length": n_ff,
        "block_count": n_layers, "decoder_block_count": n_decoder_layers, "attention.head_count": n_heads,
        "attention.key_length": head_dim, "attention.value_length": head_dim,
        "attention.relative_buckets_count": n_buckets, "decoder_start_token_id": 0,
    }  # fmt: skip
    for key, value in (numbers | entries).items():
        writer.add_uint32(f"t5.{key}", value)
    writer.add_float32("t5.attention.layer_norm_epsilon", 1e-6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(0)
    tokens = pieces()
    tokens += [(f"<unused{i}>", -20.0, int(gguf.TokenType.UNUSED)) for i in range(n_vocab - len(tokens))]
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(0)

    def add(name: str, *shape: int) -> None:
        values = rng.standard_normal(tuple(reversed(shape)), dtype=np.float32)
        is_norm = name.endswith("norm.weight")
        values = 1.0 + 0.1 * values if is_norm else scale * values
        kind = gguf.GGMLQuantizationType[weights]
        if weights == "F32" or len(shape) == 1 or "rel_b" in name:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    width = n_heads * head_dim
    add("token_embd.weight", n_embd, n_vocab)
    if not tied:
        add("output.weight", n_embd, n_vocab)
    for half, n in (("enc", n_layers), ("dec", n_decoder_layers)):
        add(f"{half}.output_norm.weight", n_embd)
        add(f"{half}.blk.0.attn_rel_b.weight", n_heads, n_buckets)
        for layer in range(n):
            for kind in ("attn", "cross_attn") if half == "dec" else ("attn",):
                add(f"{half}.blk.{layer}.{kind}_norm.weight", n_embd)
                for name in "qkv":
                    add(f"{half}.blk.{layer}.{kind}_{name}.weight", n_embd, width)
                add(f"{half}.blk.{layer}.{kind}_o.weight", width, n_embd)
            add(f"{half}.blk.{layer}.ffn_norm.weight", n_embd)
            for name in ("gate", "up") if gated else ("up",):
                add(f"{half}.blk.{layer}.ffn_{name}.weight", n_embd, n_ff)
            add(f"{half}.blk.{layer}.ffn_down.weight", n_ff, n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
