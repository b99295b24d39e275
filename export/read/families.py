"""The families that edgellm's own converter knows: tensors, what config.json leaves out, what llama.cpp computes.

A family is a table. `defaults` is what transformers takes for a key that the file leaves out, `fixed` what llama.cpp
computes whatever the file says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
_QK_NORM = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_PHI3_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
_QKV = ("attn_q", "attn_k", "attn_v")


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of transformer: llama.cpp's name for it, its tensors, and its account of config.json."""

    arch: str
    model_types: tuple[str, ...]
    layer: Mapping[str, str]  # Hub name within a layer -> GGUF name within a block
    defaults: Mapping[str, Any]  # of keys that are read
    fixed: Mapping[str, tuple[Any, ...]]  # key -> the values that llama.cpp computes
    idle: Collection[str] = ()  # keys that this family's code in transformers does not read
    scalings: Collection[str] = ("default", "dynamic", "linear", "yarn")  # of the rotary embedding
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # key that is true -> GGUF parts with a bias
    permute: bool = False  # llama.cpp rotates neighbours, the Hub halves
    gemma: bool = False  # norms are stored less 1
    has_window: bool = False  # llama.cpp computes its sliding windows
    square_heads: bool = False  # llama.cpp takes hidden_size for the width of all heads together
    nested: bool = False  # the text model's configuration may stand in text_config

    def bias_parts(self, config: Mapping[str, Any]) -> frozenset[str]:
        """GGUF parts of a block that have a bias in a model of this configuration."""
        return frozenset(part for key, parts in self.biases.items() if key == "" or config.get(key) for part in parts)


def _defaults(**own: Any) -> dict[str, Any]:
    """Those that several families share, and a family's own."""
    shared = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "num_key_value_heads": None, "head_dim": None}
    return shared | own


_GEMMA_DEFAULTS = _defaults(
    num_attention_heads=8, num_key_value_heads=4, head_dim=256, tie_word_embeddings=True, query_pre_attn_scalar=256,
    sliding_window=4096, layer_types=None, final_logit_softcapping=None, attn_logit_softcapping=None,
    hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
)  # fmt: skip
_SILU = {"hidden_act": ("silu", "swish")}
# `hidden_act` is an older name that transformers leaves aside where Gemma is concerned.
_GEMMA_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False, None),
    "use_bidirectional_attention": (False, None),
}  # fmt: skip
_QWEN = {
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}

_LLAMA_SCALINGS = ("default", "dynamic", "linear", "yarn", "llama3", "longrope")
_LLAMA = Family(
    "llama", ("llama",), _LAYER,
    _defaults(attention_bias=False, mlp_bias=False, max_position_embeddings=2048), _SILU, permute=True,
    idle=("sliding_window", "use_sliding_window", "max_window_layers"),
    scalings=_LLAMA_SCALINGS,
    biases={"attention_bias": (*_QKV, "attn_output"), "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down")},
)  # fmt: skip
_MISTRAL = Family(
    "llama", ("mistral",), _LAYER,
    _defaults(num_key_value_heads=8, sliding_window=4096, max_position_embeddings=131_072), _SILU, permute=True,
    idle=("attention_bias",), scalings=_LLAMA_SCALINGS,
)  # fmt: skip
_QWEN2 = Family(
    "qwen2", ("qwen2",), _LAYER, _defaults(num_key_value_heads=32, **_QWEN), _SILU,
    idle=("attention_bias",), biases={"": _QKV}, square_heads=True,
)  # fmt: skip
_QWEN3 = Family(
    "qwen3", ("qwen3",), _LAYER | _QK_NORM, _defaults(num_key_value_heads=32, head_dim=128, **_QWEN),
    _SILU | {"attention_bias": (False, None)},
)  # fmt: skip
_GEMMA2 = Family(
    "gemma2", ("gemma2",), _LAYER | _GEMMA_NORMS,
    _GEMMA_DEFAULTS | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "vocab_size": 256_000,
                       "max_position_embeddings": 8192},
    _GEMMA_FIXED, idle=("hidden_act", "sliding_window_size"), gemma=True, has_window=True,
)  # fmt: skip
_GEMMA3 = Family(
    "gemma3", ("gemma3_text", "gemma3"), _LAYER | _GEMMA_NORMS | _QK_NORM,
    _GEMMA_DEFAULTS | {"sliding_window_pattern": 6, "rope_local_base_freq": None, "vocab_size": 262_208,
                       "max_position_embeddings": 131_072},
    _GEMMA_FIXED,
    # The halves that see and join pictures are not exported, and `_sliding_window_pattern` is a copy of layer_types.
    idle=("hidden_act", "vision_config", "image_token_index", "mm_tokens_per_image", "boi_token_index",
          "eoi_token_index", "image_token_id", "_sliding_window_pattern"),
    scalings=("default", "dynamic", "linear"), gemma=True, has_window=True, nested=True,
)  # fmt: skip
_PHI3 = Family(
    "phi3", ("phi3",), _PHI3_LAYER,
    _defaults(rms_norm_eps=1e-5, sliding_window=None, max_position_embeddings=4096,
              original_max_position_embeddings=4096),
    # Settings of its authors' own code, stated at the values that change nothing.
    _SILU | {"full_attn_mod": (1, None), "interpolate_factor": (1, None), "lm_head_bias": (False, None),
             "mlp_bias": (False, None)},
    idle=("attention_bias",), scalings=("default", "longrope"), square_heads=True,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _MISTRAL,
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "Phi3ForCausalLM": _PHI3,
}

_T5_ATTENTION = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_o"}
_T5 = Family(
    "t5", ("t5", "mt5", "umt5"),
    {f"SelfAttention.{name}": part for name, part in _T5_ATTENTION.items()}
    | {f"EncDecAttention.{name}": f"cross_{part}" for name, part in _T5_ATTENTION.items()}
    | {"SelfAttention.relative_attention_bias": "attn_rel_b", "DenseReluDense.wi": "ffn_up",
       "DenseReluDense.wi_0": "ffn_gate", "DenseReluDense.wi_1": "ffn_up", "DenseReluDense.wo": "ffn_down"},
    {"vocab_size": 32_128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": None,
     "num_heads": 8, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
     "layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu", "tie_word_embeddings": None,
     "scale_decoder_outputs": None, "decoder_start_token_id": 0, "n_positions": 512},
    {"relative_attention_max_distance": (128,), "feed_forward_proj": ("relu", "gated-gelu"),
     "is_encoder_decoder": (True, None), "is_decoder": (False, None)},
    # What follows from feed_forward_proj, whatever stands here; and a classifier's.
    idle=("dense_act_fn", "is_gated_act", "dropout_rate", "classifier_dropout", "output_past", "gradient_checkpointing",
          "use_cache", "max_new_tokens"),
)  # fmt: skip
# An encoder reads the prompt, and a decoder attends to it.
ENCODER_DECODERS: dict[str, Family] = {
    "T5ForConditionalGeneration": _T5,
    "T5WithLMHeadModel": _T5,
    "MT5ForConditionalGeneration": _T5,
    "UMT5ForConditionalGeneration": _T5,
}

# Read for every family, whatever it is.
READ = {
    "architectures", "model_type", "text_config", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "vocab_size", "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "partial_rotary_factor", "original_max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
    "unk_token_id",
}  # fmt: skip
# What a forward pass of a finished model does not ask for: how it was trained, stored, run, sampled from or named.
IDLE = {
    # training
    "initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop",
    "attn_pdrop", "dropout", "neftune_noise_alpha", "gradient_checkpointing", "use_gradient_checkpointing",
    "problem_type", "finetuning_task", "task_specific_params", "id2label", "label2id", "num_labels",
    # storage
    "dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path", "auto_map", "model_name",
    "custom_pipelines", "tokenizer_class", "unsloth_fixed", "unsloth_version", "transformers.js_config",
    "_commit_hash", "license", "is_llama_config", "rope_interleaved", "max_sequence_length", "activation",
    "base_model_tp_plan", "base_model_pp_plan",
    # running
    "use_cache", "cache_implementation", "cache_config", "attn_implementation", "_attn_implementation",
    "_attn_implementation_autoset", "use_flash_attention", "use_flash_attention_2", "use_flash_attn",
    "flash_attention", "_flash_attn_2_enabled", "use_bfloat16", "torchscript", "output_attentions",
    "output_hidden_states", "return_dict", "use_return_dict", "chunk_size_feed_forward", "pretraining_tp",
    "tf_legacy_loss", "tie_encoder_decoder", "is_decoder", "is_encoder_decoder", "add_cross_attention",
    "cross_attention_hidden_size", "pruned_heads", "prefix",
    # sampling, which the caller decides
    "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "diversity_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_beams",
    "num_beam_groups", "num_return_sequences", "early_stopping", "output_scores", "return_dict_in_generate",
    "remove_invalid_values", "exponential_decay_length_penalty", "sep_token_id", "decoder_start_token_id",
    "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
}  # fmt: skip
