"""What is read of a GGUF file, and refused, before llama.cpp sees it: much of that would end the process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgellm.memory.adapter import AdapterError, Lora, check_fits, read_adapter, refuse_adapter
from edgellm.memory.cache_layers import check_shared_cache
from edgellm.memory.gguf import GgufError, GgufHeader
from edgellm.memory.hparams import MAX_LAYERS, UnknownShape, of_header
from edgellm.memory.split import read_model
from edgellm.runtime.backends.base import LoadError


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
