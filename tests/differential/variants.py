"""Checkpoints to try: each family with every fact of its configuration at its default, left out, null and otherwise."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

ABSENT = "<absent>"
N_VOCAB = 304  # rows of the embedding; the tokenizer has one token fewer than it

Values = list[Any]


@dataclass(frozen=True, slots=True)
class Variant:
    """One checkpoint: its config.json, and how its weights lie."""

    family: str
    facts: tuple[str, ...]  # what differs from the family's plain form, as "key=value"
    config: dict[str, Any]
    seed: int = 0
    dtype: str = "float32"
    n_shards: int = 1
    format: str = "safetensors"
    head: str = ""  # "own", "same" or as transformers saves it
    prefix: str = ""  # of the text model's tensors, instead of their own

    @property
    def n_tokens(self) -> int:
        """Beyond the windows and the contexts of a training that the configuration tells of, within its own context."""
        text = str(self.config)
        is_long = "512" in text or ("longrope" in text and self.seed % 2 == 0)
        return min(600 if is_long else 200, self.config.get("max_position_embeddings") or 600)


_COMMON: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024, "vocab_size": N_VOCAB,
    "bos_token_id": None, "eos_token_id": 303, "pad_token_id": None, "tie_word_embeddings": False,
    "initializer_range": 0.02, "attention_dropout": 0.0, "use_cache": True, "dtype": "float32",
    "transformers_version": "5.24.0",
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    **_COMMON, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 4,
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "attention_bias": False,
}  # fmt: skip
_FLAT = {"rope_theta": 1e4, "rope_type": "default"}


def _of(model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
    return {**_COMMON, "model_type": model_type, "architectures": [architecture], "hidden_act": "silu", **more}


PLAIN: dict[str, dict[str, Any]] = {
    "llama": _of("llama", "LlamaForCausalLM", rope_parameters=_FLAT, attention_bias=False, mlp_bias=False),
    "mistral": _of("mistral", "MistralForCausalLM", rope_parameters=_FLAT, sliding_window=None, head_dim=24),
    "qwen2": _of(
        "qwen2", "Qwen2ForCausalLM", rope_parameters=_FLAT, use_sliding_window=False, sliding_window=None,
        max_window_layers=1,
    ),
    "qwen3": _of(
        "qwen3", "Qwen3ForCausalLM", rope_parameters={**_FLAT, "rope_theta": 1e6}, use_sliding_window=False,
        sliding_window=None, max_window_layers=1, head_dim=32, attention_bias=False,
    ),
    "gemma2": {
        **_GEMMA, "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "rope_parameters": _FLAT,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma3": {
        **_GEMMA, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 7,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "phi3": _of(
        "phi3", "Phi3ForCausalLM", rope_parameters={**_FLAT, "partial_rotary_factor": 1.0}, sliding_window=None,
        original_max_position_embeddings=1024,
    ),
}  # fmt: skip

_ACTS: Values = [ABSENT, None, "silu", "swish", "gelu", "gelu_pytorch_tanh", "relu"]
_FACTS: dict[str, Values] = {
    "rms_norm_eps": [ABSENT, None, 1e-6, 0.05],
    "num_key_value_heads": [ABSENT, None, 1, 4],
    "head_dim": [ABSENT, None, 16, 40],
    "tie_word_embeddings": [ABSENT, None, True, False],
    "attention_bias": [ABSENT, None, False, True],
    "max_position_embeddings": [ABSENT, None, 512],
    "num_hidden_layers": [1, 3],
    "intermediate_size": [64, 160],
    "rope_theta": [None, 5e5],
    "partial_rotary_factor": [None, 1.0, 0.5],
    "eos_token_id": [ABSENT, None, 5, [5, 7], [5, 7, 9, 11]],
    "bos_token_id": [ABSENT, 5],
    "pad_token_id": [ABSENT, 5],
    "architectures": [ABSENT, None],
    "use_cache": [ABSENT, False],
    "attention_dropout": [ABSENT, 0.25],
    "initializer_range": [ABSENT, 0.5],
    "pretraining_tp": [1, 2],
    "torch_dtype": ["float16"],
    "is_decoder": [True],
    "auto_map": [{}],
    "residual_multiplier": [None, 0.5],
    "num_experts": [0, 8],
    "quantization_config": [None, {"quant_method": "awq"}],
    "text_config": [None, {}, {"rms_norm_eps": 0.05}],
}
_MLP: dict[str, Values] = {"mlp_bias": [ABSENT, None, False, True]}
_WINDOW: dict[str, Values] = {"sliding_window": [ABSENT, None, 0, 8, 512, 4096]}
_CHOICE: dict[str, Values] = {
    "use_sliding_window": [ABSENT, None, True, False],
    "max_window_layers": [ABSENT, 0, 2],
    "layer_types": [
        ABSENT, None, ["full_attention", "sliding_attention"], ["full_attention", "full_attention"],
        ["sliding_attention", "chunked_attention"],
    ],
}  # fmt: skip
_GEMMA_FACTS: dict[str, Values] = {
    "hidden_act": ["silu", "gelu"],
    "hidden_activation": [ABSENT, None, "gelu_pytorch_tanh", "gelu", "silu"],
    "query_pre_attn_scalar": [ABSENT, None, 16, 32],
    "attn_logit_softcapping": [ABSENT, None, 50.0, 2.0],
    "final_logit_softcapping": [ABSENT, None, 30.0, 5.0],
    "use_bidirectional_attention": [ABSENT, None, False, True],
    "sliding_window": [ABSENT, None, 8, 40],
    "num_attention_heads": [ABSENT, 2],
    "layer_types": [ABSENT, None, ["full_attention"] * 7, ["sliding_attention", "full_attention"] * 4],
    "cache_implementation": ["hybrid"],
}
_GEMMA3_FACTS: dict[str, Values] = {
    **_GEMMA_FACTS,
    "sliding_window_pattern": [None, 6, 2, 3],
    "_sliding_window_pattern": [6, 2],
    "rope_local_base_freq": [None, 1e4, 2e4],
}
FACTS: dict[str, dict[str, Values]] = {
    "llama": {**_FACTS, **_MLP, "hidden_act": _ACTS, **_WINDOW},
    "mistral": {**_FACTS, **_WINDOW, "hidden_act": _ACTS},
    "qwen2": {**_FACTS, **_WINDOW, **_CHOICE, "hidden_act": _ACTS},
    "qwen3": {**_FACTS, **_WINDOW, **_CHOICE, "hidden_act": _ACTS},
    "gemma2": {**_FACTS, **_GEMMA_FACTS},
    "gemma3": {**_FACTS, **_GEMMA3_FACTS},
    "phi3": {**_FACTS, **_WINDOW, "hidden_act": _ACTS, "original_max_position_embeddings": [ABSENT, None, 256]},
}

_L3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_LONG = {
    "rope_type": "longrope", "original_max_position_embeddings": 256,
    "short_factor": [1.0 + 0.02 * i for i in range(8)], "long_factor": [2.0 + 0.5 * i for i in range(8)],
}  # fmt: skip
_QUARTER = {**_LONG, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 3.5]}


def _less(settings: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


# Name -> rope settings without a base.
_ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear-by-type": {"type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": _YARN,
    "yarn-no-original": _less(_YARN, "original_max_position_embeddings"),
    "yarn-no-factor": _less(_YARN, "factor"),
    "yarn-null-factor": {**_YARN, "factor": None},
    "yarn-attention": {**_YARN, "attention_factor": 0.8},
    "yarn-mscale": {**_YARN, "mscale": 1.2, "mscale_all_dim": 0.5},
    "yarn-mscale-alone": {**_YARN, "mscale": 1.2},
    "yarn-betas": {**_YARN, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn-plain-betas": {**_YARN, "beta_fast": 32.0, "beta_slow": 1.0},
    "yarn-null-betas": {**_YARN, "beta_fast": None, "beta_slow": None},
    "yarn-untruncated": {**_YARN, "truncate": False},
    "yarn-below-1": {**_YARN, "factor": 0.5},
    "llama3": _L3,
    "llama3-other": {**_L3, "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 8.0},
    "llama3-no-original": _less(_L3, "original_max_position_embeddings"),
    "llama3-no-factor": _less(_L3, "factor"),
    "longrope": _LONG,
    "longrope-factor": {**_LONG, "factor": 2.0},
    "longrope-attention": {**_LONG, "attention_factor": 1.3},
    "longrope-few": {**_LONG, "short_factor": [1.0], "long_factor": [1.0]},
    "su": {**_LONG, "rope_type": "su"},
    "proportional": {"rope_type": "proportional", "factor": 2.0},
    "partial": {"rope_type": "default", "partial_rotary_factor": 0.5},
    "linear-partial": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
    "mrope": {"rope_type": "default", "mrope_section": [2, 2, 4]},
}
_OF_HEADS_OF_16 = {"llama", "qwen2", "phi3"}


def _edited(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    for key, value in changes.items():
        if value == ABSENT:
            config.pop(key, None)
        else:
            config[key] = value
    return config


def _told(changes: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={value}"[:60] for key, value in changes.items())


def _ropes_of(family: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes to a configuration, in the new spelling and the old one."""
    for name, settings in _ROPES.items():
        if "longrope" in str(settings) and family not in _OF_HEADS_OF_16:
            continue
        if family == "gemma3":
            sliding = {"rope_type": "default", "rope_theta": 1e4}
            full = {"rope_theta": 1e6, **settings}
            yield f"full {name}", {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}
            yield f"old {name}", {"rope_parameters": ABSENT, "rope_theta": 1e6, "rope_scaling": settings}
            continue
        yield name, {"rope_parameters": {"rope_theta": 2e4, **settings}}
        if name in {"default", "linear", "yarn", "llama3", "longrope", "yarn-attention", "dynamic", "linear-by-type"}:
            old = {"rope_parameters": ABSENT, "rope_theta": 2e4, "rope_scaling": settings}
            yield f"old {name}", old
    if family == "gemma3":
        told = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
        yield "full alone", {"rope_parameters": told}
        yield "one for both", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}
        stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
        yield "sliding linear", {"rope_parameters": {**told, "sliding_attention": stretched}}
        yield "old", {"rope_parameters": ABSENT, "rope_theta": 1e6, "rope_local_base_freq": 2e4}
    else:
        yield "old", {"rope_parameters": ABSENT, "rope_theta": 5e5}
        yield "both", {"rope_parameters": _YARN, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    yield "none", {"rope_parameters": ABSENT}
    yield "null", {"rope_parameters": None, "rope_scaling": None}
    if family == "phi3":
        quarter = {"rope_theta": 1e4, **_QUARTER, "partial_rotary_factor": 0.5}
        outer = {"original_max_position_embeddings": 256}
        yield "longrope outer", {"rope_parameters": {"rope_theta": 1e4, **_LONG}, **outer}
        yield "longrope partial", {"rope_parameters": quarter, **outer}
        yield "longrope outer alone", {
            "rope_parameters": {"rope_theta": 1e4, **_less(_LONG, "original_max_position_embeddings")}, **outer
        }  # fmt: skip
        old = {"rope_parameters": ABSENT, "rope_theta": 1e4, **outer}
        yield "old longrope", {**old, "rope_scaling": {**_less(_LONG, "rope_type"), "type": "longrope"}}
        yield "old su", {**old, "rope_scaling": {**_less(_LONG, "rope_type"), "type": "su"}}
        yield "old yarn", {**old, "rope_scaling": {**_LONG, "rope_type": "yarn"}}
        yield "old partial", {**old, "rope_scaling": _QUARTER, "partial_rotary_factor": 0.5}
    elif "yarn" not in family:
        yield "yarn outer original", {"rope_parameters": {"rope_theta": 1e4, **_YARN},
                                      "original_max_position_embeddings": 128}  # fmt: skip


_OUTER: list[dict[str, Any]] = [
    {}, {"tie_word_embeddings": False}, {"rms_norm_eps": 0.05}, {"sliding_window": 8}, {"rope_theta": 1e4},
    {"eos_token_id": [5, 7]}, {"image_token_index": 300, "mm_tokens_per_image": 4}, {"hidden_size": 128},
]  # fmt: skip
_VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip


def _nested(text: dict[str, Any], outer: dict[str, Any]) -> dict[str, Any]:
    """Gemma 3's layout with pictures; `text` without what its authors leave out."""
    inner = {key: value for key, value in text.items() if key not in {"architectures", "transformers_version"}}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": inner,
        "vision_config": _VISION, "mm_tokens_per_image": 4, "dtype": "float32", **outer,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Storage:
    told: str
    settings: dict[str, Any] = field(default_factory=dict)


_STORAGES = [
    _Storage("bfloat16", {"dtype": "bfloat16"}),
    _Storage("float16", {"dtype": "float16"}),
    _Storage("mixed types", {"dtype": "mixed"}),
    _Storage("shards", {"n_shards": 3}),
    _Storage("torch file", {"format": "bin"}),
    _Storage("torch shards", {"format": "bin", "n_shards": 2}),
    _Storage("bare names", {"prefix": "<none>"}),
]
_HEADS = [("own", True), ("same", True), ("own", False), ("same", False)]


def single_variants() -> Iterator[Variant]:
    """Each fact alone."""
    for family, plain in PLAIN.items():
        for seed in (0, 1, 2):
            yield Variant(family, ("plain",), plain, seed)
        for key, values in FACTS[family].items():
            for value in values:
                changes = {key: value}
                yield Variant(family, _told(changes), _edited(plain, changes))
        for name, changes in _ropes_of(family):
            for seed in (0, 1) if "longrope" in str(changes) else (0,):
                yield Variant(family, (f"rope {name}",), _edited(plain, changes), seed)
        for storage in _STORAGES:
            yield Variant(family, (storage.told,), plain, **storage.settings)
        for head, tied in _HEADS:
            config = _edited(plain, {"tie_word_embeddings": tied})
            yield Variant(family, (f"{head} head, {'tied' if tied else 'untied'}",), config, head=head)
    for outer in _OUTER:
        yield Variant("gemma3", ("nested", *_told(outer)), _nested(PLAIN["gemma3"], outer))
    for absent in ("num_attention_heads", "num_key_value_heads", "sliding_window", "rope_parameters", "model_type"):
        text = _edited(PLAIN["gemma3"], {absent: ABSENT})
        yield Variant("gemma3", ("nested", f"inner {absent}=<absent>"), _nested(text, {}))


def paired_variants(n: int, seed: int) -> Iterator[Variant]:
    """Two or three facts at once, with other weights and ways to lie on disk, by chance."""
    rng = random.Random(seed)
    for _ in range(n):
        family = rng.choice(list(PLAIN))
        facts = FACTS[family]
        changes: dict[str, Any] = {}
        for key in rng.sample(list(facts), rng.choice((1, 2))):
            changes[key] = rng.choice(facts[key])
        told = _told(changes)
        if rng.random() < 0.6:
            name, rope = rng.choice(list(_ropes_of(family)))
            changes, told = {**rope, **changes}, (*told, f"rope {name}")
        storage = rng.choice(_STORAGES) if rng.random() < 0.3 else _Storage("")
        told = (*told, storage.told) if storage.told else told
        config = _edited(PLAIN[family], changes)
        yield Variant(family, told, config, rng.randrange(1000), **storage.settings)
