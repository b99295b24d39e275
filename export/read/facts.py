"""What config.json says, key by key: read here, without effect on what the model computes, or refused by name.

A family is a table. `defaults` is what transformers takes for a key that the file leaves out, `fixed` what llama.cpp
computes whatever the file says. Whatever no table knows is refused as soon as it says anything at all, so that a
setting which is new to us cannot pass in silence.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.export.read.kinds import wanted
from edgellm.export.read.tokenizer import TokenizerError, read_json
from edgellm.export.read.tokenizer_facts import WAY_OUT
from edgellm.memory.errors import EdgellmError

QUANTISED_BESIDE = "hf_quant_config.json"
MIN_CONTEXT = 512  # tokens; a window below is no context to ship


class UnsupportedModel(EdgellmError, ValueError):
    """A model that this package cannot export; the message says what can."""


class IsAdapter(UnsupportedModel):
    """What was named as a model is an adapter, and holds none."""


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

# Read for every family, whatever it is.
_READ = {
    "architectures", "model_type", "text_config", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "vocab_size", "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "partial_rotary_factor", "original_max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
    "unk_token_id",
}  # fmt: skip
# What a forward pass of a finished model does not ask for: how it was trained, stored, run, sampled from or named.
_IDLE = {
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


def read_config(folder: Path, *, weights: bool = True) -> tuple[Family, dict[str, Any]]:
    """The family of a Hub folder and its text model's configuration, the family's own defaults filled in.

    Args:
        weights: are to be exported too; where only shapes are asked for they may be quantised.

    Raises:
        UnsupportedModel: an architecture, or a variant of one, that would be exported wrongly; nothing but
            configuration files is looked at.
    """
    config = read_document(folder)
    refuse_other_kinds(folder, config)
    _refuse_quantised(folder, config, weights=weights)
    family = _family(folder, config)
    _account(folder, family, config)
    text = config.get("text_config") or {}
    if not isinstance(text, dict):
        raise UnsupportedModel(f"{folder}: text_config in config.json is no object: download it again")
    if text and not family.nested:
        raise UnsupportedModel(f"{folder} has a text_config in config.json, which no {family.arch} is known to have")
    if text:  # then what stands beside it is of the pictures, but for the head
        config = {**text, "tie_word_embeddings": config.get("tie_word_embeddings", True)}
        _account(folder, family, config)
    return family, {**family.defaults, **config}


def read_document(folder: Path) -> dict[str, Any]:
    """config.json as it is, with what a file beside it may say of how the weights were quantised (NVIDIA's ModelOpt).

    Raises:
        UnsupportedModel: there is none, or a damaged one.
    """
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise IsAdapter(_adapter(folder))
        raise UnsupportedModel(_without_config(folder))
    try:
        config = read_json(folder / "config.json")
        beside = read_json(folder / QUANTISED_BESIDE) if (folder / QUANTISED_BESIDE).exists() else {}
    except TokenizerError as error:
        raise UnsupportedModel(str(error)) from error
    if beside.get("quantization") and not config.get("quantization_config"):
        producer = beside.get("producer")
        told = producer.get("name") if isinstance(producer, dict) else None
        config["quantization_config"] = {"quant_method": str(told or "modelopt").lower()}
    return config


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a text model, which may stand in text_config, over those around them."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else dict(config)


def _without_config(folder: Path) -> str:
    if (folder / "params.json").exists():
        return (
            f"{folder} has params.json and no config.json: it is laid out for its authors' own program; "
            "take the repository's files for transformers"
        )
    return f"{folder} has no config.json: is it a model's folder?"


def _adapter(folder: Path) -> str:
    base = ""
    with contextlib.suppress(TokenizerError):
        base = str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    return (
        f"{folder} is an adapter (adapter_config.json){f' for {base}' if base else ''} and holds no model of its own: "
        f"`edgellm export {folder}` makes a GGUF adapter of it, and with --merge one model of both"
    )


def has_weights_of_its_own(names: Collection[str]) -> bool:
    """False for a folder whose only weights are an adapter's."""
    return any(re.match(r"(model|pytorch_model)[.-].*(safetensors|bin|index\.json)$", name) for name in names)


def refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    """Folders that hold no weights of a whole language model, as what they are."""
    names = config.get("architectures") or []
    if isinstance(names, list) and any(re.search("eagle|medusa", str(name), re.IGNORECASE) for name in names):
        raise UnsupportedModel(
            f"{folder} is a draft head ({names[0]}) that reads its target's hidden states and cannot draft alone: "
            "use a small model as the drafter, or a target whose GGUF has its head inside (MTP)"
        )
    if (folder / "adapter_config.json").exists() and not has_weights_of_its_own([p.name for p in folder.iterdir()]):
        raise IsAdapter(_adapter(folder))


def _refuse_quantised(folder: Path, config: Mapping[str, Any], *, weights: bool) -> None:
    """Weights that are not read here, and layers that are more than one."""
    quantised = next((config[key] for key in ("quantization_config", "compression_config") if config.get(key)), None)
    mlx = config.get("quantization")
    if (quantised or mlx) and weights:
        told = quantised if isinstance(quantised, dict) else {}
        how = told.get("quant_method") or told.get("format") or ("MLX" if mlx else "an unnamed method")
        raise UnsupportedModel(
            f"{folder} is quantised already ({how}): export the model that it was made from, or use its GGUF"
        )
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(key):
            raise UnsupportedModel(
                f"{folder} is a mixture of experts ({key} in config.json), which edgellm's own converter does not "
                f"know: {WAY_OUT}"
            )


def _family(folder: Path, config: Mapping[str, Any]) -> Family:
    names, model_type = config.get("architectures") or [], config.get("model_type")
    if not names:  # transformers goes by the model type
        family = next((family for family in FAMILIES.values() if model_type in family.model_types), None)
    else:
        family = FAMILIES.get(str(names[0]))
    if family is None or (model_type and model_type not in family.model_types):
        known = ", ".join(sorted(name.removesuffix("ForCausalLM") for name in FAMILIES if name.endswith("ForCausalLM")))
        what = str(names[0]) if names else f"model of type {model_type!r}"
        if family is not None:
            what += f" of type {model_type!r}"
        raise UnsupportedModel(
            f"{folder} is a {what}, which is not among the families exported here ({known}); {WAY_OUT}"
        )
    return family


def _account(folder: Path, family: Family, config: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp computes otherwise, and what nobody knows."""
    check_kinds(folder, config)
    for key, values in family.fixed.items():
        if key in config and config[key] not in values:
            raise UnsupportedModel(
                f"{folder} has {key} {_shown(config[key])} in config.json, where llama.cpp's {family.arch} "
                f"computes {_shown(values[0])}"
            )
    known = {*_READ, *_IDLE, *family.defaults, *family.fixed, *family.idle, "quantization_config", "quantization"}
    known |= {"num_local_experts", "num_experts", "n_routed_experts", "compression_config"}  # refused above
    for key, value in config.items():
        if key not in known and not _says_nothing(value):
            raise UnsupportedModel(
                f"{folder} has {key} {_shown(value)} in config.json, which no {family.arch} is known to have: take the "
                f"key out if it changes nothing that the model computes, or {WAY_OUT}"
            )
    if family.square_heads and config.get("head_dim"):
        n_heads, width = config.get("num_attention_heads"), config.get("hidden_size")
        if isinstance(n_heads, int) and n_heads * config["head_dim"] != width:
            raise UnsupportedModel(
                f"{folder} has {n_heads} heads of {config['head_dim']} where llama.cpp's {family.arch} takes "
                f"hidden_size ({width}) for all of them together"
            )


def check_kinds(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a setting whose value is of another kind than it has."""
    for key, value in settings.items():
        if what := wanted(key, value):
            raise UnsupportedModel(f"{folder} has {key} {_shown(value)} in config.json, which must be {what}")


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def attention_window(folder: Path, family: Family, config: Mapping[str, Any]) -> int | None:
    """Tokens that a layer looks back on, where some layer looks back less far than its context and llama.cpp lets it
    see everything; None where there is no such layer.
    """
    if family.has_window:
        return None
    window = config.get("sliding_window")
    if "use_sliding_window" in family.defaults:
        kinds = config.get("layer_types")
        if kinds is not None and not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise UnsupportedModel(f"{folder} has layers of other kinds than full and sliding attention (layer_types)")
        n_layers, first = int(config["num_hidden_layers"]), int(config.get("max_window_layers") or 0)
        slides = "sliding_attention" in kinds if kinds is not None else first < n_layers
        window = window if config.get("use_sliding_window") and slides else None
    if "sliding_window" not in family.defaults or not window or int(window) >= int(config["max_position_embeddings"]):
        return None
    if int(window) < MIN_CONTEXT:
        raise UnsupportedModel(
            f"{folder} looks back {window} tokens (sliding_window), where llama.cpp's {family.arch} always sees the "
            "whole context: beyond so few tokens it would be another model"
        )
    return int(window)


def remarks(family: Family, config: Mapping[str, Any], window: int | None, rope_type: str) -> list[str]:
    """What the user of an exported model should know, in sentences."""
    found = []
    if rope_type == "dynamic":
        found.append(
            f"its positions are stretched as a text grows beyond {config['max_position_embeddings']} tokens (dynamic), "
            "which llama.cpp does not do: up to there, the context that the file states, it is the same model"
        )
    if rope_type == "longrope":
        found.append(
            "llama.cpp chooses between its short and long rotary factors by the context that is allotted, where "
            "transformers goes by the length of the text: allot no more than the original context for short texts"
        )
    if window is not None:
        found.append(window_remark(window, family.arch))
    return found


def window_remark(window: int, arch: str) -> str:
    return (
        f"its layers look back {window} tokens (sliding_window), which llama.cpp's {arch} does not do: the file states "
        f"a context of {window} tokens, within which it is the same model"
    )
