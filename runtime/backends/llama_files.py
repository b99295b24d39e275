"""What is read of a GGUF file, and refused, before llama.cpp sees it: much of that would end the process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgellm.memory.adapter import AdapterError, Lora, check_fits, read_adapter, refuse_adapter
from edgellm.memory.architectures import ENCODER_DECODER
from edgellm.memory.cache_layers import check_shared_cache
from edgellm.memory.gguf import GgufError, GgufHeader
from edgellm.memory.hparams import MAX_LAYERS, UnknownShape, of_header
from edgellm.memory.split import read_model
from edgellm.runtime.backends.base import LoadError

MAX_BUCKETS = 4096  # of distances between tokens; T5 has 32


def checked_header(path: Path) -> GgufHeader:
    """The header, with what would make the engine end the process instead of refusing the file."""
    try:
        header = read_model(path)
        words = [word for word in header.array("tokenizer.ggml.tokens") if word]
    except GgufError as error:
        raise LoadError(str(error)) from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    if len(set(words)) < len(words):
        raise LoadError(f"{path} has the same token twice in its vocabulary: the file is damaged, pull it again")
    n_layers = header.hparam("block_count", 1)
    if not isinstance(n_layers, int) or not 0 < n_layers <= MAX_LAYERS:
        raise LoadError(f"{path} claims {n_layers} layers: the file is damaged, pull it again")
    try:
        check_shared_cache(of_header(header), header.architecture)
    except UnknownShape as error:
        raise LoadError(str(error)) from error
    return header


def has_both_halves(header: GgufHeader) -> bool:
    """Whether an encoder reads the prompt, and a decoder writes what it attends to."""
    return header.architecture in ENCODER_DECODER


def check_encoder(header: GgufHeader, loras: Sequence[Lora]) -> None:
    """Numbers of a model with both halves that the engine takes as they are, and ends the process over."""
    path, damaged = header.path, "the file is damaged, pull it again"
    if loras:
        raise LoadError(
            f"{path.name} ({header.architecture}) has an encoder: no adapter is applied to such models here"
        )
    n_layers = header.hparam("block_count", 0)
    n_decoder = header.hparam("decoder_block_count", n_layers)
    if not isinstance(n_decoder, int) or not 0 < n_decoder <= MAX_LAYERS:
        raise LoadError(f"{path} claims {n_decoder} layers of its decoder: {damaged}")
    if n_decoder > n_layers:
        raise LoadError(
            f"{path.name} has {n_decoder} layers in its decoder and {n_layers} in its encoder, and llama.cpp keeps a "
            "cache for no more than those of the encoder: take a model whose halves are alike"
        )
    n_heads, n_buckets = header.hparam("attention.head_count", 0), header.hparam("attention.relative_buckets_count", 0)
    if not isinstance(n_buckets, int) or not 4 <= n_buckets <= MAX_BUCKETS or n_buckets % 4:
        raise LoadError(f"{path} claims {n_buckets} kinds of distances between tokens: {damaged}")
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    for name in ("enc.blk.0.attn_rel_b.weight", "dec.blk.0.attn_rel_b.weight"):
        if header.tensors and shapes.get(name) != (n_heads, n_buckets):
            raise LoadError(f"{path} has no {name} of {n_heads} x {n_buckets} numbers: {damaged}")


def check_adapters(model: GgufHeader, loras: Sequence[Lora]) -> None:
    """By their headers: what the engine would refuse without a reason, leave out or end the process for."""
    try:
        refuse_adapter(model)
        for lora in loras:
            check_fits(read_adapter(lora.path), model)
    except (AdapterError, GgufError) as error:
        raise LoadError(str(error)) from error
    except OSError as error:
        raise LoadError(f"{error.filename} cannot be read: {error.strerror}") from error
