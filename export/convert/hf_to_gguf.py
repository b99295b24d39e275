"""From a Hub folder to an unquantised GGUF file, tensor by tensor, without torch.

A family (`read.families`) is a table; `metadata` and `tensors` make a GGUF file's two halves of it. Everything is
copied in pieces of a few megabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgellm.export.convert.dtypes import FloatType
from edgellm.export.convert.gguf_writer import PlannedTensor, write_gguf
from edgellm.export.convert.metadata import ModelSettings, Shape, damage_told, entries_of
from edgellm.export.convert.tensors import Adapt, tensors_of, vector
from edgellm.export.read.facts import attention_window, read_config, remarks
from edgellm.export.read.rope import read_rope, rope_factors
from edgellm.export.read.tokenizer import read_vocabulary


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
    plan = _plan(folder, float_type, name or folder.name)
    tensors = [vector(*item) for item in plan.factors.items()] + tensors_of(plan.settings, float_type, adapt)
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
