"""Who converts a checkpoint: edgellm's own converter, or llama.cpp's. Judged by config.json alone, before anything is
fetched.

Ours reads the families of `facts`, and refuses a variant of them that it does not know. All other families are left to
llama.cpp's script, as far as it knows them and the engine can run them as writers of text; what it makes is compared
with transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from edgellm.export.convert import hf_to_gguf
from edgellm.export.read.facts import (
    MIN_CONTEXT,
    UnsupportedModel,
    has_encoder,
    read_document,
    refuse_other_kinds,
    text_settings,
    window_remark,
)
from edgellm.export.read.families import FAMILIES
from edgellm.export.read.sentencepiece_model import account_model_file

Choice = Literal["own", "llama.cpp"]
CHOICES: tuple[Choice, ...] = ("own", "llama.cpp")

_TABLE = Path(__file__).with_name("llama_cpp_families.txt")
# Where the name of a text model inside does not count, as in llama.cpp's script.
_BY_OUTER_NAME = {
    "StepVLForConditionalGeneration", "Sarashina2VisionForCausalLM", "Exaone4_5_ForConditionalGeneration",
    "Step3p7ForConditionalGeneration", "KimiK3ForConditionalGeneration",
}  # fmt: skip
# llama.cpp lets layers look back only so far where the file says so; elsewhere every layer sees everything.
_WINDOWED = {
    "afmoe", "cohere2", "cohere2moe", "deepseek4", "dots3note", "exaone-moe", "exaone4", "gemma2", "gemma3", "gemma3n",
    "gemma4", "gpt-oss", "granite_swa", "laguna", "lfm2", "lfm2moe", "llama4", "maple", "mellum", "mimo2",
    "muse-glimmer", "olmo2", "plamo3", "smallthinker", "spark2_5", "step35",
}  # fmt: skip

# What writes no text, by llama.cpp's name for it or by its class: (pattern, what it is). The first that fits is told.
_DRAFT_HEAD = (
    "a draft head that reads its target's hidden states and cannot draft alone: use a small model as the drafter"
)
_EMBEDDING = "an embedding model: it has no head that writes text"
_OTHER_ARCHS = {
    **dict.fromkeys(("dflash", "gemma4-assistant", "eagle3", "medusa"), _DRAFT_HEAD),
    **dict.fromkeys(
        ("bert", "eurobert", "jina-bert-v2", "modern-bert", "neo-bert", "gemma-embedding", "llama-embed", "t5encoder"),
        _EMBEDDING,
    ),
    **dict.fromkeys(
        ("dream", "llada", "llada-moe", "rnd1"),
        "a diffusion model: it does not write from left to right, as the engine does here",
    ),
    **dict.fromkeys(("pockettts", "qwen3tts", "wavtokenizer-dec"), "a model of speech: it does not write text"),
}
_OTHER_CLASSES = (
    (r"(?i)eagle|medusa|dflash|dspark|speculator|draft|AssistantForCausalLM|AssistantModel", _DRAFT_HEAD),
    (r"For(Sequence|Token|Image|Audio|Video)\w*Classification|RewardModel|ForQuestionAnswering|ForMultipleChoice",
     "a classifier: it has no head that writes text"),
    (r"ForMaskedLM|ForPreTraining|BERTLMHead", "a model that fills gaps: it does not write from left to right"),
    (r"(?i)dream|llada|diffusion|unet|transformer2d", "a diffusion model: it does not write from left to right"),
    (r"(?i)tts|wavtokenizer|audiotokenizer|vocoder|codec|musicgen|bark|^mimi|ForCTC|wav2vec|hubert|encodec|\bdac\b",
     "a model of sound: it does not write text as the engine does here"),
    (r"(?i)whisper|SpeechSeq2Seq|ForSpeech\w*Seq", "a model that hears: it writes no text from text"),
    (r"(?i)^(clip|siglip|vit|dino|sam|deit|swin|convnext|intern_?vision|radio|paddleocrvision|vision)\w*|"
     r"ForObjectDetection|ForSemanticSegmentation|ForDepthEstimation|VisionModel|ForMaskGeneration",
     "a model that sees: it has no head that writes text"),
    (r"(?<!LMHead)Model$|EncoderModel$|Embeddings?\w*Model$|BidirectionalModel$", _EMBEDDING),
)  # fmt: skip
# They end in Model, and write all the same.
_WRITERS = {"ChatGLMModel", "BloomModel", "Qwen2_5OmniModel", "Qwen2VLModel", "UMT5Model"}
# Methods that llama.cpp's converter undoes.
_UNDONE = {"fp8", "gptq", "compressed-tensors", "bitnet", "modelopt"}
_UNDONE_FORMATS = {"float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "nvfp4-pack-quantized"}


@dataclass(frozen=True, slots=True)
class Known:
    """One class that llama.cpp's converter knows."""

    arch: str  # llama.cpp's name
    in_transformers: bool
    has_senses: bool  # sees or hears, beside its text model


@dataclass(frozen=True, slots=True)
class Conversion:
    """Who makes the GGUF file of a checkpoint, and what the user should know."""

    by: Literal["own", "llama.cpp", "script"]
    family: str  # as its class says: "Qwen3_5"
    remarks: tuple[str, ...] = ()
    window: int | None = None  # tokens that the file's context is capped to where llama.cpp computes no window
    slides: tuple[bool, ...] | None = None  # which layers look back only so far, where config.json says so
    is_doubtful: bool = False  # our own converter refuses it: checked whatever its size
    pre_tokenizer: str | None = None  # llama.cpp's name for the rules of its tokenizer.json


@cache
def known_classes() -> Mapping[str, Known]:
    """llama.cpp's table: class of config.json -> what it is."""
    lines = _TABLE.read_text(encoding="ascii").splitlines()
    rows = (line.split() for line in lines if not line.startswith("#"))
    return {name: Known(arch, "t" in marks, "m" in marks) for name, arch, marks in rows}


def choose(folder: Path, choice: Choice | None = None, *, has_tokenizer: bool = True) -> Conversion:
    """Who converts the model of a folder, looking at its configuration (and its tokenizer's files) alone.

    Args:
        choice: None: our own converter for the families that it knows, llama.cpp's for all others.
        has_tokenizer: the tokenizer's files are there too; without them config.json alone is looked at.

    Raises:
        UnsupportedModel, TokenizerError: nobody can convert it, or not whom `choice` names.
    """
    if choice == "own":
        return Conversion("own", "", hf_to_gguf.examine(folder, has_tokenizer=has_tokenizer))
    config = read_document(folder)
    refuse_other_kinds(folder, config)
    name = _class_of(folder, config)
    quantised = _refuse_quantised(folder, config, name)
    ours = _is_ours(config, name)
    if choice is None and ours and quantised is None:
        return Conversion("own", name, hf_to_gguf.examine(folder, has_tokenizer=has_tokenizer))
    known = _known(folder, config, name, forced=choice is not None)
    has_pieces_alone = not (folder / "tokenizer.json").exists() and (folder / "tokenizer.model").exists()
    if has_tokenizer and has_pieces_alone and known.arch != "t5":  # nothing would compare how it cuts text
        account_model_file(folder)
    window = _window(folder, config, known.arch)
    remarks = _remarks(config, known, name, quantised, window)
    rules = _rules(folder, has_tokenizer)
    found = Conversion("llama.cpp", short(name), remarks, window, _slides(config), pre_tokenizer=rules)
    return _doubt(found, folder, has_tokenizer) if ours and quantised is None else found


def by_script(folder: Path) -> Conversion:
    """Another llama.cpp's script, which decides for itself what it knows."""
    try:
        found = choose(folder, "llama.cpp")
    except ValueError:
        found = Conversion("script", "", pre_tokenizer=_rules(folder, True))
    return replace(found, by="script")


def short(name: str) -> str:
    """A class's name without what it says of its head."""
    return re.sub(r"_?(ForCausalLM|ForConditionalGeneration|LMHeadModel|ForCausalLMV)$", "", name) or name


def _is_ours(config: Mapping[str, Any], name: str) -> bool:
    """Whether our own converter knows the family, by the very rule that it goes by."""
    model_type = config.get("model_type")
    if has_encoder(config):
        return True
    if not config.get("architectures"):
        return any(model_type in family.model_types for family in FAMILIES.values())
    family = FAMILIES.get(str(config["architectures"][0]))
    return family is not None and (not model_type or model_type in family.model_types)


def _class_of(folder: Path, config: Mapping[str, Any]) -> str:
    """The class that converts the model, as llama.cpp's script finds it."""
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UnsupportedModel(f"{folder}: architectures in config.json is no list of names: download it again")
    text = config.get("text_config")
    inner = text.get("architectures") if isinstance(text, dict) else None
    if names and names[0] not in _BY_OUTER_NAME and isinstance(inner, list) and inner:
        return str(inner[0])
    if names:
        return str(names[0])
    for name, family in FAMILIES.items():
        if config.get("model_type") in family.model_types:
            return name
    raise UnsupportedModel(
        f"{folder} names no class in config.json (architectures), which says what converts it: "
        "add it as its authors' repository has it"
    )


def _refuse_quantised(folder: Path, config: Mapping[str, Any], name: str) -> str | None:
    """What a checkpoint was quantised by, where llama.cpp's converter undoes it; None for a plain one.

    Raises:
        UnsupportedModel: quantised in another way.
    """
    told = next((config[key] for key in ("quantization_config", "compression_config") if config.get(key)), None)
    text = config.get("text_config")
    if told is None and isinstance(text, dict):
        told = text.get("quantization_config")
    if told is None and config.get("quantization"):
        told = {"quant_method": "MLX"}
    if not told:
        return None
    told = told if isinstance(told, dict) else {}
    method = str(told.get("quant_method") or ("MLX" if "group_size" in told else "an unnamed method"))
    fits = method in _UNDONE or (method == "mxfp4" and name == "GptOssForCausalLM")
    if method == "gptq":
        fits = told.get("bits") in (2, 4, 8)
    if method == "compressed-tensors":
        method += f", {told.get('format')}"
        fits = told.get("format") in _UNDONE_FORMATS and len(told.get("config_groups") or ()) == 1
    if fits:
        return method
    raise UnsupportedModel(
        f"{folder} is quantised already ({method}), in a way that neither converter undoes: "
        "export the model that it was made from, or use its GGUF"
    )


def kind_of(name: str) -> str | None:
    """What a class is that does not write text from left to right; None for one that does, as far as names tell."""
    known = known_classes().get(name)
    kind = _OTHER_ARCHS.get(known.arch) if known else None
    if kind is None and name not in _WRITERS:
        kind = next((what for pattern, what in _OTHER_CLASSES if re.search(pattern, name)), None)
    return kind


def _known(folder: Path, config: Mapping[str, Any], name: str, *, forced: bool) -> Known:
    """llama.cpp's entry for the class.

    Raises:
        UnsupportedModel: it has none, or one that writes no text.
    """
    known = known_classes().get(name)
    if (kind := kind_of(name)) is not None:
        raise UnsupportedModel(f"{folder} is {kind} ({name})")
    if known is None:
        raise UnsupportedModel(
            f"{folder} is a {name}, which neither edgellm nor the llama.cpp that it runs knows: "
            "a newer release may, or --converter PATH with the script of another llama.cpp"
        )
    code = config.get("auto_map")
    if isinstance(code, dict) and not known.in_transformers and not forced:
        raise UnsupportedModel(
            f"{folder} is a {name}, which comes with Python code of its own (auto_map) that is not run here, so that "
            "nothing could tell whether its export is right; --converter llama.cpp converts it all the same"
        )
    return known


def _remarks(
    config: Mapping[str, Any], known: Known, name: str, quantised: str | None, window: int | None
) -> tuple[str, ...]:
    found = []
    senses = [key for key in ("vision_config", "audio_config") if config.get(key)]
    if senses or (known.has_senses and known.arch not in {"deepseek4", "mimo2"}):
        found.append(f"{short(name)} takes more than text: its text model alone is exported")
    if quantised is not None:
        found.append(f"its weights were quantised by {quantised}: they are undone, which brings nothing back")
    if not known.in_transformers:
        found.append(f"transformers does not have {name}: nothing checks its logits")
    if window is not None:
        found.append(window_remark(window, known.arch))
    told = text_settings(config)
    ropes = [told.get(key) for key in ("rope_parameters", "rope_scaling")]
    if any(isinstance(rope, dict) and rope.get("truncate") is False for rope in ropes):
        found.append(
            "llama.cpp rounds the bounds between which it stretches positions (yarn), where transformers does not "
            "(truncate false): logits differ by some thousandths"
        )
    return tuple(found)


def _slides(config: Mapping[str, Any]) -> tuple[bool, ...] | None:
    """Which layers look back on a window or a chunk alone; None where config.json leaves that to the family."""
    kinds = text_settings(config).get("layer_types")
    if not isinstance(kinds, list) or not kinds:
        return None
    return tuple(kind in ("sliding_attention", "chunked_attention") for kind in kinds)


def _window(folder: Path, config: Mapping[str, Any], arch: str) -> int | None:
    """Tokens that some layer looks back on, where llama.cpp lets it see everything."""
    told = text_settings(config)
    window, context = told.get("sliding_window"), told.get("max_position_embeddings")
    kinds = told.get("layer_types")
    slides = "sliding_attention" in kinds if isinstance(kinds, list) else told.get("use_sliding_window", True)
    has_window = arch in _WINDOWED and not (arch == "exaone4" and told.get("num_hidden_layers") != 64)
    if has_window or not slides or not isinstance(window, int) or window < 1:
        return None
    if isinstance(context, int) and window >= context:
        return None
    if window < MIN_CONTEXT:
        raise UnsupportedModel(
            f"{folder} looks back {window} tokens (sliding_window), where llama.cpp's {arch} always sees the whole "
            "context: beyond so few tokens it would be another model"
        )
    return window


def _rules(folder: Path, has_tokenizer: bool) -> str | None:
    """llama.cpp's name for how the tokenizer splits text, where our rules know it."""
    if not has_tokenizer or not (folder / "tokenizer.json").exists():
        return None
    from edgellm.export.read.pre_tokenizers import pre_tokenizer
    from edgellm.export.read.tokenizer_facts import TokenizerError

    try:
        return pre_tokenizer(folder)
    except TokenizerError:
        return None


def _doubt(found: Conversion, folder: Path, has_tokenizer: bool) -> Conversion:
    """What llama.cpp's script was asked to convert although our own converter knows the family: say what it refuses."""
    try:
        remarks = hf_to_gguf.examine(folder, has_tokenizer=has_tokenizer)
    except ValueError as error:
        why = str(error).replace(str(folder), "the model").partition("; ")[0]
        told = f"edgellm's own converter would refuse it ({why})"
        return replace(found, remarks=(*found.remarks, told), is_doubtful=True)
    return replace(found, remarks=tuple(dict.fromkeys((*found.remarks, *remarks))))
