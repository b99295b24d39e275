"""Rotary embeddings: what config.json says of them, as transformers reads it, and what GGUF says instead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgellm.export.convert import gguf_writer as gguf
from edgellm.export.read.facts import UnsupportedModel, check_kinds
from edgellm.export.read.families import Family
from edgellm.export.read.tokenizer_facts import WAY_OUT

Rope = dict[str, Any]

_LEAST_ALLOTTED = 256  # tokens, in any context of llama.cpp

# Settings of each way to stretch a context, with the values that llama.cpp computes where it reads none.
_ANY: tuple[Any, ...] = ()
_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "default": {},
    "dynamic": {"factor": _ANY, "original_max_position_embeddings": _ANY},
    "linear": {"factor": _ANY},
    "yarn": {
        "factor": _ANY, "original_max_position_embeddings": _ANY, "attention_factor": _ANY, "mscale": _ANY,
        "mscale_all_dim": _ANY, "beta_fast": (32,), "beta_slow": (1,), "truncate": (True,), "finetuned": (True, False),
    },
    "llama3": dict.fromkeys(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), _ANY
    ),
    "longrope": dict.fromkeys(
        ("short_factor", "long_factor", "factor", "attention_factor", "original_max_position_embeddings"), _ANY
    ),
}  # fmt: skip
_NEEDED = {
    "dynamic": ("factor",),
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}


def read_rope(folder: Path, family: Family, config: Mapping[str, Any]) -> Rope:
    """The settings of the layers that see everything: `rope_type`, `rope_theta`, `local_theta` of Gemma 3's other
    layers, `n_rotated` of a head, and what the type needs.

    Raises:
        UnsupportedModel: a setting that llama.cpp does not compute, or that is not known.
    """
    for told in _told(config):
        check_kinds(folder, told)
    rope, local = _gemma3(folder, config) if family.arch == "gemma3" else (_flat(config), None)
    kind = str(rope.pop("rope_type", None) or rope.get("type") or "default")
    rope.pop("type", None)
    kind = "longrope" if kind == "su" or (kind == "yarn" and family.arch == "phi3") else kind
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or (1e6 if family.arch == "gemma3" else 1e4)
    part = rope.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    outer = config.get("original_max_position_embeddings")
    if outer and kind in {"yarn", "llama3", "longrope"}:  # transformers prefers the outer one, or Phi-3's default
        rope["original_max_position_embeddings"] = outer
    if kind == "yarn" and "factor" in rope and rope["factor"] is None:
        original = int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"])
        rope["factor"] = int(config["max_position_embeddings"]) / original
    _account(folder, family, kind, rope)
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))
    if kind == "default" and family.arch != "phi3":
        part = 1.0  # transformers reads it where positions are stretched, and for Phi-3
    n_rotated = int(float(part) * head_dim)
    if n_rotated != head_dim and family.arch != "phi3":
        raise UnsupportedModel(
            f"{folder} rotates a part of each head (partial_rotary_factor {part}), which llama.cpp's {family.arch} "
            "does not"
        )
    rope = {key: value for key, value in rope.items() if value is not None}
    rope |= {"rope_type": kind, "rope_theta": float(theta), "local_theta": local, "n_rotated": n_rotated}
    if kind in {"yarn", "llama3", "longrope"}:
        rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    if kind == "longrope" and int(rope["original_max_position_embeddings"]) < _LEAST_ALLOTTED:
        raise UnsupportedModel(
            f"{folder} has short factors for texts of up to {rope['original_max_position_embeddings']} tokens, which "
            f"llama.cpp never takes: it allots {_LEAST_ALLOTTED} tokens at least, and goes by that"
        )
    return rope


def _told(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every object of rotary settings that config.json has."""
    for key in ("rope_scaling", "rope_parameters"):
        told = config.get(key) or {}
        yield told
        yield from (part for part in told.values() if isinstance(part, dict))


def _flat(config: Mapping[str, Any]) -> Rope:
    return dict(config.get("rope_scaling") or config.get("rope_parameters") or {})


def _gemma3(folder: Path, config: Mapping[str, Any]) -> tuple[Rope, float]:
    """Gemma 3 has settings of its own for the layers of each kind; older files stretch the full ones alone."""
    told = config.get("rope_parameters") or {}
    if not set(told) <= {"full_attention", "sliding_attention"}:
        raise UnsupportedModel(
            f"{folder} gives its layers one rope_parameters, where Gemma 3 has two (full_attention, sliding_attention)"
        )
    scaling = config.get("rope_scaling") or {}
    if scaling and not scaling.get("rope_type"):
        raise UnsupportedModel(
            f"{folder} names its rope_scaling by `type`, which transformers leaves aside for Gemma 3: "
            "write `rope_type` if it is meant"
        )
    local = dict(told.get("sliding_attention") or {})
    theta = local.pop("rope_theta", None) or config.get("rope_local_base_freq") or 1e4
    if local.pop("rope_type", "default") != "default" or any(value is not None for value in local.values()):
        raise UnsupportedModel(f"{folder} stretches its sliding layers (rope_parameters), which llama.cpp does not")
    return {**(told.get("full_attention") or {}), **scaling}, float(theta)


def _account(folder: Path, family: Family, kind: str, rope: Rope) -> None:
    if kind not in family.scalings:
        raise UnsupportedModel(
            f"{folder} stretches its context by {kind!r}, which is not exported for {family.arch}; {WAY_OUT}"
        )
    for key, value in rope.items():
        if value is None:
            continue
        if key not in _SETTINGS[kind]:
            if any(key in settings for settings in _SETTINGS.values()):
                continue  # transformers reads it for another way to stretch alone
            raise UnsupportedModel(f"{folder} has {key} among its rotary settings ({kind}), which is not known here")
        values = _SETTINGS[kind][key]
        if values and value not in values:
            raise UnsupportedModel(
                f"{folder} has {key} {value} among its rotary settings, where llama.cpp's {family.arch} computes "
                f"{values[0]}"
            )
    for key in _NEEDED.get(kind, ()):
        if rope.get(key) is None:
            raise UnsupportedModel(f"{folder} stretches its context by {kind!r} and does not say {key}")


def rope_entries(arch: str, config: Mapping[str, Any], rope: Rope) -> dict[str, bytes]:
    """The metadata of the rotary embedding."""
    kind, key = rope["rope_type"], f"{arch}.rope.scaling"
    entries = {
        f"{arch}.rope.dimension_count": gguf.u32(rope["n_rotated"]),
        f"{arch}.rope.freq_base": gguf.f32(rope["rope_theta"]),
    }
    if rope["local_theta"] is not None:
        entries[f"{arch}.rope.freq_base_swa"] = gguf.f32(rope["local_theta"])
    if kind == "linear":
        entries |= {f"{key}.type": gguf.string("linear"), f"{key}.factor": gguf.f32(float(rope["factor"]))}
    if kind == "yarn":
        entries |= {
            f"{key}.type": gguf.string("yarn"),
            f"{key}.factor": gguf.f32(float(rope["factor"])),
            f"{key}.original_context_length": gguf.u32(int(rope["original_max_position_embeddings"])),
        }
        # llama.cpp multiplies by 0.1 ln(factor) + 1 on its own.
        beyond = _yarn_amplitude(rope) / _mscale(float(rope["factor"]), 1.0)
        entries |= {f"{key}.attn_factor": gguf.f32(beyond)} if not math.isclose(beyond, 1.0, rel_tol=1e-9) else {}
    if kind == "longrope":
        entries |= {
            # Elsewhere than in Phi-3 the factors are looked for only if this is said.
            **({f"{key}.type": gguf.string("longrope")} if arch != "phi3" else {}),
            f"{key}.original_context_length": gguf.u32(int(rope["original_max_position_embeddings"])),
            f"{key}.attn_factor": gguf.f32(_longrope_amplitude(config, rope)),
        }
    return entries  # Llama 3's scaling travels as a tensor of factors


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_amplitude(rope: Rope) -> float:
    """By how much queries and keys grow."""
    factor = float(rope["factor"])
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _mscale(factor, float(rope["mscale"])) / _mscale(factor, float(rope["mscale_all_dim"]))
    return _mscale(factor, 1.0)


def _longrope_amplitude(config: Mapping[str, Any], rope: Rope) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = int(rope["original_max_position_embeddings"])
    factor = float(rope.get("factor") or int(config["max_position_embeddings"]) / original)
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def rope_factors(folder: Path, rope: Rope) -> dict[str, list[float]]:
    """Tensors of factors by which the rotary frequencies are divided, for contexts stretched as Llama 3 and Phi-3 do
    it.
    """
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope)}
    if rope["rope_type"] != "longrope":
        return {}
    factors = {f"rope_factors_{kind}.weight": [float(x) for x in rope[f"{kind}_factor"]] for kind in ("long", "short")}
    if any(len(values) != rope["n_rotated"] // 2 for values in factors.values()):
        raise UnsupportedModel(
            f"{folder}: the {rope['n_rotated'] // 2} rotary frequencies of a head have "
            f"{len(rope['long_factor'])} long and {len(rope['short_factor'])} short factors in config.json"
        )
    return factors


def _llama3_factors(rope: Rope) -> list[float]:
    """Not at all for short waves, `factor` for long ones, smoothly between."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    factors = []
    for index in range(0, rope["n_rotated"], 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / rope["n_rotated"])
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
