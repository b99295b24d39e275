"""What of a checkpoint's configuration says that no ONNX graph comes of it, before anything is installed or fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.export.convert.conversion import kind_of
from edgellm.export.environments import Exporter
from edgellm.export.read.facts import UnsupportedModel, read_document, refuse_other_kinds

# Text models that the pinned builder has a class for; optimum has other ones, and says itself which.
BUILDER = {
    "ChatGLMForConditionalGeneration", "ChatGLMModel", "Ernie4_5ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM",
    "Gemma3ForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM", "GraniteMoeHybridForCausalLM",
    "HunYuanDenseV1ForCausalLM", "InternLM2ForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "LlamaForCausalLM",
    "MistralForCausalLM", "NemotronForCausalLM", "OlmoForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM",
    "PhiMoEForCausalLM", "Phi3SmallForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
}  # fmt: skip


def examine(folder: Path, exporter: Exporter, *, has_tokenizer: bool = True) -> None:
    """Look at a folder whose weights need not be there yet.

    Args:
        has_tokenizer: the tokenizer's files are there too.

    Raises:
        UnsupportedModel: no graph can be made of it, or none that is right.
    """
    config = read_document(folder)
    refuse_other_kinds(folder, config)
    _refuse_quantised(folder, config)
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if not name:
        raise UnsupportedModel(f"{folder} names no class in config.json (architectures): exporters go by it")
    if (what := kind_of(name)) is not None:
        raise UnsupportedModel(f"{folder} is {what} ({name})")
    if exporter == "builder" and name not in BUILDER:
        raise UnsupportedModel(
            f"{folder} is a {name}, of which onnxruntime-genai's builder makes no graph of text: try --exporter "
            "optimum, or --format gguf"
        )
    if config.get("auto_map") and name not in BUILDER:
        raise UnsupportedModel(
            f"{folder} is a {name} that comes with Python code of its own (auto_map), which is not run here"
        )
    for key in ("hidden_size", "num_attention_heads"):
        if isinstance(config.get(key), bool) or not isinstance(config.get(key), int) or config[key] < 1:
            raise UnsupportedModel(f"{folder}: {key} in config.json is no count of at least 1")
    if has_tokenizer and not (folder / "tokenizer.json").is_file():
        raise UnsupportedModel(f"{folder} has no tokenizer.json: nothing could turn text into the graph's tokens")


def _refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    told = next((config[key] for key in ("quantization_config", "compression_config") if config.get(key)), None)
    if told or config.get("quantization"):
        told = told if isinstance(told, dict) else {}
        method = told.get("quant_method") or ("an unnamed method" if told else "MLX")
        raise UnsupportedModel(
            f"{folder} is quantised already ({method}): export the model that it was made from, which is quantised on "
            "the way (--quant)"
        )
