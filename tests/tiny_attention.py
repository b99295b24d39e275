"""Tiny models that attend in every layer, each with its tensors and keys as llama.cpp wants them."""

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


def _llama(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    attention_metadata(writer, tiny)
    output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        qkvo(tensors, tiny, layer, tiny.n_embd // tiny.n_heads)
        ffn(tensors, tiny, layer)


def _qwen2(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    attention_metadata(writer, tiny)
    output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        qkvo(tensors, tiny, layer, tiny.n_embd // tiny.n_heads, bias=True)
        ffn(tensors, tiny, layer)


def _qwen3(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    attention_metadata(writer, tiny, head_dim=tiny.head_dim)
    output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        qkvo(tensors, tiny, layer, tiny.head_dim, norms=True)
        ffn(tensors, tiny, layer)


def _gemma3(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Sliding window on all but every sixth layer."""
    attention_metadata(writer, tiny, head_dim=tiny.head_dim)
    writer.add_sliding_window(tiny.window)
    output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        qkvo(tensors, tiny, layer, tiny.head_dim, norms=True)
        ffn(tensors, tiny, layer)
        tensors.add(f"blk.{layer}.post_attention_norm.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.post_ffw_norm.weight", tiny.n_embd)


def _phi3(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Fused Q/K/V and fused gate/up."""
    attention_metadata(writer, tiny)
    writer.add_rope_dimension_count(tiny.n_embd // tiny.n_heads)
    output_norm(tensors, tiny)
    n_kv = tiny.n_embd // tiny.n_heads * tiny.n_kv_heads
    for layer in range(tiny.n_layers):
        tensors.add(f"blk.{layer}.attn_norm.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.attn_qkv.weight", tiny.n_embd, tiny.n_embd + 2 * n_kv)
        tensors.add(f"blk.{layer}.attn_output.weight", tiny.n_embd, tiny.n_embd)
        tensors.add(f"blk.{layer}.ffn_norm.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.ffn_up.weight", tiny.n_embd, 2 * tiny.n_ff)
        tensors.add(f"blk.{layer}.ffn_down.weight", tiny.n_ff, tiny.n_embd)


def _qwen3moe(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    attention_metadata(writer, tiny, head_dim=tiny.head_dim)
    expert_counts(writer, tiny)
    output_norm(tensors, tiny)
    for layer in range(tiny.n_layers):
        qkvo(tensors, tiny, layer, tiny.head_dim, norms=True)
        tensors.add(f"blk.{layer}.ffn_norm.weight", tiny.n_embd)
        experts(tensors, tiny, layer)


def _deepseek2(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
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
    expert_counts(writer, tiny)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(1.0)
    output_norm(tensors, tiny)
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
            ffn(tensors, tiny, layer)
            continue
        tensors.add(f"blk.{layer}.ffn_norm.weight", tiny.n_embd)
        experts(tensors, tiny, layer)
        shared_expert(tensors, tiny, layer)


def _per_layer_inputs(tensors: Tensors, tiny: Tiny, width: int) -> None:
    """A second embedding, of which each layer gets a part of each token's row."""
    tensors.add("per_layer_token_embd.weight", width * tiny.n_layers, tensors.n_vocab)
    tensors.add("per_layer_model_proj.weight", tiny.n_embd, width * tiny.n_layers)
    tensors.add("per_layer_proj_norm.weight", width)
    for layer in range(tiny.n_layers):
        tensors.add(f"blk.{layer}.inp_gate.weight", tiny.n_embd, width)
        tensors.add(f"blk.{layer}.proj.weight", width, tiny.n_embd)
        tensors.add(f"blk.{layer}.post_norm.weight", tiny.n_embd)


def _gemma3n(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Sliding window on all but every fifth layer; layers from the 21st on have no cache of their own."""
    n_altup, laurel_rank, width = 4, 64, 256  # llama.cpp knows no others
    attention_metadata(writer, tiny, head_dim=tiny.head_dim)
    writer.add_sliding_window(tiny.window)
    output_norm(tensors, tiny)
    tensors.add("altup_proj.weight", tiny.n_embd, tiny.n_embd, n_altup - 1)
    tensors.add("altup_unembd_proj.weight", tiny.n_embd, tiny.n_embd, n_altup - 1)
    _per_layer_inputs(tensors, tiny, width)
    for layer in range(tiny.n_layers):
        qkvo(tensors, tiny, layer, tiny.head_dim, norms=True)
        ffn(tensors, tiny, layer)
        for name in ("post_attention_norm", "post_ffw_norm", "laurel_post_norm", "altup_router_norm"):
            tensors.add(f"blk.{layer}.{name}.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.altup_correct_coef.weight", n_altup, n_altup)
        tensors.add(f"blk.{layer}.altup_correct_scale.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.altup_predict_coef.weight", n_altup, n_altup * n_altup)
        tensors.add(f"blk.{layer}.altup_router.weight", tiny.n_embd, n_altup)
        tensors.add(f"blk.{layer}.laurel_l.weight", tiny.n_embd, laurel_rank)
        tensors.add(f"blk.{layer}.laurel_r.weight", laurel_rank, tiny.n_embd)


def _gemma4(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Layers that slide have narrower heads and more of them; the last layers have no cache of their own."""
    slides = [layer % 4 != 3 for layer in range(tiny.n_layers)]
    width, narrow, n_kv_heads = tiny.per_layer, tiny.head_dim // 2, tiny.n_kv_heads
    n_shared = tiny.n_shared_kv if tiny.n_layers > 4 else 0
    n_kv = [n_kv_heads if sliding else max(n_kv_heads // 2, 1) for sliding in slides]
    writer.add_head_count(tiny.n_heads)
    writer.add_head_count_kv(n_kv)
    writer.add_key_length(tiny.head_dim)
    writer.add_value_length(tiny.head_dim)
    writer.add_key_length_swa(narrow)
    writer.add_value_length_swa(narrow)
    writer.add_rope_dimension_count(tiny.head_dim)
    writer.add_rope_dimension_count_swa(narrow)
    writer.add_sliding_window(tiny.window)
    writer.add_sliding_window_pattern(slides)
    writer.add_shared_kv_layers(n_shared)
    writer.add_embedding_length_per_layer_input(width)
    writer.add_final_logit_softcapping(30.0)
    output_norm(tensors, tiny)
    _per_layer_inputs(tensors, tiny, width)
    tensors.add("rope_freqs.weight", tiny.head_dim // 2)
    for layer, sliding in enumerate(slides):
        head_dim = narrow if sliding else tiny.head_dim
        n_q, n_key = head_dim * tiny.n_heads, head_dim * n_kv[layer]
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            tensors.add(f"blk.{layer}.{name}.weight", tiny.n_embd)
        tensors.add(f"blk.{layer}.attn_q.weight", tiny.n_embd, n_q)
        tensors.add(f"blk.{layer}.attn_q_norm.weight", head_dim)
        tensors.add(f"blk.{layer}.attn_output.weight", n_q, tiny.n_embd)
        if layer < tiny.n_layers - n_shared:
            tensors.add(f"blk.{layer}.attn_k.weight", tiny.n_embd, n_key)
            tensors.add(f"blk.{layer}.attn_k_norm.weight", head_dim)
            if sliding:  # where there is no V, the keys serve, as in the larger models
                tensors.add(f"blk.{layer}.attn_v.weight", tiny.n_embd, n_key)
        gated_ffn(tensors, tiny, layer)
        tensors.add(f"blk.{layer}.layer_output_scale.weight", 1)


def _gpt_oss(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Experts with biases, attention with sinks, a sliding window in every other layer."""
    attention_metadata(writer, tiny, head_dim=tiny.head_dim)
    writer.add_rope_dimension_count(tiny.head_dim)
    writer.add_sliding_window(tiny.window)
    expert_counts(writer, tiny)
    output_norm(tensors, tiny)
    if tiny.tied:
        tensors.add("output.weight", tiny.n_embd, tensors.n_vocab)  # it has to have one
    for layer in range(tiny.n_layers):
        qkvo(tensors, tiny, layer, tiny.head_dim, bias=True)
        tensors.add(f"blk.{layer}.attn_output.bias", tiny.n_embd)
        tensors.add(f"blk.{layer}.attn_sinks.weight", tiny.n_heads)
        tensors.add(f"blk.{layer}.post_attention_norm.weight", tiny.n_embd)
        experts(tensors, tiny, layer)
        tensors.add(f"blk.{layer}.ffn_gate_inp.bias", tiny.n_experts)
        tensors.add(f"blk.{layer}.ffn_gate_exps.bias", tiny.n_ff, tiny.n_experts)
        tensors.add(f"blk.{layer}.ffn_up_exps.bias", tiny.n_ff, tiny.n_experts)
        tensors.add(f"blk.{layer}.ffn_down_exps.bias", tiny.n_embd, tiny.n_experts)


def _bert(writer: gguf.GGUFWriter, tensors: Tensors, tiny: Tiny) -> None:
    """Every token sees every other, and none is predicted."""
    attention_metadata(writer, tiny)
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


DECODERS: dict[str, Callable[[gguf.GGUFWriter, Tensors, Tiny], None]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _llama,
    "phi3": _phi3,
    "gemma3": _gemma3,
    "gemma3n": _gemma3n,
    "gemma4": _gemma4,
    "qwen3moe": _qwen3moe,
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
}
ENCODERS: dict[str, Callable[[gguf.GGUFWriter, Tensors, Tiny], None]] = {"bert": _bert}
