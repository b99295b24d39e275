"""What a checkpoint's config.json means, read a second time, from transformers' rules alone: to check an export.

Nothing is shared with the reading that the export itself goes by, so that a misreading there is seen here. A key that
transformers 5 does not read for a model type has no effect on its logits and has none here; what it reads and this
module does not know is a `NoReference` that names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.errors import EdgellmError

Json = Mapping[str, Any]


class NoReference(EdgellmError, ValueError):
    """A model whose arithmetic is not known here; the message names what is unknown."""


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary embedding of a layer, as config.json has it."""

    kind: str
    theta: float
    n_rotated: int  # of a head's numbers
    told: Json
    max_positions: int
    original_positions: int

    def at(self, n_tokens: int) -> tuple[NDArray[np.float64], float]:
        """Frequencies, shape (n_rotated / 2,), and what cosines and sines are multiplied by, in a text so long."""
        steps = np.arange(0, self.n_rotated, 2, dtype=np.float64) / self.n_rotated
        return _SCALINGS[self.kind](self, self.theta**-steps, n_tokens)

    @property
    def is_stretched(self) -> bool:
        return self.kind not in {"default", "dynamic"}


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """All that a forward pass asks of a configuration."""

    model_type: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    eps: float
    activation: str
    query_scale: float
    embedding_scale: float
    norm_offset: float  # added to the weights of every norm
    is_tied: bool
    biased: frozenset[str]  # modules of a layer that have a bias
    windows: tuple[int | None, ...]  # of each layer: how many tokens it sees, itself included
    ropes: tuple[Rope, ...]  # of each layer
    attention_cap: float | None
    logit_cap: float | None

    @property
    def is_gemma(self) -> bool:
        return self.model_type in _GEMMAS

    @property
    def has_qk_norms(self) -> bool:
        return self.model_type in {"qwen3", "gemma3_text"}


_GEMMAS = {"gemma2", "gemma3_text"}
# What transformers 5 takes for a key that the file leaves out.
_SHARED: dict[str, Any] = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "num_key_value_heads": None,
    "head_dim": None, "attention_bias": False, "mlp_bias": False, "sliding_window": None, "layer_types": None,
    "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 32_768,
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "num_hidden_layers": 26, "hidden_size": 2304, "sliding_window": 4096,
    "query_pre_attn_scalar": 256, "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
}  # fmt: skip
_QWEN: dict[str, Any] = {
    "num_key_value_heads": 32, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "gemma2": _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
                        "max_position_embeddings": 8192},
    "gemma3_text": _GEMMA | {"max_position_embeddings": 131_072},
    "phi3": {"rms_norm_eps": 1e-5, "hidden_size": 3072, "max_position_embeddings": 4096,
             "original_max_position_embeddings": 4096},
}  # fmt: skip
_TYPES = {
    "LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3", "Gemma2ForCausalLM": "gemma2", "Gemma3ForCausalLM": "gemma3_text",
    "Gemma3ForConditionalGeneration": "gemma3", "Phi3ForCausalLM": "phi3",
}  # fmt: skip
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUTPUT = "self_attn.o_proj"
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def read_reference_config(folder: Path) -> ReferenceConfig:
    """The configuration of a Hub folder.

    Raises:
        NoReference: a model, or a setting of one, that is not known here, by name.
    """
    try:
        document = json.loads((folder / "config.json").read_bytes())
        return _read(document)
    except NoReference:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        raise NoReference(f"the reference cannot read config.json ({error!r})") from error


def _read(document: Json) -> ReferenceConfig:
    if document.get("quantization_config") or document.get("quantization"):
        raise NoReference("the reference does not know quantised checkpoints (quantization_config)")
    names = document.get("architectures") or []
    model_type = str(document.get("model_type") or _TYPES.get(str(names[0]) if names else ""))
    text: Json = document
    if isinstance(document.get("text_config"), dict) and model_type == "gemma3":
        # transformers asks the outer object for nothing but whether the embedding serves as the head.
        text = {**document["text_config"], "tie_word_embeddings": document.get("tie_word_embeddings", True)}
    elif document.get("text_config"):
        raise NoReference(f"the reference does not know text_config in a model of type {model_type!r}")
    model_type = "gemma3_text" if model_type == "gemma3" else model_type
    if model_type not in _DEFAULTS:
        raise NoReference(f"the reference does not know models of type {model_type!r}")
    config = {**_SHARED, **_DEFAULTS[model_type], **text}
    if config.get("use_bidirectional_attention"):
        raise NoReference("the reference does not know use_bidirectional_attention")
    n_heads, n_embd, n_layers = (
        int(config[key]) for key in ("num_attention_heads", "hidden_size", "num_hidden_layers")
    )
    head_dim = int(config["head_dim"] or n_embd // n_heads)
    gemma = model_type in _GEMMAS
    kinds = _layer_kinds(model_type, config, n_layers)
    window = config["sliding_window"]
    ropes = _ropes(model_type, text, config, head_dim)
    return ReferenceConfig(
        model_type=model_type,
        n_layers=n_layers,
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=int(config["num_key_value_heads"] or n_heads),
        head_dim=head_dim,
        eps=float(config["rms_norm_eps"]),
        activation=str(config["hidden_activation" if gemma else "hidden_act"]),
        query_scale=float(config["query_pre_attn_scalar"] if gemma else head_dim) ** -0.5,
        embedding_scale=math.sqrt(n_embd) if gemma else 1.0,
        norm_offset=1.0 if gemma else 0.0,
        is_tied=bool(config["tie_word_embeddings"]),
        biased=_biased(model_type, config),
        windows=tuple(int(window) if kind == "sliding_attention" and window is not None else None for kind in kinds),
        ropes=tuple(ropes[kind if model_type == "gemma3_text" else "full_attention"] for kind in kinds),
        # Gemma 3's code in transformers has the setting and does not use it.
        attention_cap=_number(config.get("attn_logit_softcapping") if model_type == "gemma2" else None),
        logit_cap=_number(config.get("final_logit_softcapping") if gemma else None),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _biased(model_type: str, config: Json) -> frozenset[str]:
    found: tuple[str, ...] = _ATTENTION if model_type == "qwen2" else ()
    if config["attention_bias"] and model_type in {"llama", "qwen3", *_GEMMAS}:
        found = (*_ATTENTION, _OUTPUT)
    return frozenset((*found, *(_MLP if config["mlp_bias"] and model_type == "llama" else ())))


def _layer_kinds(model_type: str, config: Json, n_layers: int) -> list[str]:
    """Which layers look at a window, of a model whose window is told."""
    if model_type in {"mistral", "phi3"}:
        return ["sliding_attention"] * n_layers
    if model_type == "llama":
        return ["full_attention"] * n_layers
    told = config["layer_types"]
    if model_type in {"qwen2", "qwen3"} and not config["use_sliding_window"]:
        return ["full_attention"] * n_layers
    if told is not None:
        if unknown := set(told) - {"full_attention", "sliding_attention"}:
            raise NoReference(f"the reference does not know layers of the kind {sorted(unknown)[0]!r} (layer_types)")
        return [str(told[layer]) for layer in range(n_layers)]
    if model_type in {"qwen2", "qwen3"}:
        first = int(config["max_window_layers"])
        return ["sliding_attention" if layer >= first else "full_attention" for layer in range(n_layers)]
    period = 2 if model_type == "gemma2" else int(config.get("sliding_window_pattern", 6))
    return ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(n_layers)]


def _ropes(model_type: str, told: Json, config: Json, head_dim: int) -> dict[str, Rope]:
    """Of each kind of layer. `told` is what the file says, without defaults."""
    if model_type == "gemma3_text":
        nested = told.get("rope_parameters")
        nested = {} if nested is None else nested
        own = nested.get("full_attention") or {}  # which may go by the older `type`, where rope_scaling may not
        full = {"rope_type": own.get("type", "default"), **own, **(told.get("rope_scaling") or {})}
        full["truncate"] = nested.get("truncate", True)  # where transformers looks for it
        sliding = nested.get("sliding_attention") or {"rope_type": "default"}
        full.setdefault("rope_theta", told.get("rope_theta", 1e6))
        sliding = {"rope_theta": told.get("rope_local_base_freq", 1e4), **sliding}
        return {
            "full_attention": _rope(model_type, full, config, head_dim),
            "sliding_attention": _rope(model_type, sliding, config, head_dim),
        }
    flat = dict(told.get("rope_scaling") or told.get("rope_parameters") or {})
    flat.setdefault("rope_theta", told.get("rope_theta", 1e4))
    if told.get("partial_rotary_factor") is not None:
        flat.setdefault("partial_rotary_factor", told["partial_rotary_factor"])
    return {"full_attention": _rope(model_type, flat, config, head_dim)}


def _rope(model_type: str, told: Json, config: Json, head_dim: int) -> Rope:
    kind = told["rope_type"] if "rope_type" in told else told.get("type", "default")
    if model_type == "phi3" and kind in {"su", "yarn"}:
        kind = "longrope"
    if kind not in _SCALINGS:
        raise NoReference(f"the reference does not know rope scaling {kind!r} (rope_type)")
    part = told.get("partial_rotary_factor")
    # An unstretched embedding turns whole heads, whatever is said, but for Phi-3.
    part = 1.0 if part is None or (kind == "default" and model_type != "phi3") else float(part)
    if part != 1.0 and model_type != "phi3":
        raise NoReference(f"the reference does not know partial_rotary_factor {part} in a model of type {model_type!r}")
    positions = int(config["max_position_embeddings"])
    original = config.get("original_max_position_embeddings") or told.get("original_max_position_embeddings")
    rope = Rope(kind, float(told["rope_theta"]), int(head_dim * part), told, positions, int(original or positions))
    rope.at(1)  # what it needs is there
    return rope


Frequencies = NDArray[np.float64]


def _default(rope: Rope, frequencies: Frequencies, n_tokens: int) -> tuple[Frequencies, float]:
    return frequencies, 1.0


def _dynamic(rope: Rope, frequencies: Frequencies, n_tokens: int) -> tuple[Frequencies, float]:
    if n_tokens > rope.max_positions:
        raise NoReference(f"the reference does not know dynamic scaling beyond {rope.max_positions} tokens")
    return frequencies, 1.0


def _linear(rope: Rope, frequencies: Frequencies, n_tokens: int) -> tuple[Frequencies, float]:
    return frequencies / float(rope.told["factor"]), 1.0


def _llama3(rope: Rope, frequencies: Frequencies, n_tokens: int) -> tuple[Frequencies, float]:
    """Long waves are stretched, short ones are not, those between smoothly."""
    turns = rope.original_positions * frequencies / (2 * math.pi)  # within the context of the training
    low, high = float(rope.told["low_freq_factor"]), float(rope.told["high_freq_factor"])
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / float(rope.told["factor"])), 1.0


def _longrope(rope: Rope, frequencies: Frequencies, n_tokens: int) -> tuple[Frequencies, float]:
    factors = rope.told["long_factor" if n_tokens > rope.original_positions else "short_factor"]
    stretch = rope.told.get("factor")
    stretch = rope.max_positions / rope.original_positions if stretch is None else float(stretch)
    grown = math.sqrt(1 + math.log(stretch) / math.log(rope.original_positions)) if stretch > 1 else 1.0
    told = rope.told.get("attention_factor")
    return frequencies / np.asarray(factors, np.float64), grown if told is None else float(told)


def _yarn(rope: Rope, frequencies: Frequencies, n_tokens: int) -> tuple[Frequencies, float]:
    """arXiv:2309.00071, section 3.2: what turns often within the original context is kept, the rest is stretched."""
    told = rope.told
    stretch = told["factor"]
    stretch = rope.max_positions / rope.original_positions if stretch is None else float(stretch)

    def index(n_turns: float) -> float:
        of_wave = math.log(rope.original_positions / (n_turns * 2 * math.pi))
        return rope.n_rotated * of_wave / (2 * math.log(rope.theta))

    first, last = index(told.get("beta_fast") or 32), index(told.get("beta_slow") or 1)
    if told.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.n_rotated - 1)
    last += 0.001 if first == last else 0
    stretched = np.clip((np.arange(rope.n_rotated // 2) - first) / (last - first), 0.0, 1.0)

    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(stretch) + 1.0 if stretch > 1 else 1.0

    amplitude = told.get("attention_factor")
    if amplitude is None and told.get("mscale") and told.get("mscale_all_dim"):
        amplitude = grown(told["mscale"]) / grown(told["mscale_all_dim"])
    return frequencies * (1 - stretched + stretched / stretch), grown(1.0) if amplitude is None else float(amplitude)


_SCALINGS = {
    "default": _default,
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}
