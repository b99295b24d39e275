"""What config.json says, key by key: read here, without effect on what the model computes, or refused by name.

Whatever no family's table (`families`) knows is refused as soon as it says anything at all, so that a setting which is
new to us cannot pass in silence.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from edgellm.export.read.families import ENCODER_DECODERS, FAMILIES, IDLE, READ, Family
from edgellm.export.read.json_file import read_json
from edgellm.export.read.kinds import wanted
from edgellm.export.read.tokenizer_facts import WAY_OUT, TokenizerError
from edgellm.memory.errors import EdgellmError

QUANTISED_BESIDE = "hf_quant_config.json"
MIN_CONTEXT = 512  # tokens; a window below is no context to ship


class UnsupportedModel(EdgellmError, ValueError):
    """A model that this package cannot export; the message says what can."""


class IsAdapter(UnsupportedModel):
    """What was named as a model is an adapter, and holds none."""


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


def has_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of a family with an encoder and a decoder that is converted here."""
    names = config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]) in ENCODER_DECODERS


def read_encoder_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model with an encoder and a decoder, defaults filled in.

    Raises:
        UnsupportedModel: another one, or a variant that llama.cpp would compute otherwise.
    """
    config = read_document(folder)
    _refuse_quantised(folder, config, weights=True)
    if not has_encoder(config):
        raise UnsupportedModel(f"{folder} is no T5 by its config.json (architectures)")
    family = ENCODER_DECODERS[str(config["architectures"][0])]
    if config.get("model_type") not in (None, *family.model_types):
        raise UnsupportedModel(f"{folder} is a {config['architectures'][0]} of type {config['model_type']!r}")
    _account(folder, family, config)
    own = {"feed_forward_proj": "relu" if config.get("model_type", "t5") == "t5" else "gated-gelu"}
    told = {key: value for key, value in config.items() if value is not None}
    return {**family.defaults, **own, **told}


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
    known = {*READ, *IDLE, *family.defaults, *family.fixed, *family.idle, "quantization_config", "quantization"}
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
