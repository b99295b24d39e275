"""What adapter_config.json says, key by key: read here, without effect on what the model computes, or refused by name.

Keys and meanings are PEFT's (`LoraConfig`). A key that is not known and says anything at all is refused, so that a
variant which is new to us cannot pass for a plain LoRA.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.export.obtain.source import ADAPTER
from edgellm.export.read.facts import UnsupportedModel
from edgellm.export.read.json_file import read_json
from edgellm.export.read.tokenizer_facts import TokenizerError
from edgellm.memory.gguf import shown

MAX_RANK = 16_384
_READ = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias",
    "modules_to_save", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "init_lora_weights", "base_model_name_or_path", "revision", "ensure_weight_tying",
}  # fmt: skip
# How it was trained or begun, where the weights that came of it are all that counts; Conv1D is in no family here.
_IDLE = {
    "task_type", "auto_mapping", "peft_version", "inference_mode", "lora_dropout", "fan_in_fan_out", "eva_config",
    "runtime_config", "qalora_group_size", "megatron_core", "unsloth_fixed", "unsloth_version", "velora_config",
    "lora_ga_config", "loftq_config", "corda_config", "custom_mapping",
}  # fmt: skip
# Begins that leave the base as it is; others hold back a part of it, and what is saved belongs to the rest alone.
_PLAIN_BEGINS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_REFUSED = {
    "lora_bias": "its B has biases",
    "megatron_config": "it was trained on Megatron's layers",
    "trainable_token_indices": "it changes single tokens of the embedding",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it adapts parameters that are no layers of their own",
    "alora_invocation_tokens": "it works from a phrase of the text on (aLoRA)",
    "invocation_string": "it works from a phrase of the text on (aLoRA)",
    "use_qalora": "it pools what it reads (QALoRA)",
    "use_bdlora": "its matrices are in blocks (BD-LoRA)",
    "arrow_config": "it routes between several adapters (Arrow)",
    "monteclora_config": "it samples its weights (MonteCLoRA)",
    "kasa_config": "it cuts singular values off its base (KaSA)",
}
_CONVERT = "convert it to a plain LoRA with PEFT (save_pretrained with path_initial_model_for_weight_conversion)"


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """What of an adapter's configuration decides what it computes."""

    folder: Path
    rank: int
    alpha: float
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    by_root: bool  # scaled by the root of the rank (rsLoRA)
    dora: bool
    bias: str  # "none", or which biases were trained: "all", "lora_only"
    whole: tuple[str, ...]  # modules that were trained whole
    target: list[str] | str | None
    exclude: list[str] | str | None
    layers: tuple[int, ...] | None  # None: all
    tying: bool
    base: str | None
    base_revision: str | None

    def rank_of(self, module: str) -> int:
        return _whole_number(self.rank_pattern.get(_pattern(self.rank_pattern, module), self.rank), "a rank")

    def scale_of(self, module: str) -> float:
        """Of B A, for a module of the Hub's name."""
        alpha = float(self.alpha_pattern.get(_pattern(self.alpha_pattern, module), self.alpha))
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.by_root else rank)

    def takes(self, module: str) -> bool | None:
        """Whether a module is adapted; None where that is said by an expression, which may be of any kind."""
        if isinstance(self.target, str) or isinstance(self.exclude, str) or self.target is None:
            return None
        if self.exclude and _named(module, self.exclude):
            return False
        if module in self.target:
            return True
        layer = re.search(r"\.layers\.(\d+)\.", f".{module}")
        outside = self.layers is not None and (layer is None or int(layer[1]) not in self.layers)
        return _named(module, self.target) and not outside


def read_facts(folder: Path) -> LoraFacts:
    """The account of a folder's adapter_config.json.

    Raises:
        UnsupportedModel: another kind of adapter, or a variant that would be exported wrongly.
    """
    try:
        config = read_json(folder / ADAPTER)
    except TokenizerError as error:
        raise UnsupportedModel(str(error)) from error
    _refuse_other_kinds(folder, config)
    for key, why in _REFUSED.items():
        if not _says_nothing(config.get(key)):
            raise UnsupportedModel(
                f"{folder} has {key} {shown(config[key])} in {ADAPTER}: {why}, which is not exported"
            )
    for key, value in config.items():
        if key not in _READ and key not in _IDLE and key not in _REFUSED and not _says_nothing(value):
            raise UnsupportedModel(
                f"{folder} has {key} {shown(value)} in {ADAPTER}, which no LoRA is known to have: take the key out if "
                "it changes nothing that the model computes"
            )
    begin = config.get("init_lora_weights", True)
    if begin not in _PLAIN_BEGINS:
        raise UnsupportedModel(
            f"{folder} was begun by {shown(begin)} (init_lora_weights), which takes a part out of its base model, so "
            f"it belongs to another one: {_CONVERT}"
        )
    try:
        return _facts(folder, config)
    except (TypeError, ValueError, AttributeError, OverflowError, KeyError) as error:
        if isinstance(error, UnsupportedModel):
            raise
        raise UnsupportedModel(f"{folder}: {ADAPTER} is incomplete or damaged ({error!r})") from error


def _refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    if "fine_tune_type" in config or "lora_parameters" in config:
        raise UnsupportedModel(
            f"{folder} is an adapter of MLX ({config.get('fine_tune_type', 'lora')}): let mlx_lm.fuse merge it with "
            "its base model (--de-quantize), and export the result"
        )
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModel(
            f"{folder} is an adapter of type {shown(kind)}, and LoRA is exported: merge it into its base model with "
            "PEFT (merge_and_unload) where it can be, and export the result"
        )


def _facts(folder: Path, config: Mapping[str, Any]) -> LoraFacts:
    layers = config.get("layers_to_transform")
    bias = config.get("bias") or "none"
    if bias not in ("none", "all", "lora_only"):
        raise ValueError(f"bias {bias!r}")
    alpha = float(config["lora_alpha"])
    patterns = [dict(config.get(key) or {}) for key in ("rank_pattern", "alpha_pattern")]
    if not all(math.isfinite(float(value)) for value in (alpha, *patterns[1].values())):
        raise ValueError("alpha is no number")
    for pattern in (*patterns[0], *patterns[1]):
        _check_pattern(folder, pattern)
    return LoraFacts(
        folder,
        _whole_number(config["r"], "r"),
        alpha,
        patterns[0],
        patterns[1],
        bool(config.get("use_rslora")),
        bool(config.get("use_dora")),
        bias,
        tuple(map(str, config.get("modules_to_save") or ())),
        _names(config.get("target_modules")),
        _names(config.get("exclude_modules")),
        None if layers is None or layers == [] else tuple(map(int, layers if isinstance(layers, list) else [layers])),
        bool(config.get("ensure_weight_tying")),
        str(config.get("base_model_name_or_path") or "") or None,
        str(config.get("revision") or "") or None,
    )


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _whole_number(value: Any, what: str) -> int:
    if type(value) is not int or not 0 < value <= MAX_RANK:
        raise ValueError(f"{what} is {value!r}")
    return value


def _names(value: Any) -> list[str] | str | None:
    return value if value is None or isinstance(value, str) else list(map(str, value))


def _named(module: str, names: list[str] | str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _pattern(patterns: Mapping[str, Any], module: str) -> str:
    """The first expression that the end of a module's name matches, as PEFT looks for it."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def _check_pattern(folder: Path, pattern: str) -> None:
    """Expressions of a file are run on names of 50 letters: none that could take for ever."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UnsupportedModel(f"{folder}: {shown(pattern)} in {ADAPTER} is no expression ({error})") from error
    nested = re.search(r"[*+}]\)*[*+{]", pattern.replace("*?", "*").replace("+?", "+"))
    if len(pattern) > 300 or nested or len(re.findall(r"[*+{]", pattern)) > 3:
        raise UnsupportedModel(f"{folder}: the expression {shown(pattern)} in {ADAPTER} is too involved to be followed")
