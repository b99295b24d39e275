"""From a Hub folder to an unquantised GGUF file, tensor by tensor, without torch.

A family is a table: which Hub tensor is which GGUF tensor, and what is done to it on the way. Two things are done at
all. Llama's query and key rows change places, since the Hub keeps the halves of a head apart that llama.cpp rotates
as pairs. Gemma's norms gain the 1 that its authors leave out. Everything else is copied in pieces of a few megabytes.
"""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.export.convert import gguf_writer as gguf
from edgellm.export.convert.gguf_writer import PlannedTensor, write_gguf
from edgellm.export.read.checkpoint import READABLE, StoredTensor, read_checkpoint
from edgellm.export.read.facts import Family, UnsupportedModel, attention_window, read_config, remarks
from edgellm.export.read.rope import Rope, read_rope, rope_entries, rope_factors
from edgellm.export.read.tokenizer import GgufVocabulary, TokenizerError, read_vocabulary

FloatType = Literal["F32", "F16", "BF16"]
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # llama.cpp's `general.file_type`
_MAX_LAYERS = 1024
_NO_CAP = 65_536.0  # cap * tanh(x / cap) is x to a millionth for any x up to a hundred


def to_gguf(
    folder: Path,
    path: Path,
    *,
    float_type: FloatType = "F16",
    name: str | None = None,
    adapt: Callable[[dict[str, StoredTensor]], dict[str, StoredTensor]] | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
) -> None:
    """Write the model of a Hub folder as `path`, whole or not at all; the same folder gives the same bytes.

    Args:
        float_type: of the matrices; vectors stay F32.
        name: the model's own name, kept in the file. None: the folder's.
        adapt: makes the tensors to write of the checkpoint's, both by GGUF name: what merges an adapter.
        on_tensor: called with (tensors written, tensors in all).

    Raises:
        UnsupportedModel: no family of this package, or weights that do not fit its configuration.
        CheckpointError, TokenizerError: damaged or missing files.
    """
    plan = _plan(folder, float_type, name or folder.name)
    tensors = [_vector(*item) for item in plan.factors.items()] + _tensors(folder, plan, float_type, adapt)
    n_done = 0

    def count(_: PlannedTensor) -> None:
        nonlocal n_done
        n_done += 1
        if on_tensor is not None:
            on_tensor(n_done, len(tensors))

    write_gguf(path, plan.entries, tensors, on_tensor=count)


def examine(folder: Path, *, has_tokenizer: bool = True) -> tuple[str, ...]:
    """What the user of the exported model should know, in sentences: all that can be said before weights are there.

    Args:
        has_tokenizer: its files are there too; without them config.json alone is looked at.

    Raises:
        UnsupportedModel, TokenizerError: as `to_gguf` would.
    """
    if has_tokenizer:
        return _plan(folder, "F16", folder.name).remarks
    with damage_told(folder):
        family, config = read_config(folder)
        rope = read_rope(folder, family, config)
        rope_factors(folder, rope)
        window = attention_window(folder, family, config)
        return tuple(remarks(family, config, window, rope["rope_type"]))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a folder's configuration and tokenizer make of it."""

    family: Family
    config: Mapping[str, Any]
    shape: Shape
    entries: dict[str, bytes]
    factors: dict[str, list[float]]
    remarks: tuple[str, ...]


def _plan(folder: Path, float_type: FloatType, name: str) -> _Plan:
    with damage_told(folder):
        family, config = read_config(folder)
        shape, rope = Shape.of(config), read_rope(folder, family, config)
        vocabulary = read_vocabulary(folder, shape.n_vocab)
        window = attention_window(folder, family, config)
        entries = _entries(folder, family, config, shape, rope, vocabulary, float_type, name, window)
        told = (*remarks(family, config, window, rope["rope_type"]), *vocabulary.remarks)
        return _Plan(family, config, shape, entries, rope_factors(folder, rope), told)


@contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """A value of another kind than expected, or none at all, fails in any way there is."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, ZeroDivisionError, struct.error) as error:
        if isinstance(error, (UnsupportedModel, TokenizerError)):
            raise
        raise UnsupportedModel(f"{folder}: config.json is incomplete or damaged ({error!r})") from error


@dataclass(frozen=True, slots=True)
class Shape:
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
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


def _entries(
    folder: Path,
    family: Family,
    config: Mapping[str, Any],
    shape: Shape,
    rope: Rope,
    vocabulary: GgufVocabulary,
    float_type: FloatType,
    name: str,
    window: int | None,
) -> dict[str, bytes]:
    arch = family.arch
    # Where a layer looks back less far than llama.cpp lets it, the model is itself up to there.
    n_context = window or int(config["max_position_embeddings"])
    entries = {
        "general.architecture": gguf.string(arch),
        "general.type": gguf.string("model"),
        "general.name": gguf.string(_telling_name(name, vocabulary)),
        "general.file_type": gguf.u32(FILE_TYPES[float_type]),
        f"{arch}.vocab_size": gguf.u32(shape.n_vocab),
        f"{arch}.context_length": gguf.u32(n_context),
        f"{arch}.embedding_length": gguf.u32(shape.n_embd),
        f"{arch}.block_count": gguf.u32(shape.n_layers),
        f"{arch}.feed_forward_length": gguf.u32(shape.n_ff),
        f"{arch}.attention.head_count": gguf.u32(shape.n_heads),
        f"{arch}.attention.head_count_kv": gguf.u32(shape.n_kv_heads),
        f"{arch}.attention.layer_norm_rms_epsilon": gguf.f32(float(config["rms_norm_eps"])),
        f"{arch}.attention.key_length": gguf.u32(shape.head_dim),
        f"{arch}.attention.value_length": gguf.u32(shape.head_dim),
    }
    entries |= rope_entries(arch, config, rope)
    if family.gemma:
        entries |= _gemma_entries(folder, arch, config, shape)
    if arch == "phi3":
        entries["phi3.attention.sliding_window"] = gguf.u32(0)  # it computes none, whatever is said here
    return entries | vocabulary.entries() | {"general.quantization_version": gguf.u32(2)}


def _telling_name(name: str, vocabulary: GgufVocabulary) -> str:
    """The model's name as llama.cpp must find it: control tokens swallow spaces where it says Phi-3 and only there,
    and a name that says so without Phi-3's tokens does not load.
    """
    name = name.encode("utf-8", "replace").decode()  # a folder's name may be none
    if not vocabulary.strips_right:
        return re.sub("(phi)-?3", r"\1 3", name, flags=re.IGNORECASE)
    return name if re.search("phi-?3", name, re.IGNORECASE) else f"{name} (phi-3 tokenizer)"


def _gemma_entries(folder: Path, arch: str, config: Mapping[str, Any], shape: Shape) -> dict[str, bytes]:
    # llama.cpp takes the scale from the number of layers: the 27B models divide by the width of a head, all others by
    # head_dim.
    is_27b = shape.n_layers == {"gemma2": 46, "gemma3": 62}[arch]
    expected = shape.n_embd // shape.n_heads if is_27b else shape.head_dim
    if config["query_pre_attn_scalar"] != expected:
        raise UnsupportedModel(
            f"{folder} scales its queries by {config['query_pre_attn_scalar']} where llama.cpp would by {expected}"
        )
    if not config["sliding_window"]:
        raise UnsupportedModel(f"{folder} says no sliding_window, which every {arch} has")
    period = {"gemma2": 2, "gemma3": 6}[arch]
    told = int(config.get("sliding_window_pattern") or period)
    kinds = config["layer_types"] or [
        "full_attention" if (layer + 1) % told == 0 else "sliding_attention" for layer in range(shape.n_layers)
    ]
    expected_kinds = [
        "full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in range(shape.n_layers)
    ]
    kinds = kinds[: shape.n_layers]
    if strange := set(kinds) - {"full_attention", "sliding_attention"}:
        raise UnsupportedModel(f"{folder} has layers of the kind {sorted(strange)[0]!r} (layer_types), unlike {arch}")
    if len(kinds) < shape.n_layers:
        raise UnsupportedModel(f"{folder}: layer_types in config.json tells of {len(kinds)} of {shape.n_layers} layers")
    window = int(config["sliding_window"])
    if "sliding_attention" not in kinds:  # llama.cpp's gemma2 has such layers, and one that reaches everywhere is none
        window, kinds = (0 if arch == "gemma3" else int(config["max_position_embeddings"])), expected_kinds
    entries = {f"{arch}.attention.sliding_window": gguf.u32(window)}
    if kinds != expected_kinds:
        entries[f"{arch}.attention.sliding_window_pattern"] = gguf.i32s([kind == "sliding_attention" for kind in kinds])
    # transformers' Gemma 3 has a cap of the scores in its configuration and computes none, as llama.cpp.
    for key in ("final_logit_softcapping", *(("attn_logit_softcapping",) if arch == "gemma2" else ())):
        if config[key]:
            entries[f"{arch}.{key}"] = gguf.f32(float(config[key]))
        elif arch == "gemma2":  # it always computes one
            entries[f"{arch}.{key}"] = gguf.f32(_NO_CAP)
    return entries


# Hub prefixes of the text model, the commonest first; multimodal checkpoints bury it.
_PREFIXES = ("model.language_model.", "language_model.model.", "model.")
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$")  # computed from the configuration
PICTURES = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.")  # what sees, beside Gemma 3's text model


def gguf_name(name: str, family: Family) -> str | None:
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
    return f"blk.{int(match[1])}.{family.layer[match[2]]}.{match[3]}"


def _tensors(
    folder: Path,
    plan: _Plan,
    float_type: FloatType,
    adapt: Callable[[dict[str, StoredTensor]], dict[str, StoredTensor]] | None,
) -> list[PlannedTensor]:
    family = plan.family
    stored: dict[str, StoredTensor] = {}
    for name, tensor in read_checkpoint(folder).items():
        if _BUFFERS.search(name) or (family.arch == "gemma3" and PICTURES.search(name)):
            continue
        new_name = gguf_name(name, family)
        if new_name is None:
            raise UnsupportedModel(f"{folder} has a tensor {name!r} that {family.arch} has no place for")
        if new_name in stored:
            raise UnsupportedModel(f"{folder} has {name!r} and {stored[new_name].name!r}, which are the same tensor")
        if tensor.type not in READABLE:
            raise UnsupportedModel(
                f"{folder}: {name!r} is stored as {tensor.type}, and weights of {', '.join(READABLE)} are exported: "
                "take the model that it was made from"
            )
        stored[new_name] = tensor
    stored = adapt(stored) if adapt is not None else stored
    _settle_head(folder, plan, stored)
    extents = expected(family, plan.config, plan.shape)
    for name, extent in extents.items():
        if name not in stored:
            raise UnsupportedModel(f"{folder} lacks the tensor for {name}: download the rest of its shards")
        if stored[name].shape != extent:
            raise UnsupportedModel(f"{folder}: {name} is {stored[name].shape} where config.json makes it {extent}")
    for name, tensor in stored.items():
        if name not in extents and name != "output.weight":
            layer = re.match(r"blk\.(\d+)", name)
            beyond = layer is not None and int(layer[1]) >= plan.shape.n_layers
            why = "is beyond the layers that config.json tells of" if beyond else "is nothing that config.json tells of"
            raise UnsupportedModel(f"{folder}: {tensor.name} {why}")
    return [_planned(name, stored[name], family, plan.shape, float_type) for name in sorted(stored, key=order)]


def _settle_head(folder: Path, plan: _Plan, stored: dict[str, StoredTensor]) -> None:
    """Leave the head out where the embedding serves as one; a head of its own counts, whatever config.json says."""
    head, embedding = stored.get("output.weight"), stored.get("token_embd.weight")
    tied = bool(plan.config["tie_word_embeddings"])
    if head is None and not tied:
        raise UnsupportedModel(
            f"{folder} lacks lm_head.weight, and config.json does not say that the embedding serves as the head "
            "(tie_word_embeddings): download the rest of its shards"
        )
    if head is None or embedding is None:
        return
    if head.shape != embedding.shape:
        raise UnsupportedModel(f"{folder}: lm_head.weight is {head.shape} where the embedding is {embedding.shape}")
    if (tied or plan.family.arch == "gemma2") and _same(head, embedding):
        del stored["output.weight"]
    elif plan.family.arch == "gemma2":
        raise UnsupportedModel(f"{folder} has a head of its own (lm_head.weight), for which gemma2 has no place")


def _same(left: StoredTensor, right: StoredTensor) -> bool:
    return left.type == right.type and all(map(operator.eq, left.chunks(), right.chunks()))


def expected(family: Family, config: Mapping[str, Any], shape: Shape) -> dict[str, tuple[int, ...]]:
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
    biased = family.bias_parts(config)
    for layer in range(shape.n_layers):
        for part in family.layer.values():
            extents[f"blk.{layer}.{part}.weight"] = known.get(part, (shape.n_embd,))
        for part in biased:
            extents[f"blk.{layer}.{part}.bias"] = known[part][:1]
    return extents


def order(name: str) -> tuple[int, str]:
    """Embedding, blocks, head: the order in which they are read when the model runs."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]), name) if match else (-1 if name.startswith("token_embd") else _MAX_LAYERS, name)


def _planned(name: str, stored: StoredTensor, family: Family, shape: Shape, float_type: FloatType) -> PlannedTensor:
    type_name = "F32" if len(stored.shape) == 1 else float_type
    permute = re.search(r"attn_([qk])\.", name) if family.permute else None

    def chunks() -> Iterator[bytes]:
        if permute:
            n_heads = shape.n_heads if permute[1] == "q" else shape.n_kv_heads
            yield _converted(
                paired(_items(stored.read(), stored), n_heads, stored.shape[0]), stored, type_name, plus=0.0
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


def paired(items: NDArray[Any], n_heads: int, n_rows: int) -> NDArray[Any]:
    """Rows of each head from (first half, second half) to neighbours: row 0, row d/2, row 1, row d/2 + 1, ..."""
    halves = items.reshape(n_heads, 2, n_rows // n_heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1)


def _bf16_to_f16() -> NDArray[np.uint16]:
    """The half-precision bits of each of the 65,536 bfloat16 numbers."""
    with np.errstate(over="ignore"):
        return (np.arange(2**16, dtype="<u4") << 16).view("<f4").astype("<f2").view("<u2")


_BF16_TO_F16 = _bf16_to_f16()


# The bits of an exponent that stands for infinity or NaN.
_NOT_FINITE = {"F16": 0x7C00, "BF16": 0x7F80}


def _converted(items: NDArray[Any], stored: StoredTensor, type_name: str, *, plus: float) -> bytes:
    """Numbers of the stored type as bytes of `type_name`, each with `plus` added."""
    _refuse_non_finite(items, stored)
    if stored.type == type_name and not plus:
        return bytes(items.data)
    if stored.type == "BF16" and type_name == "F16" and not plus:
        return _in_range(_BF16_TO_F16[items], stored)
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
        return _in_range(floats.astype("<f2").view("<u2"), stored)


def as_type(floats: NDArray[np.float32], stored: StoredTensor, type_name: str) -> bytes:
    """Float32 numbers of a tensor as bytes of `type_name`; those that it cannot hold are refused by name."""
    return _converted(floats, replace(stored, type="F32"), type_name, plus=0.0)


def _refuse_non_finite(items: NDArray[Any], stored: StoredTensor) -> None:
    if stored.type == "F32":
        finite = bool(np.isfinite(items).all())
    else:
        exponent = _NOT_FINITE[stored.type]
        finite = not bool(((items.view("<u2") & exponent) == exponent).any())
    if not finite:
        raise UnsupportedModel(
            f"{stored.path}: {stored.name} holds NaN or infinite numbers: the checkpoint is damaged, download it again"
        )


def _in_range(halves: NDArray[np.uint16], stored: StoredTensor) -> bytes:
    """Half-precision numbers as bytes; those of a finite source that became infinite are refused."""
    if np.any((halves & 0x7FFF) == 0x7C00):
        raise UnsupportedModel(f"{stored.path}: {stored.name} holds numbers beyond F16: export with --quant BF16")
    return bytes(halves.data)


def _vector(name: str, values: list[float]) -> PlannedTensor:
    return PlannedTensor(name, (len(values),), "F32", lambda: iter([np.asarray(values, "<f4").tobytes()]))
