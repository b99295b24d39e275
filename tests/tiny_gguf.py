"""Tiny random models that llama.cpp loads and runs, one for each way of keeping a cache.

`write_tiny(path, "qwen3", n_layers=4)` writes a GGUF with every tensor the architecture wants, random weights and a
byte-level vocabulary, so that any text can be tokenised. The same seed gives the same file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Tiny:
    """Sizes of a tiny model. Layers, heads and widths mean what they mean in GGUF metadata."""

    n_layers: int = 4
    n_embd: int = 64
    n_ff: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 32
    n_ctx_train: int = 32_768
    window: int = 64  # tokens; architectures with a sliding window
    n_experts: int = 4
    n_experts_used: int = 2
    tied: bool = True  # the output matrix is the embedding


def byte_symbols() -> list[str]:
    """GPT-2's printable character for each byte 0..255."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols, extra = {}, 0
    for byte in range(256):
        if byte in kept:
            symbols[byte] = chr(byte)
        else:
            symbols[byte], extra = chr(256 + extra), extra + 1
    return [symbols[byte] for byte in range(256)]


def write_tiny(
    path: Path,
    architecture: str = "llama",
    *,
    vocab: Literal["bpe", "spm", "none"] = "bpe",
    n_vocab: int = 320,
    merges: Sequence[tuple[str, str]] = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("Ġ", "a")),
    weights: Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "MXFP4"] = "F32",
    chat_template: str | None = CHATML,
    added: Sequence[str] = (),
    seed: int = 0,
    sparse: bool = False,
    pooling: int | None = None,
    **sizes: Any,
) -> Path:
    """Write a model of `architecture` (a key of `ARCHITECTURES`, or of `ENCODERS`) and return its path.

    Args:
        vocab: `bpe` is GPT-2's byte-level kind with `merges`; `spm` is Llama 2's, pieces with byte fallback; `none` is
            that of files that hold weights alone.
        n_vocab: at least 262; what bytes, control tokens and merges leave is filled with unused tokens.
        weights: type of the matrices; quantised ones need widths that are multiples of 32.
        added: tokens that stand for themselves, as `<think>` does in many models.
        sparse: leave the weights as a hole in the file, so that a model of any size can be sized but not run.
        pooling: GGUF's number of how a text's states become one vector.
        sizes: fields of `Tiny`.
    """
    tiny = Tiny(**sizes)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")  # llama.cpp looks for family names in it and then wants their special tokens
    writer.add_block_count(tiny.n_layers)
    writer.add_context_length(tiny.n_ctx_train)
    writer.add_embedding_length(tiny.n_embd)
    writer.add_feed_forward_length(tiny.n_ff)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(int(gguf.LlamaFileType[_FILE_TYPES[weights]]))
    rng = None if sparse else np.random.default_rng(seed)
    tensors = _Tensors(writer, rng, gguf.GGMLQuantizationType[weights])
    tensors.add("token_embd.weight", tiny.n_embd, n_vocab)
    if not tiny.tied:
        tensors.add("output.weight", tiny.n_embd, n_vocab)
    (ARCHITECTURES | ENCODERS)[architecture](writer, tensors, tiny)
    _add_vocabulary(writer, vocab, n_vocab, merges, added)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    if chat_template:
        writer.add_chat_template(chat_template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if sparse:
        writer.write_ti_data_to_file()
        writer.close()
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + tensors.n_bytes + 64)
    else:
        writer.write_tensors_to_file()
        writer.close()
    return path


_FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "MXFP4": "MOSTLY_MXFP4_MOE",
    "Q8_0": "MOSTLY_Q8_0",
    "Q4_0": "MOSTLY_Q4_0",
    "Q4_1": "MOSTLY_Q4_1",
}


class _Tensors:
    def __init__(
        self, writer: gguf.GGUFWriter, rng: np.random.Generator | None, kind: gguf.GGMLQuantizationType
    ) -> None:
        self.writer, self.rng, self.kind = writer, rng, kind
        self.n_bytes = 0  # of those left out

    def add(self, name: str, *shape: int) -> None:
        """A random tensor, innermost extent first as in ggml. Matrices take the model's type, the rest F32."""
        others = ("conv1d.weight", ".conv.weight", "norm.weight", "ssm_a")
        matrix = len(shape) > 1 and shape[0] % 32 == 0 and not name.endswith(others)
        if self.rng is None:
            kind = self.kind if matrix else gguf.GGMLQuantizationType.F32
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            n_bytes = math.prod(shape) // block * block_bytes
            row_bytes = (shape[0] // block * block_bytes,)
            stored = (*reversed(shape[1:]), *row_bytes) if block > 1 else tuple(reversed(shape))
            dtype = np.dtype(np.uint8 if block > 1 else np.float16 if block_bytes == 2 else np.float32)
            self.writer.add_tensor_info(name, stored, dtype, n_bytes, raw_dtype=kind)
            self.n_bytes += -(-n_bytes // 32) * 32
            return
        values = self.rng.standard_normal(tuple(reversed(shape)), dtype=np.float32) * 0.08
        if name.endswith("norm.weight"):
            values = values + 1.0
        if matrix and self.kind != gguf.GGMLQuantizationType.F32:
            self.writer.add_tensor(name, gguf.quants.quantize(values, self.kind), raw_dtype=self.kind)
        else:
            self.writer.add_tensor(name, values)


def _add_vocabulary(
    writer: gguf.GGUFWriter, kind: str, n_vocab: int, merges: Sequence[tuple[str, str]], added: Sequence[str]
) -> None:
    normal, unknown, control, byte = (int(gguf.TokenType[name]) for name in ("NORMAL", "UNKNOWN", "CONTROL", "BYTE"))
    pieces: list[tuple[str, int]]
    if kind == "none":
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(n_vocab)
        return
    if kind == "bpe":
        pieces = [(symbol, normal) for symbol in byte_symbols()]
        pieces += [(left + right, normal) for left, right in merges]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
    else:
        pieces = [("<unk>", unknown), *((f"<0x{value:02X}>", byte) for value in range(256))]
        pieces += [(symbol, normal) for symbol in ("▁", *map(chr, range(97, 123)), "▁a", "▁t", "he", "in", "▁the")]
        writer.add_tokenizer_model("llama")
    first_control = len(pieces)
    pieces += [(text, control) for text in CONTROL]
    pieces += [(text, int(gguf.TokenType.USER_DEFINED)) for text in added]
    if len(pieces) > n_vocab:
        raise ValueError(f"n_vocab={n_vocab} holds no {kind} vocabulary of {len(pieces)} pieces")
    pieces += [(f"<|unused{i}|>", control) for i in range(n_vocab - len(pieces))]
    writer.add_vocab_size(n_vocab)
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_types([type_ for _, type_ in pieces])
    if kind == "spm":
        writer.add_token_scores([float(-i) if type_ == normal else 0.0 for i, (_, type_) in enumerate(pieces)])
        writer.add_unk_token_id(0)
    writer.add_bos_token_id(first_control)
    writer.add_eos_token_id(first_control + 2)
    writer.add_add_bos_token(kind == "spm")


def _attention_metadata(writer: gguf.GGUFWriter, tiny: Tiny, *, head_dim: int | None = None) -> None:
    writer.add_head_count(tiny.n_heads)
    writer.add_head_count_kv(tiny.n_kv_heads)
    if head_dim is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)


def _output_norm(tensors: _Tensors, tiny: Tiny) -> None:
    tensors.add("output_norm.weight", tiny.n_embd)


def _ffn(tensors: _Tensors, tiny: Tiny, layer: int) -> None:
    tensors.add(f"blk.{layer}.ffn_norm.weight", tiny.n_embd)
    tensors.add(f"blk.{layer}.ffn_gate.weight", tiny.n_embd, tiny.n_ff)
    tensors.add(f"blk.{layer}.ffn_up.weight", tiny.n_embd, tiny.n_ff)
    tensors.add(f"blk.{layer}.ffn_down.weight", tiny.n_ff, tiny.n_embd)


def _qkvo(tensors: _Tensors, tiny: Tiny, layer: int, head_dim: int, *, bias: bool = False, norms: bool = False) -> None:
    n_q, n_kv = head_dim * tiny.n_heads, head_dim * tiny.n_kv_heads
    tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
    for name, width in (("q", n_q), ("k", n_kv), ("v", n_kv)):
        tensors.add(f"blk.{layer}.attn_{name}.weight", tiny.n_embd, width)
        if bias:
            tensors.add(f"blk.{layer}.attn_{name}.bias", width)
    tensors.add(f"blk.{layer}.attn_output.weight", n_q, tiny.n_embd)
    if norms:
        tensors.add(f"blk.{layer}.attn_q_norm.weight", head_dim)
        tensors.add(f"blk.{layer}.attn_k_norm.weight", head_dim)


def _llama(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    _attention_metadata(writer, tiny)
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        _qkvo(tensors, tiny, layer, tiny.n_embd // tiny.n_heads)
        _ffn(tensors, tiny, layer)


def _qwen2(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    _attention_metadata(writer, tiny)
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        _qkvo(tensors, tiny, layer, tiny.n_embd // tiny.n_heads, bias=True)
        _ffn(tensors, tiny, layer)


def _qwen3(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    _attention_metadata(writer, tiny, head_dim=tiny.head_dim)
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        _qkvo(tensors, tiny, layer, tiny.head_dim, norms=True)
        _ffn(tensors, tiny, layer)


def _gemma3(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    """Sliding window on all but every sixth layer."""
    _attention_metadata(writer, tiny, head_dim=tiny.head_dim)
    writer.add_sliding_window(tiny.window)
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        _qkvo(tensors, tiny, layer, tiny.head_dim, norms=True)
        _ffn(tensors, tiny, layer)
        tensors.add(f"blk.{layer}.post_attention_norm.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.post_ffw_norm.weight", tiny.n_embd)


def _phi3(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    """Fused Q/K/V and fused gate/up."""
    _attention_metadata(writer, tiny)
    writer.add_rope_dimension_count(tiny.n_embd // tiny.n_heads)
    _output_norm(tensors, tiny)
    n_kv = tiny.n_embd // tiny.n_heads * tiny.n_kv_heads
    for layer in range(tiny.n_layers):
        tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.attn_qkv.weight", tiny.n_embd, tiny.n_embd + 2 * n_kv)
        tensors.add(f"blk.{layer}.attn_output.weight", tiny.n_embd, tiny.n_embd)
        tensors.add(f"blk.{layer}.ffn_norm.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.ffn_up.weight", tiny.n_embd, 2 * tiny.n_ff)
        tensors.add(f"blk.{layer}.ffn_down.weight", tiny.n_ff, tiny.n_embd)


def _experts(tensors: _Tensors, tiny: Tiny, layer: int) -> None:
    tensors.add(f"blk.{layer}.ffn_gate_inp.weight", tiny.n_embd, tiny.n_experts)
    tensors.add(f"blk.{layer}.ffn_gate_exps.weight", tiny.n_embd, tiny.n_ff, tiny.n_experts)
    tensors.add(f"blk.{layer}.ffn_up_exps.weight", tiny.n_embd, tiny.n_ff, tiny.n_experts)
    tensors.add(f"blk.{layer}.ffn_down_exps.weight", tiny.n_ff, tiny.n_embd, tiny.n_experts)


def _qwen3moe(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    _attention_metadata(writer, tiny, head_dim=tiny.head_dim)
    writer.add_expert_count(tiny.n_experts)
    writer.add_expert_used_count(tiny.n_experts_used)
    writer.add_expert_feed_forward_length(tiny.n_ff)
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        _qkvo(tensors, tiny, layer, tiny.head_dim, norms=True)
        tensors.add(f"blk.{layer}.ffn_norm.weight", tiny.n_embd)
        _experts(tensors, tiny, layer)


def _mamba(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    """Recurrent in every layer."""
    d_inner, d_state, d_conv, dt_rank = 2 * tiny.n_embd, 16, 4, 8
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(dt_rank)
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.ssm_in.weight", tiny.n_embd, 2 * d_inner)
        tensors.add(f"blk.{layer}.ssm_conv1d.weight", d_conv, d_inner)
        tensors.add(f"blk.{layer}.ssm_conv1d.bias", d_inner)
        tensors.add(f"blk.{layer}.ssm_x.weight", d_inner, dt_rank + 2 * d_state)
        tensors.add(f"blk.{layer}.ssm_dt.weight", dt_rank, d_inner)
        tensors.add(f"blk.{layer}.ssm_dt.bias", d_inner)
        tensors.add(f"blk.{layer}.ssm_a", d_state, d_inner)
        tensors.add(f"blk.{layer}.ssm_d", d_inner)
        tensors.add(f"blk.{layer}.ssm_out.weight", d_inner, tiny.n_embd)


def _mamba2_layer(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny, layer: int) -> None:
    d_inner, d_state, d_conv, n_heads, n_groups = 2 * tiny.n_embd, 16, 4, 4, 1
    d_mixed = d_inner + 2 * n_groups * d_state
    if layer == 0:
        writer.add_ssm_conv_kernel(d_conv)
        writer.add_ssm_inner_size(d_inner)
        writer.add_ssm_state_size(d_state)
        writer.add_ssm_time_step_rank(n_heads)
        writer.add_ssm_group_count(n_groups)
    tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
    tensors.add(f"blk.{layer}.ssm_in.weight", tiny.n_embd, d_inner + d_mixed + n_heads)
    tensors.add(f"blk.{layer}.ssm_conv1d.weight", d_conv, d_mixed)
    tensors.add(f"blk.{layer}.ssm_conv1d.bias", d_mixed)
    tensors.add(f"blk.{layer}.ssm_dt.bias", n_heads)
    tensors.add(f"blk.{layer}.ssm_a", 1, n_heads)
    tensors.add(f"blk.{layer}.ssm_d", 1, n_heads)
    tensors.add(f"blk.{layer}.ssm_norm.weight", d_inner // n_groups, n_groups)
    tensors.add(f"blk.{layer}.ssm_out.weight", d_inner, tiny.n_embd)


def _mamba2(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        _mamba2_layer(writer, tensors, tiny, layer)


def _granitehybrid(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    """Hybrid: Mamba 2 in every layer but each second, which attends; of its state the engine keeps no snapshots."""
    writer.add_head_count(tiny.n_heads)
    writer.add_head_count_kv([tiny.n_kv_heads if layer % 2 else 0 for layer in range(tiny.n_layers)])
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        if layer % 2:
            _qkvo(tensors, tiny, layer, tiny.n_embd // tiny.n_heads)
        else:
            _mamba2_layer(writer, tensors, tiny, layer)
        _ffn(tensors, tiny, layer)


def _falcon_h1(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    """Hybrid: every layer attends and keeps a state beside."""
    head_dim = tiny.n_embd // tiny.n_heads
    _attention_metadata(writer, tiny, head_dim=head_dim)
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        _mamba2_layer(writer, tensors, tiny, layer)
        for name, width in (("q", tiny.n_heads), ("k", tiny.n_kv_heads), ("v", tiny.n_kv_heads)):
            tensors.add(f"blk.{layer}.attn_{name}.weight", tiny.n_embd, head_dim * width)
        tensors.add(f"blk.{layer}.attn_output.weight", tiny.n_embd, tiny.n_embd)
        tensors.add(f"blk.{layer}.ffn_norm", tiny.n_embd)
        for name in ("gate", "up"):
            tensors.add(f"blk.{layer}.ffn_{name}.weight", tiny.n_embd, tiny.n_ff)
        tensors.add(f"blk.{layer}.ffn_down.weight", tiny.n_ff, tiny.n_embd)


def _lfm2(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    """Hybrid: a short convolution in every layer but each second, which attends."""
    attends = [layer % 2 == 1 for layer in range(tiny.n_layers)]
    head_dim, l_cache = tiny.n_embd // tiny.n_heads, 3
    writer.add_head_count(tiny.n_heads)
    writer.add_head_count_kv([tiny.n_kv_heads if attends[layer] else 0 for layer in range(tiny.n_layers)])
    writer.add_shortconv_l_cache(l_cache)
    tensors.add("token_embd_norm.weight", tiny.n_embd)
    for layer in range(tiny.n_layers):
        if attends[layer]:
            _qkvo(tensors, tiny, layer, head_dim, norms=True)
        else:
            tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
            tensors.add(f"blk.{layer}.shortconv.conv.weight", l_cache, tiny.n_embd)
            tensors.add(f"blk.{layer}.shortconv.in_proj.weight", tiny.n_embd, 3 * tiny.n_embd)
            tensors.add(f"blk.{layer}.shortconv.out_proj.weight", tiny.n_embd, tiny.n_embd)
        _ffn(tensors, tiny, layer)


def _qwen35(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    """Hybrid: a gated delta net in all but every fourth layer, which attends with a gate on its output."""
    d_state, n_groups, n_ssm_heads, d_conv = 16, 2, 4, 4
    d_inner, d_key = d_state * n_ssm_heads, d_state * n_groups
    _attention_metadata(writer, tiny, head_dim=tiny.head_dim)
    writer.add_rope_dimension_count(tiny.head_dim)
    writer.add_rope_dimension_sections([tiny.head_dim // 4, tiny.head_dim // 8, tiny.head_dim // 8, 0])
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(n_ssm_heads)
    writer.add_ssm_group_count(n_groups)
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.post_attention_norm.weight", tiny.n_embd)
        if (layer + 1) % 4 == 0:
            n_q, n_kv = tiny.head_dim * tiny.n_heads, tiny.head_dim * tiny.n_kv_heads
            tensors.add(f"blk.{layer}.attn_q.weight", tiny.n_embd, 2 * n_q)
            tensors.add(f"blk.{layer}.attn_k.weight", tiny.n_embd, n_kv)
            tensors.add(f"blk.{layer}.attn_v.weight", tiny.n_embd, n_kv)
            tensors.add(f"blk.{layer}.attn_output.weight", n_q, tiny.n_embd)
            tensors.add(f"blk.{layer}.attn_q_norm.weight", tiny.head_dim)
            tensors.add(f"blk.{layer}.attn_k_norm.weight", tiny.head_dim)
        else:
            tensors.add(f"blk.{layer}.attn_qkv.weight", tiny.n_embd, 2 * d_key + d_inner)
            tensors.add(f"blk.{layer}.attn_gate.weight", tiny.n_embd, d_inner)
            tensors.add(f"blk.{layer}.ssm_conv1d.weight", d_conv, 2 * d_key + d_inner)
            tensors.add(f"blk.{layer}.ssm_dt.bias", n_ssm_heads)
            tensors.add(f"blk.{layer}.ssm_a", n_ssm_heads)
            tensors.add(f"blk.{layer}.ssm_beta.weight", tiny.n_embd, n_ssm_heads)
            tensors.add(f"blk.{layer}.ssm_alpha.weight", tiny.n_embd, n_ssm_heads)
            tensors.add(f"blk.{layer}.ssm_norm.weight", d_state)
            tensors.add(f"blk.{layer}.ssm_out.weight", d_inner, tiny.n_embd)
        for name, n_in, n_out in (("gate", tiny.n_embd, tiny.n_ff), ("up", tiny.n_embd, tiny.n_ff)):
            tensors.add(f"blk.{layer}.ffn_{name}.weight", n_in, n_out)
        tensors.add(f"blk.{layer}.ffn_down.weight", tiny.n_ff, tiny.n_embd)


def _deepseek2(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    """Multi-head latent attention: one row of `kv_lora + rope` a token, no V; one dense layer, then experts."""
    kv_lora, q_lora, n_rope, n_nope, n_value = 64, 48, 32, 32, 32
    writer.add_head_count(tiny.n_heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(kv_lora + n_rope)
    writer.add_value_length(kv_lora)
    writer.add_key_length_mla(n_nope + n_rope)
    writer.add_value_length_mla(n_value)
    writer.add_kv_lora_rank(kv_lora)
    writer.add_q_lora_rank(q_lora)
    writer.add_rope_dimension_count(n_rope)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_count(tiny.n_experts)
    writer.add_expert_used_count(tiny.n_experts_used)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(tiny.n_ff)
    writer.add_expert_weights_scale(1.0)
    _output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.attn_q_a_norm.weight", q_lora)
        tensors.add(f"blk.{layer}.attn_kv_a_norm.weight", kv_lora)
        tensors.add(f"blk.{layer}.attn_q_a.weight", tiny.n_embd, q_lora)
        tensors.add(f"blk.{layer}.attn_q_b.weight", q_lora, tiny.n_heads * (n_nope + n_rope))
        tensors.add(f"blk.{layer}.attn_kv_a_mqa.weight", tiny.n_embd, kv_lora + n_rope)
        tensors.add(f"blk.{layer}.attn_k_b.weight", n_nope, kv_lora, tiny.n_heads)
        tensors.add(f"blk.{layer}.attn_v_b.weight", kv_lora, n_value, tiny.n_heads)
        tensors.add(f"blk.{layer}.attn_output.weight", tiny.n_heads * n_value, tiny.n_embd)
        if layer == 0:
            _ffn(tensors, tiny, layer)
            continue
        tensors.add(f"blk.{layer}.ffn_norm.weight", tiny.n_embd)
        _experts(tensors, tiny, layer)
        tensors.add(f"blk.{layer}.ffn_gate_shexp.weight", tiny.n_embd, tiny.n_ff)
        tensors.add(f"blk.{layer}.ffn_up_shexp.weight", tiny.n_embd, tiny.n_ff)
        tensors.add(f"blk.{layer}.ffn_down_shexp.weight", tiny.n_ff, tiny.n_embd)


ARCHITECTURES: dict[str, Callable[[gguf.GGUFWriter, _Tensors, Tiny], None]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "qwen3moe": _qwen3moe,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "granitehybrid": _granitehybrid,
    "falcon-h1": _falcon_h1,
    "lfm2": _lfm2,
    "qwen35": _qwen35,
    "deepseek2": _deepseek2,
}


def _bert(writer: gguf.GGUFWriter, tensors: _Tensors, tiny: Tiny) -> None:
    """Every token sees every other, and none is predicted."""
    _attention_metadata(writer, tiny)
    writer.add_layer_norm_eps(1e-6)
    writer.add_causal_attention(False)
    writer.add_token_type_count(2)
    tensors.add("token_types.weight", tiny.n_embd, 2)
    tensors.add("position_embd.weight", tiny.n_embd, tiny.n_ctx_train)

    def with_bias(name: str, *shape: int) -> None:
        tensors.add(f"{name}.weight", *shape)
        tensors.add(f"{name}.bias", shape[-1])

    with_bias("token_embd_norm", tiny.n_embd)
    for layer in range(tiny.n_layers):
        for name in ("attn_q", "attn_output"):
            with_bias(f"blk.{layer}.{name}", tiny.n_embd, tiny.n_embd)
        for name in ("attn_k", "attn_v"):
            with_bias(f"blk.{layer}.{name}", tiny.n_embd, tiny.n_embd // tiny.n_heads * tiny.n_kv_heads)
        with_bias(f"blk.{layer}.ffn_up", tiny.n_embd, tiny.n_ff)
        with_bias(f"blk.{layer}.ffn_down", tiny.n_ff, tiny.n_embd)
        for name in ("attn_output_norm", "layer_output_norm"):
            with_bias(f"blk.{layer}.{name}", tiny.n_embd)


ENCODERS: dict[str, Callable[[gguf.GGUFWriter, _Tensors, Tiny], None]] = {"bert": _bert}
