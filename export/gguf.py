"""From a Hub folder to an unquantised GGUF file, tensor by tensor, without torch.

A family is a table: which Hub tensor is which GGUF tensor, and what is done to it on the way. Two things are done at
all. Llama's query and key rows change places, since the Hub keeps the halves of a head apart that llama.cpp rotates
as pairs. Gemma's norms gain the 1 that its authors leave out. Everything else is copied in pieces of a few megabytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.export import gguf_writer as gguf
from edgellm.export.checkpoint import StoredTensor, read_checkpoint
from edgellm.export.gguf_writer import PlannedTensor, write_gguf
from edgellm.export.tokenizer import TokenizerError, Vocabulary, read_json, read_vocabulary

FloatType = Literal["F32", "F16", "BF16"]
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # llama.cpp's `general.file_type`
_MAX_LAYERS = 1024

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


class UnsupportedModel(ValueError):
    """A model that this package cannot export; the message says what can."""


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of transformer: llama.cpp's name for it and its tensors."""

    arch: str
    layer: Mapping[str, str]  # Hub name within a layer -> GGUF name within a block
    permute: bool = False  # llama.cpp rotates neighbours, the Hub halves
    gemma: bool = False  # norms are stored less 1; the head is the embedding


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("llama", _LAYER, permute=True),
    "MistralForCausalLM": Family("llama", _LAYER, permute=True),
    "Qwen2ForCausalLM": Family("qwen2", _LAYER),
    "Qwen3ForCausalLM": Family("qwen3", _LAYER | _QK_NORM),
    "Gemma2ForCausalLM": Family("gemma2", _LAYER | _GEMMA_NORMS, gemma=True),
    "Gemma3ForCausalLM": Family("gemma3", _LAYER | _GEMMA_NORMS | _QK_NORM, gemma=True),
    "Gemma3ForConditionalGeneration": Family("gemma3", _LAYER | _GEMMA_NORMS | _QK_NORM, gemma=True),
    "Phi3ForCausalLM": Family("phi3", _PHI3_LAYER),
}


def read_config(folder: Path) -> tuple[Family, dict[str, Any]]:
    """The family of a Hub folder and its text model's configuration.

    Raises:
        UnsupportedModel: an architecture, or a variant of one, that would be exported wrongly.
    """
    if not (folder / "config.json").exists():
        raise UnsupportedModel(f"{folder} has no config.json: is it a model's folder?")
    try:
        config = read_json(folder / "config.json")
    except TokenizerError as error:
        raise UnsupportedModel(str(error)) from error
    names = config.get("architectures") or ["(none)"]
    if re.search("eagle|medusa", str(names[0]), re.IGNORECASE):
        raise UnsupportedModel(
            f"{folder} is a draft head ({names[0]}) that reads its target's hidden states and cannot draft alone: "
            "use a small model as the drafter, or a target whose GGUF has its head inside (MTP)"
        )
    family = FAMILIES.get(str(names[0]))
    if family is None:
        known = ", ".join(sorted(name.removesuffix("ForCausalLM") for name in FAMILIES if name.endswith("ForCausalLM")))
        raise UnsupportedModel(
            f"{folder} is a {names[0]}, which is not among the families exported here ({known}); "
            "give --converter PATH to use the script of a llama.cpp checkout"
        )
    config |= config.get("text_config") or {}
    for key, what in (
        ("num_local_experts", "a mixture of experts"),
        ("quantization_config", "quantised already"),
    ):
        if config.get(key):
            raise UnsupportedModel(f"{folder} is {what} ({key} in config.json), which is not supported: use its GGUF")
    if config.get("mlp_bias"):
        raise UnsupportedModel(f"{folder} has biases in its feed-forward layers, which llama.cpp does not read")
    return family, config


def to_gguf(
    folder: Path,
    path: Path,
    *,
    float_type: FloatType = "F16",
    name: str | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
) -> None:
    """Write the model of a Hub folder as `path`, whole or not at all; the same folder gives the same bytes.

    Args:
        float_type: of the matrices; vectors stay F32.
        name: the model's own name, kept in the file. None: the folder's.
        on_tensor: called with (tensors written, tensors in all).

    Raises:
        UnsupportedModel: no family of this package, or weights that do not fit its configuration.
        CheckpointError, TokenizerError: damaged or missing files.
    """
    family, config = read_config(folder)
    try:
        shape = _Shape.of(config)
        entries = _entries(folder, family, config, shape, float_type, name or folder.name)
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        if isinstance(error, (UnsupportedModel, TokenizerError)):
            raise
        raise UnsupportedModel(f"{folder}: config.json is incomplete or damaged ({error!r})") from error
    tensors = _tensors(folder, family, config, shape, float_type)
    n_done = 0

    def count(_: PlannedTensor) -> None:
        nonlocal n_done
        n_done += 1
        if on_tensor is not None:
            on_tensor(n_done, len(tensors))

    write_gguf(path, entries, tensors, on_tensor=count)


@dataclass(frozen=True, slots=True)
class _Shape:
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Shape:
        n_heads = int(config["num_attention_heads"])
        shape = cls(
            n_layers=int(config["num_hidden_layers"]),
            n_embd=int(config["hidden_size"]),
            n_ff=int(config["intermediate_size"]),
            n_heads=n_heads,
            n_kv_heads=int(config.get("num_key_value_heads") or n_heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // n_heads),
            n_vocab=int(config["vocab_size"]),
        )
        if shape.n_layers > _MAX_LAYERS or min(shape.n_embd, shape.n_heads, shape.n_kv_heads, shape.head_dim) < 1:
            raise ValueError(f"{shape}")
        return shape


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings of the layers that see everything: the old `rope_scaling` or the newer `rope_parameters`."""
    told = config.get("rope_parameters") or {}
    told = told.get("full_attention", told)
    scaling = config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta"), **scaling, **told}
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def _entries(
    folder: Path, family: Family, config: Mapping[str, Any], shape: _Shape, float_type: FloatType, name: str
) -> dict[str, bytes]:
    arch, rope = family.arch, _rope(config)
    vocabulary = read_vocabulary(folder, shape.n_vocab)
    entries = {
        "general.architecture": gguf.string(arch),
        "general.type": gguf.string("model"),
        "general.name": gguf.string(_telling_name(name, vocabulary)),
        "general.file_type": gguf.u32(_FILE_TYPES[float_type]),
        f"{arch}.vocab_size": gguf.u32(shape.n_vocab),
        f"{arch}.context_length": gguf.u32(int(config["max_position_embeddings"])),
        f"{arch}.embedding_length": gguf.u32(shape.n_embd),
        f"{arch}.block_count": gguf.u32(shape.n_layers),
        f"{arch}.feed_forward_length": gguf.u32(shape.n_ff),
        f"{arch}.attention.head_count": gguf.u32(shape.n_heads),
        f"{arch}.attention.head_count_kv": gguf.u32(shape.n_kv_heads),
        f"{arch}.attention.layer_norm_rms_epsilon": gguf.f32(float(config.get("rms_norm_eps", 1e-6))),
        f"{arch}.attention.key_length": gguf.u32(shape.head_dim),
        f"{arch}.attention.value_length": gguf.u32(shape.head_dim),
        f"{arch}.rope.dimension_count": gguf.u32(_n_rotated(config, shape)),
        f"{arch}.rope.freq_base": gguf.f32(float(rope["rope_theta"] or (1e6 if arch == "gemma3" else 1e4))),
    }
    entries |= _rope_entries(folder, arch, config, rope)
    if family.gemma:
        entries |= _gemma_entries(folder, arch, config, shape)
    if arch == "phi3":
        # 0 tells llama.cpp of a model without a window, as Phi-4 is.
        entries["phi3.attention.sliding_window"] = gguf.u32(int(config.get("sliding_window") or 0))
    return entries | vocabulary.entries() | {"general.quantization_version": gguf.u32(2)}


def _telling_name(name: str, vocabulary: Vocabulary) -> str:
    """The model's name as llama.cpp must find it: control tokens swallow spaces where the name says Phi-3, and a name
    that says so without Phi-3's tokens does not load.
    """
    name = name.encode("utf-8", "replace").decode()  # a folder's name may be none
    told = re.search("phi-?3", name, re.IGNORECASE)
    has_tokens = {b"</s>", b"<unk>", b"<s>", b"<|endoftext|>"} <= set(vocabulary.tokens)
    if told and not has_tokens:
        return name.replace(told[0], told[0][:3] + " 3")
    return f"{name} (phi-3 tokenizer)" if has_tokens and vocabulary.strips_right and not told else name


def _n_rotated(config: Mapping[str, Any], shape: _Shape) -> int:
    part = config.get("partial_rotary_factor") or _rope(config).get("partial_rotary_factor") or 1.0
    return int(float(part) * shape.head_dim)


def _rope_entries(folder: Path, arch: str, config: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, bytes]:
    kind, key = rope["rope_type"], f"{arch}.rope.scaling"
    if kind in {"default", "llama3"}:  # Llama 3's scaling travels as a tensor of factors
        return {}
    if kind == "linear":
        return {f"{key}.type": gguf.string("linear"), f"{key}.factor": gguf.f32(float(rope["factor"]))}
    if kind == "yarn":
        original = int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"])
        return {
            f"{key}.type": gguf.string("yarn"),
            f"{key}.factor": gguf.f32(float(rope["factor"])),
            f"{key}.original_context_length": gguf.u32(original),
        }
    if kind in {"longrope", "su"} and arch == "phi3":
        original = int(rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"])
        scale = int(config["max_position_embeddings"]) / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        return {
            f"{key}.original_context_length": gguf.u32(original),
            f"{key}.attn_factor": gguf.f32(factor),
        }
    raise UnsupportedModel(
        f"{folder} stretches its context by {kind!r}, which is not exported here; "
        "give --converter PATH to use the script of a llama.cpp checkout"
    )


def _gemma_entries(folder: Path, arch: str, config: Mapping[str, Any], shape: _Shape) -> dict[str, bytes]:
    # llama.cpp takes the scale from the number of layers: the 27B models divide by the width of a head, all others by
    # head_dim.
    is_27b = shape.n_layers == {"gemma2": 46, "gemma3": 62}[arch]
    expected = shape.n_embd // shape.n_heads if is_27b else shape.head_dim
    if config.get("query_pre_attn_scalar", expected) != expected:
        raise UnsupportedModel(
            f"{folder} scales its queries by {config['query_pre_attn_scalar']} where llama.cpp would by {expected}"
        )
    entries = {f"{arch}.attention.sliding_window": gguf.u32(int(config["sliding_window"]))}
    period = {"gemma2": 2, "gemma3": 6}[arch]
    kinds = config.get("layer_types")
    told = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or period
    if kinds is None:
        kinds = [
            "full_attention" if (layer + 1) % told == 0 else "sliding_attention" for layer in range(shape.n_layers)
        ]
    if any((kind == "full_attention") != ((layer + 1) % period == 0) for layer, kind in enumerate(kinds)):
        raise UnsupportedModel(
            f"{folder} mixes sliding and full layers otherwise than every {period}th, as {arch} does"
        )
    if arch == "gemma2":
        entries["gemma2.attn_logit_softcapping"] = gguf.f32(float(config["attn_logit_softcapping"]))
    elif config.get("attn_logit_softcapping"):
        raise UnsupportedModel(f"{folder} caps its attention, which no Gemma 3 does")
    else:
        local = (config.get("rope_parameters") or {}).get("sliding_attention", {}).get("rope_theta")
        entries["gemma3.rope.freq_base_swa"] = gguf.f32(float(local or config.get("rope_local_base_freq") or 1e4))
    if config.get("final_logit_softcapping"):
        entries[f"{arch}.final_logit_softcapping"] = gguf.f32(float(config["final_logit_softcapping"]))
    return entries


# Hub prefixes of the text model, the commonest first; multimodal checkpoints bury it.
_PREFIXES = ("model.language_model.", "language_model.model.", "model.")
_IGNORED = re.compile(r"rotary_emb|vision_tower|multi_modal_projector|vision_model|masked_bias|attn\.bias$")


def _gguf_name(name: str, family: Family) -> str | None:
    """The GGUF name of a Hub tensor; None for one that the family does not know."""
    if name.removeprefix("language_model.") == "lm_head.weight":
        return "output.weight"
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    if name in {"embed_tokens.weight", "norm.weight"}:
        return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
    match = re.fullmatch(r"layers\.(\d{1,4})\.(.+)\.(weight|bias)", name)
    if match is None or match[2] not in family.layer:
        return None
    return f"blk.{match[1]}.{family.layer[match[2]]}.{match[3]}"


def _tensors(
    folder: Path, family: Family, config: Mapping[str, Any], shape: _Shape, float_type: FloatType
) -> list[PlannedTensor]:
    stored: dict[str, StoredTensor] = {}
    for name, tensor in read_checkpoint(folder).items():
        if _IGNORED.search(name):
            continue
        new_name = _gguf_name(name, family)
        if new_name is None:
            raise UnsupportedModel(f"{folder} has a tensor {name!r} that {family.arch} has no place for")
        stored[new_name] = tensor
    if family.gemma or config.get("tie_word_embeddings"):
        stored.pop("output.weight", None)  # the embedding serves as the head
    elif "output.weight" not in stored and not config.get("tie_word_embeddings", family.arch == "qwen3"):
        raise UnsupportedModel(f"{folder} lacks lm_head.weight: download the rest of its shards")
    extents = _expected(family, shape)
    for name, extent in extents.items():
        if name not in stored:
            raise UnsupportedModel(f"{folder} lacks the tensor for {name}: download the rest of its shards")
        if stored[name].shape != extent:
            raise UnsupportedModel(f"{folder}: {name} is {stored[name].shape} where config.json says {extent}")
    for name in stored:
        if name not in extents and name.endswith(".weight") and name != "output.weight":
            raise UnsupportedModel(f"{folder}: {name} is beyond the layers that config.json tells of")
    planned = [_planned(name, stored[name], family, shape, float_type) for name in sorted(stored, key=_order)]
    return _rope_tensors(config, shape, family) + planned


def _expected(family: Family, shape: _Shape) -> dict[str, tuple[int, ...]]:
    """Extents of every tensor that must be there, outermost first."""
    n_q, n_kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    known: dict[str, tuple[int, ...]] = {
        "attn_q": (n_q, shape.n_embd),
        "attn_k": (n_kv, shape.n_embd),
        "attn_v": (n_kv, shape.n_embd),
        "attn_qkv": (n_q + 2 * n_kv, shape.n_embd),
        "attn_output": (shape.n_embd, n_q),
        "attn_q_norm": (shape.head_dim,),
        "attn_k_norm": (shape.head_dim,),
        "ffn_gate": (shape.n_ff, shape.n_embd),
        "ffn_up": (shape.n_ff * (2 if "attn_qkv" in family.layer.values() else 1), shape.n_embd),
        "ffn_down": (shape.n_embd, shape.n_ff),
    }
    extents: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.n_vocab, shape.n_embd),
        "output_norm.weight": (shape.n_embd,),
    }
    for layer in range(shape.n_layers):
        for part in family.layer.values():
            extents[f"blk.{layer}.{part}.weight"] = known.get(part, (shape.n_embd,))
    return extents


def _order(name: str) -> tuple[int, str]:
    """Embedding, blocks, head: the order in which they are read when the model runs."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]), name) if match else (-1 if name.startswith("token_embd") else _MAX_LAYERS, name)


def _planned(name: str, stored: StoredTensor, family: Family, shape: _Shape, float_type: FloatType) -> PlannedTensor:
    type_name = "F32" if len(stored.shape) == 1 else float_type
    permute = re.search(r"attn_([qk])\.", name) if family.permute else None

    def chunks() -> Iterator[bytes]:
        if permute:
            n_heads = shape.n_heads if permute[1] == "q" else shape.n_kv_heads
            yield _converted(
                _paired(_items(stored.read(), stored), n_heads, stored.shape[0]), stored, type_name, plus=0.0
            )
            return
        plus = 1.0 if family.gemma and name.endswith("norm.weight") else 0.0
        for chunk in stored.chunks():
            yield _converted(_items(chunk, stored), stored, type_name, plus=plus)

    return PlannedTensor(name, tuple(reversed(stored.shape)), type_name, chunks)


_NUMPY: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def _items(data: bytes, stored: StoredTensor) -> NDArray[Any]:
    """The bytes as numbers, shape (n,); bfloat16, which numpy lacks, as its 16 bits."""
    items: NDArray[Any] = np.frombuffer(data, _NUMPY[stored.type])
    return items


def _paired(items: NDArray[Any], n_heads: int, n_rows: int) -> NDArray[Any]:
    """Rows of each head from (first half, second half) to neighbours: row 0, row d/2, row 1, row d/2 + 1, ..."""
    halves = items.reshape(n_heads, 2, n_rows // n_heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1)


def _bf16_to_f16() -> NDArray[np.uint16]:
    """The half-precision bits of each of the 65,536 bfloat16 numbers."""
    with np.errstate(over="ignore"):
        return (np.arange(2**16, dtype="<u4") << 16).view("<f4").astype("<f2").view("<u2")


_BF16_TO_F16 = _bf16_to_f16()


def _converted(items: NDArray[Any], stored: StoredTensor, type_name: str, *, plus: float) -> bytes:
    """Numbers of the stored type as bytes of `type_name`, each with `plus` added."""
    if stored.type == type_name and not plus:
        return bytes(items.data)
    if stored.type == "BF16" and type_name == "F16" and not plus:
        halves = _BF16_TO_F16[items]
        if np.any((halves & 0x7FFF) == 0x7C00):
            raise UnsupportedModel(f"{stored.path}: {stored.name} holds numbers beyond F16: export with --quant BF16")
        return bytes(halves.data)
    floats: NDArray[np.float32] = (
        (items.astype("<u4") << 16).view("<f4") if stored.type == "BF16" else items.astype("<f4", copy=False)
    )
    floats = floats + np.float32(plus) if plus else floats
    if type_name == "F32":
        return bytes(floats.astype("<f4", copy=False).data)
    if type_name == "BF16":
        bits = floats.view("<u4")
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
        return bytes(nearest.astype("<u2").data)
    with np.errstate(over="ignore"):
        result = floats.astype("<f2")
    if np.any(np.isinf(result)):
        raise UnsupportedModel(f"{stored.path}: {stored.name} holds numbers beyond F16: export with --quant BF16")
    return bytes(result.data)


def _rope_tensors(config: Mapping[str, Any], shape: _Shape, family: Family) -> list[PlannedTensor]:
    """Factors of the rotary frequencies, for contexts stretched as Llama 3 and Phi-3 do it."""
    rope = _rope(config)
    if rope["rope_type"] == "llama3":
        return [_vector("rope_freqs.weight", _llama3_factors(rope, shape.head_dim))]
    if family.arch == "phi3" and rope["rope_type"] in {"longrope", "su"}:
        factors = {
            f"rope_factors_{kind}.weight": [float(x) for x in rope[f"{kind}_factor"]] for kind in ("long", "short")
        }
        if any(len(values) != _n_rotated(config, shape) // 2 for values in factors.values()):
            raise UnsupportedModel("the model's rope factors do not fit its heads: config.json is damaged")
        return [_vector(name, values) for name, values in factors.items()]
    return []


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> list[float]:
    """By how much each frequency is divided: not at all for short waves, `factor` for long ones, smoothly between."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (index / head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _vector(name: str, values: list[float]) -> PlannedTensor:
    return PlannedTensor(name, (len(values),), "F32", lambda: iter([np.asarray(values, "<f4").tobytes()]))
