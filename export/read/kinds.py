"""Which kind of value a setting of config.json has. A number that is none, or a flag that is a text, is damage; whoever
read it as the setting would export another model. The kinds are transformers 5's, which refuses the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31


def _is_list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


_KINDS: dict[str, tuple[str, Callable[[Any], bool], tuple[str, ...]]] = {
    "count": (
        "a whole number above 0", lambda value: _is_integer(value) and value > 0,
        ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "vocab_size", "max_position_embeddings", "original_max_position_embeddings", "sliding_window",
         "sliding_window_pattern", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
         "relative_attention_num_buckets", "relative_attention_max_distance", "n_positions"),
    ),
    "count or none": ("a whole number", lambda value: _is_integer(value) and value >= 0, ("max_window_layers",)),
    "number": (
        "a number above 0", lambda value: _is_number(value) and value > 0,
        ("rms_norm_eps", "layer_norm_epsilon", "rope_theta", "rope_local_base_freq",
         "query_pre_attn_scalar", "partial_rotary_factor",
         "attn_logit_softcapping", "final_logit_softcapping",
         # of the rotary embedding
         "factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow"),
    ),
    "number or nothing": (
        "a number", lambda value: _is_number(value) and value >= 0, ("mscale", "mscale_all_dim"),
    ),
    "numbers": (
        "numbers above 0", _is_list_of(lambda value: _is_number(value) and value > 0), ("short_factor", "long_factor"),
    ),
    "flag": (
        "true or false", lambda value: isinstance(value, bool),
        ("tie_word_embeddings", "attention_bias", "mlp_bias", "lm_head_bias", "use_sliding_window", "truncate",
         "use_bidirectional_attention", "finetuned", "scale_decoder_outputs"),
    ),
    "names": ("a list of names", _is_list_of(lambda value: isinstance(value, str)), ("layer_types", "architectures")),
    "text": (
        "a name", lambda value: isinstance(value, str),
        ("model_type", "hidden_act", "hidden_activation", "rope_type", "type", "feed_forward_proj"),
    ),
    "object": (
        "an object", lambda value: isinstance(value, dict),
        ("rope_parameters", "rope_scaling", "text_config", "quantization_config", "quantization"),
    ),
    "tokens": (
        "the number of a token, or a list of them",
        lambda value: _is_integer(value) or _is_list_of(_is_integer)(value), ("eos_token_id",),
    ),
    "token": (
        "the number of a token", _is_integer,
        ("bos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id"),
    ),
}  # fmt: skip
_KIND_OF = {key: (what, check) for what, check, keys in _KINDS.values() for key in keys}


def wanted(key: str, value: Any) -> str | None:
    """What kind of value `key` must have, in words, where `value` is of another; null stands for a key left out."""
    if value is None or key not in _KIND_OF:
        return None
    what, check = _KIND_OF[key]
    return None if check(value) else what
