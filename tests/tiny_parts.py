"""What architectures of tiny models have in common: sizes, random tensors, parts of layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gguf
import numpy as np


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
    d_state: int = 16  # of recurrent layers; d_inner 0: twice the width, or heads x state in delta nets
    d_inner: int = 0
    n_ssm_heads: int = 4
    n_ssm_groups: int = 1
    per_layer: int = 32  # of each token's second embedding, a layer
    n_shared_kv: int = 4  # last layers that attend to the keys and values of earlier ones; architectures that can
    tied: bool = True  # the output matrix is the embedding


class Tensors:
    def __init__(
        self, writer: gguf.GGUFWriter, rng: np.random.Generator | None, kind: gguf.GGMLQuantizationType, n_vocab: int
    ) -> None:
        self.writer, self.rng, self.kind = writer, rng, kind
        self.architecture, self.n_vocab = writer.arch, n_vocab
        self.n_bytes = 0  # of those left out

    def add(self, name: str, *shape: int) -> None:
        """A random tensor, innermost extent first as in ggml. Matrices take the model's type, the rest F32."""
        others = ("conv1d.weight", ".conv.weight", "norm.weight", "ssm_a", ".bias")
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
        if name.endswith("ssm_a"):  # a state that grows is no number after some hundred tokens
            values = -np.abs(values)
        if matrix and self.kind != gguf.GGMLQuantizationType.F32:
            self.writer.add_tensor(name, gguf.quants.quantize(values, self.kind), raw_dtype=self.kind)
        else:
            self.writer.add_tensor(name, values)


def attention_metadata(writer: gguf.GGUFWriter, tiny: Tiny, *, head_dim: int | None = None) -> None:
    writer.add_head_count(tiny.n_heads)
    writer.add_head_count_kv(tiny.n_kv_heads)
    if head_dim is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)


def output_norm(tensors: Tensors, tiny: Tiny) -> None:
    tensors.add("output_norm.weight", tiny.n_embd)


def ffn(tensors: Tensors, tiny: Tiny, layer: int) -> None:
    tensors.add(f"blk.{layer}.ffn_norm.weight", tiny.n_embd)
    tensors.add(f"blk.{layer}.ffn_gate.weight", tiny.n_embd, tiny.n_ff)
    tensors.add(f"blk.{layer}.ffn_up.weight", tiny.n_embd, tiny.n_ff)
    tensors.add(f"blk.{layer}.ffn_down.weight", tiny.n_ff, tiny.n_embd)


def qkvo(tensors: Tensors, tiny: Tiny, layer: int, head_dim: int, *, bias: bool = False, norms: bool = False) -> None:
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


def experts(tensors: Tensors, tiny: Tiny, layer: int) -> None:
    tensors.add(f"blk.{layer}.ffn_gate_inp.weight", tiny.n_embd, tiny.n_experts)
    tensors.add(f"blk.{layer}.ffn_gate_exps.weight", tiny.n_embd, tiny.n_ff, tiny.n_experts)
    tensors.add(f"blk.{layer}.ffn_up_exps.weight", tiny.n_embd, tiny.n_ff, tiny.n_experts)
    tensors.add(f"blk.{layer}.ffn_down_exps.weight", tiny.n_ff, tiny.n_embd, tiny.n_experts)


def expert_counts(writer: gguf.GGUFWriter, tiny: Tiny) -> None:
    writer.add_expert_count(tiny.n_experts)
    writer.add_expert_used_count(tiny.n_experts_used)
    writer.add_expert_feed_forward_length(tiny.n_ff)


def shared_expert(tensors: Tensors, tiny: Tiny, layer: int) -> None:
    tensors.add(f"blk.{layer}.ffn_gate_shexp.weight", tiny.n_embd, tiny.n_ff)
    tensors.add(f"blk.{layer}.ffn_up_shexp.weight", tiny.n_embd, tiny.n_ff)
    tensors.add(f"blk.{layer}.ffn_down_shexp.weight", tiny.n_ff, tiny.n_embd)


def gated_ffn(tensors: Tensors, tiny: Tiny, layer: int) -> None:
    """Without a norm, which some architectures name otherwise."""
    tensors.add(f"blk.{layer}.ffn_gate.weight", tiny.n_embd, tiny.n_ff)
    tensors.add(f"blk.{layer}.ffn_up.weight", tiny.n_embd, tiny.n_ff)
    tensors.add(f"blk.{layer}.ffn_down.weight", tiny.n_ff, tiny.n_embd)
