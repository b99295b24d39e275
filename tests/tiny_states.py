"""Tiny models with recurrent layers: states alone, or beside attention."""

from __future__ import annotations

from collections.abc import Callable

import gguf
from tiny_parts import (
    Tensors,
    Tiny,
    attention_metadata,
    expert_counts,
    experts,
    ffn,
    gated_ffn,
    output_norm,
    qkvo,
    shared_expert,
)

DELTA_CONV = 4


def _mamba(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Recurrent in every layer."""
    d_inner, d_state, d_conv, dt_rank = 2 * tiny.n_embd, 16, 4, 8
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(dt_rank)
    output_norm(tensors, tiny)
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


def _mamba2_layer(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny, layer: int) -> None:
    d_inner, d_state, d_conv = tiny.d_inner or 2 * tiny.n_embd, tiny.d_state, 4
    n_heads, n_groups = tiny.n_ssm_heads, tiny.n_ssm_groups
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


def _mamba2(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        _mamba2_layer(writer, tensors, tiny, layer)


def _granitehybrid(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Hybrid: Mamba 2 in every layer but each second, which attends; of its state the engine keeps no snapshots."""
    writer.add_head_count(tiny.n_heads)
    writer.add_head_count_kv([tiny.n_kv_heads if layer % 2 else 0 for layer in range(tiny.n_layers)])
    output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        if layer % 2:
            qkvo(tensors, tiny, layer, tiny.n_embd // tiny.n_heads)
        else:
            _mamba2_layer(writer, tensors, tiny, layer)
        ffn(tensors, tiny, layer)


def _falcon_h1(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Hybrid: every layer attends and keeps a state beside."""
    head_dim = tiny.n_embd // tiny.n_heads
    attention_metadata(writer, tiny, head_dim=head_dim)
    output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        _mamba2_layer(writer, tensors, tiny, layer)
        for name, width in (("q", tiny.n_heads), ("k", tiny.n_kv_heads), ("v", tiny.n_kv_heads)):
            tensors.add(f"blk.{layer}.attn_{name}.weight", tiny.n_embd, head_dim * width)
        tensors.add(f"blk.{layer}.attn_output.weight", tiny.n_embd, tiny.n_embd)
        tensors.add(f"blk.{layer}.ffn_norm", tiny.n_embd)
        for name in ("gate", "up"):
            tensors.add(f"blk.{layer}.ffn_{name}.weight", tiny.n_embd, tiny.n_ff)
        tensors.add(f"blk.{layer}.ffn_down.weight", tiny.n_ff, tiny.n_embd)


def _lfm2(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny, n_dense: int | None = None) -> None:
    """Hybrid: a short convolution in every layer but each second, which attends."""
    attends = [layer % 2 == 1 for layer in range(tiny.n_layers)]
    head_dim, l_cache = tiny.n_embd // tiny.n_heads, 3
    writer.add_head_count(tiny.n_heads)
    writer.add_head_count_kv([tiny.n_kv_heads if attends[layer] else 0 for layer in range(tiny.n_layers)])
    writer.add_shortconv_l_cache(l_cache)
    tensors.add("token_embd_norm.weight", tiny.n_embd)
    for layer in range(tiny.n_layers):
        if attends[layer]:
            qkvo(tensors, tiny, layer, head_dim, norms=True)
        else:
            tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
            tensors.add(f"blk.{layer}.shortconv.conv.weight", l_cache, tiny.n_embd)
            tensors.add(f"blk.{layer}.shortconv.in_proj.weight", tiny.n_embd, 3 * tiny.n_embd)
            tensors.add(f"blk.{layer}.shortconv.out_proj.weight", tiny.n_embd, tiny.n_embd)
        if n_dense is None or layer < n_dense:
            ffn(tensors, tiny, layer)
            continue
        tensors.add(f"blk.{layer}.ffn_norm.weight", tiny.n_embd)
        experts(tensors, tiny, layer)
        tensors.add(f"blk.{layer}.exp_probs_b.bias", tiny.n_experts)


def _lfm2moe(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """The same, with experts in all but the first layer."""
    expert_counts(writer, tiny)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_leading_dense_block_count(1)
    _lfm2(writer, tensors, tiny, n_dense=1)


def _delta_net_layer(tensors: Tensors, tiny: Tiny, layer: int) -> None:
    d_inner, d_key = tiny.d_state * tiny.n_ssm_heads, tiny.d_state * max(tiny.n_ssm_groups, 2)
    tensors.add(f"blk.{layer}.attn_qkv.weight", tiny.n_embd, 2 * d_key + d_inner)
    tensors.add(f"blk.{layer}.attn_gate.weight", tiny.n_embd, d_inner)
    tensors.add(f"blk.{layer}.ssm_conv1d.weight", DELTA_CONV, 2 * d_key + d_inner)
    tensors.add(f"blk.{layer}.ssm_dt.bias", tiny.n_ssm_heads)
    tensors.add(f"blk.{layer}.ssm_a", tiny.n_ssm_heads)
    tensors.add(f"blk.{layer}.ssm_norm.weight", tiny.d_state)
    tensors.add(f"blk.{layer}.ssm_out.weight", d_inner, tiny.n_embd)
    if tensors.architecture == "qwen3next":
        tensors.add(f"blk.{layer}.ssm_ba.weight", tiny.n_embd, 2 * tiny.n_ssm_heads)
    else:
        tensors.add(f"blk.{layer}.ssm_beta.weight", tiny.n_embd, tiny.n_ssm_heads)
        tensors.add(f"blk.{layer}.ssm_alpha.weight", tiny.n_embd, tiny.n_ssm_heads)


def _delta_nets(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """A gated delta net in all but every fourth layer, which attends with a gated output; without feed-forward."""
    attention_metadata(writer, tiny, head_dim=tiny.head_dim)
    writer.add_rope_dimension_count(tiny.head_dim)
    writer.add_ssm_conv_kernel(DELTA_CONV)
    writer.add_ssm_inner_size(tiny.d_state * tiny.n_ssm_heads)
    writer.add_ssm_state_size(tiny.d_state)
    writer.add_ssm_time_step_rank(tiny.n_ssm_heads)
    writer.add_ssm_group_count(max(tiny.n_ssm_groups, 2))
    output_norm(tensors, tiny)
    n_q, n_kv = tiny.head_dim * tiny.n_heads, tiny.head_dim * tiny.n_kv_heads
    for layer in range(tiny.n_layers):
        tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.post_attention_norm.weight", tiny.n_embd)
        if (layer + 1) % 4:
            _delta_net_layer(tensors, tiny, layer)
            continue
        tensors.add(f"blk.{layer}.attn_q.weight", tiny.n_embd, 2 * n_q)
        tensors.add(f"blk.{layer}.attn_k.weight", tiny.n_embd, n_kv)
        tensors.add(f"blk.{layer}.attn_v.weight", tiny.n_embd, n_kv)
        tensors.add(f"blk.{layer}.attn_output.weight", n_q, tiny.n_embd)
        tensors.add(f"blk.{layer}.attn_q_norm.weight", tiny.head_dim)
        tensors.add(f"blk.{layer}.attn_k_norm.weight", tiny.head_dim)


def _qwen35(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Hybrid: gated delta nets, and attention in every fourth layer."""
    writer.add_rope_dimension_sections([tiny.head_dim // 4, tiny.head_dim // 8, tiny.head_dim // 8, 0])
    _delta_nets(writer, tensors, tiny)
    for layer in range(tiny.n_layers):
        gated_ffn(tensors, tiny, layer)


def _qwen3next(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """The same layers with experts, of which one sees every token; of its state the engine keeps no snapshots."""
    expert_counts(writer, tiny)
    writer.add_expert_shared_feed_forward_length(tiny.n_ff)
    _delta_nets(writer, tensors, tiny)
    for layer in range(tiny.n_layers):
        experts(tensors, tiny, layer)
        shared_expert(tensors, tiny, layer)
        tensors.add(f"blk.{layer}.ffn_gate_inp_shexp.weight", tiny.n_embd)


def _qwen35moe(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Likewise, with snapshots."""
    writer.add_rope_dimension_sections([tiny.head_dim // 4, tiny.head_dim // 8, tiny.head_dim // 8, 0])
    _qwen3next(writer, tensors, tiny)


def _nemotron_h(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Hybrid: a layer is Mamba 2, or feed-forward, or attention, in turn."""
    kinds = [("mamba", "ffn", "attn", "ffn")[layer % 4] for layer in range(tiny.n_layers)]
    writer.add_layer_norm_eps(1e-6)
    writer.add_feed_forward_length([tiny.n_ff if kind == "ffn" else 0 for kind in kinds])
    writer.add_head_count(tiny.n_heads)
    writer.add_head_count_kv([tiny.n_kv_heads if kind == "attn" else 0 for kind in kinds])
    writer.add_key_length(tiny.head_dim)
    writer.add_value_length(tiny.head_dim)
    output_norm(tensors, tiny)
    for layer, kind in enumerate(kinds):
        if kind == "mamba":
            _mamba2_layer(writer, tensors, tiny, layer)
        elif kind == "attn":
            qkvo(tensors, tiny, layer, tiny.head_dim)
        else:
            tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
            tensors.add(f"blk.{layer}.ffn_up.weight", tiny.n_embd, tiny.n_ff)
            tensors.add(f"blk.{layer}.ffn_down.weight", tiny.n_ff, tiny.n_embd)


RECURRENT: dict[str, Callable[[gguf.GGUFWriter, Tensors, Tiny], None]] = {
    "mamba": _mamba,
    "mamba2": _mamba2,
    "granitehybrid": _granitehybrid,
    "falcon-h1": _falcon_h1,
    "nemotron_h": _nemotron_h,
    "lfm2": _lfm2,
    "lfm2moe": _lfm2moe,
    "qwen35": _qwen35,
    "qwen35moe": _qwen35moe,
    "qwen3next": _qwen3next,
}
