"""From a Hub folder to an unquantised GGUF file, tensor by tensor, without torch.

A family (`read.families`) is a table; `metadata` and `tensors` make a GGUF file's two halves of it. Everything is
copied in pieces of a few megabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgellm.export.convert import encoder_decoder
from edgellm.export.convert.dtypes import FloatType
from edgellm.export.convert.gguf_writer import PlannedTensor, write_gguf
from edgellm.export.convert.metadata import ModelSettings, Shape, damage_told, entries_of
from edgellm.export.convert.tensors import Adapt, tensors_of, vector
from edgellm.export.read.facts import (
    UnsupportedModel,
    attention_window,
    has_encoder,
    read_config,
    read_document,
    read_encoder_config,
    remarks,
)
from edgellm.export.read.rope import read_rope, rope_factors
from edgellm.export.read.tokenizer import read_vocabulary
from edgellm.export.read.unigram import read_unigram


def to_gguf(
    folder: Path,
    path: Path,
    *,
    float_type: FloatType = "F16",
    name: str | None = None,
    adapt: Adapt | None = None,
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
    if has_encoder(read_document(folder)):
        if adapt is not None:
            raise UnsupportedModel(f"{folder} has an encoder: no adapter is merged into such models here")
        entries, tensors = _of_halves(folder, float_type, name or folder.name)
    else:
        plan = _plan(folder, float_type, name or folder.name)
        entries = plan.entries
        tensors = [vector(*item) for item in plan.factors.items()] + tensors_of(plan.settings, float_type, adapt)
    n_done = 0

    def count(_: PlannedTensor) -> None:
        nonlocal n_done
        n_done += 1
        if on_tensor is not None:
            on_tensor(n_done, len(tensors))

    write_gguf(path, entries, tensors, on_tensor=count)


def _of_halves(folder: Path, float_type: FloatType, name: str) -> tuple[dict[str, bytes], list[PlannedTensor]]:
    """Metadata and tensors of a model with an encoder and a decoder."""
    with damage_told(folder):
        config = read_encoder_config(folder)
        sizes = encoder_decoder.Sizes.of(folder, config)
        vocabulary = read_unigram(folder, sizes.n_vocab)
        entries = encoder_decoder.entries_of(folder, config, sizes, vocabulary, float_type, name)
    return entries, encoder_decoder.tensors_of(folder, config, sizes, float_type)


def examine(folder: Path, *, has_tokenizer: bool = True) -> tuple[str, ...]:
    """What the user of the exported model should know, in sentences: all that can be said before weights are there.

    Args:
        has_tokenizer: its files are there too; without them config.json alone is looked at.

    Raises:
        UnsupportedModel, TokenizerError: as `to_gguf` would.
    """
    if has_encoder(read_document(folder)):
        return _examine_halves(folder, has_tokenizer)
    if has_tokenizer:
        return _plan(folder, "F16", folder.name).remarks
    with damage_told(folder):
        family, config = read_config(folder)
        rope = read_rope(folder, family, config)
        rope_factors(folder, rope)
        window = attention_window(folder, family, config)
        return tuple(remarks(family, config, window, rope["rope_type"]))


def _examine_halves(folder: Path, has_tokenizer: bool) -> tuple[str, ...]:
    with damage_told(folder):
        config = read_encoder_config(folder)
        sizes = encoder_decoder.Sizes.of(folder, config)
        return read_unigram(folder, sizes.n_vocab).remarks if has_tokenizer else ()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a folder's configuration and tokenizer make of it."""

    settings: ModelSettings
    entries: dict[str, bytes]
    factors: dict[str, list[float]]  # tensors of the rotary embedding
    remarks: tuple[str, ...]


def _plan(folder: Path, float_type: FloatType, name: str) -> _Plan:
    with damage_told(folder):
        family, config = read_config(folder)
        settings = ModelSettings(folder, family, config, Shape.of(config))
        rope = read_rope(folder, family, config)
        vocabulary = read_vocabulary(folder, settings.shape.n_vocab)
        window = attention_window(folder, family, config)
        entries = entries_of(settings, rope, vocabulary, float_type=float_type, name=name, window=window)
        told = (*remarks(family, config, window, rope["rope_type"]), *vocabulary.remarks)
        return _Plan(settings, entries, rope_factors(folder, rope), told)
