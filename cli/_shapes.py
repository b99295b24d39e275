"""References to shapes: from a file that is here, a checkpoint's config.json, or the catalogue's counts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.cli._models import DEFAULT_DRAFTER, NO_DRAFTER

if TYPE_CHECKING:
    from edgellm.export.catalogue import ModelEntry
    from edgellm.memory.shape import ModelShape

SMALLER = ("Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")  # what a target may be exported to, most exact first


def shape_of(reference: str, *, ask: bool = False, offline: bool = False) -> ModelShape:
    """The shape of a model, without fetching any of its weights.

    Args:
        ask: llama.cpp will size it, so that an architecture need not be known here.
        offline: ask no server for the header of a model that is not here.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing, or for several things.
        UnknownShape: nothing here tells the sizes.
        GgufError: a damaged file.
    """
    from edgellm.export import naming, store
    from edgellm.memory.gguf import read_header
    from edgellm.memory.onnx_plan import read_shape
    from edgellm.memory.shape import UnknownShape, from_header

    folder = Path(reference).expanduser()
    if (folder / "model.onnx").is_file():
        return read_shape(folder)
    if (folder / "config.json").is_file():
        return _of_checkpoint(folder)
    if model := store.locate(reference):
        return from_header(read_header(model.path), model.name, ask=ask)
    parsed = naming.parse(reference)
    if parsed.repo:
        why = "--offline"
        if not offline:
            from edgellm.export.download import SourceError
            from edgellm.export.preview import shape_on_hub

            try:
                return shape_on_hub(parsed.repo, parsed.quant)
            except SourceError as error:
                why = str(error)
        raise UnknownShape(
            f"{parsed.repo} is not on this machine and its header cannot be read ({why}): plan from a model of the "
            f"catalogue (`edgellm list --all`), or from a file, once `edgellm pull {reference}` could fetch it"
        )
    from edgellm.export.catalogue import find

    return of_entry(find(parsed.name or ""), parsed.quant)


def of_entry(entry: ModelEntry, quant: str | None = None) -> ModelShape:
    """A model of the catalogue, at one of its files' quantisations or at another by its average.

    Raises:
        UnknownShape: the catalogue has no counts for it.
    """
    from edgellm.memory.shape import UnknownShape, from_facts

    if entry.facts is None:
        raise UnknownShape(f"the catalogue has no sizes for {entry.name}: run `edgellm pull {entry.name}` first")
    files = {file.quant: file for file in entry.files}
    default = entry.files[0].quant if entry.files else "Q4_K_M"
    chosen = (quant or default).upper()
    file = files.get(chosen)
    # A file is its weights and a header, which holds the vocabulary: about 36 bytes a token.
    weight_bytes = file.n_bytes - 36 * entry.facts.n_vocab if file and file.n_bytes else None
    return from_facts(entry.name, chosen, weight_bytes=weight_bytes, **asdict(entry.facts))


def smaller_than(shape: ModelShape) -> list[ModelShape]:
    """The same model at smaller quantisations, where the catalogue knows its counts."""
    from edgellm.export.catalogue import load_catalogue

    entry = next((entry for entry in load_catalogue() if entry.name == shape.name and entry.facts), None)
    if entry is None:
        return []
    found = [of_entry(entry, quant) for quant in SMALLER]
    return [candidate for candidate in found if candidate.weight_bytes < shape.weight_bytes]


def drafter_for(target: ModelShape, draft: str | None, *, offline: bool = False) -> ModelShape | None:
    """The drafter asked for, or the one the catalogue recommends; None for none, or where none is small enough."""
    if draft is not None:
        return None if draft.casefold() == NO_DRAFTER else shape_of(draft, offline=offline)
    from edgellm.export.catalogue import find, load_catalogue

    entry = next((entry for entry in load_catalogue() if entry.name == target.name), None)
    for name in entry.drafters if entry else (DEFAULT_DRAFTER,):
        if find(name).facts is None:
            continue
        drafter = shape_of(name)
        if 2 * drafter.bytes_read_per_token <= target.bytes_read_per_token:
            return drafter
    return None


def path_of(reference: str) -> Path | None:
    """The file, if it is here."""
    from edgellm.export import store

    model = store.locate(reference)
    return model.path if model else None


def _of_checkpoint(folder: Path) -> ModelShape:
    from edgellm.memory.shape import from_config

    return from_config(_config(folder), "Q4_K_M", folder.name)


def _config(folder: Path) -> dict[str, Any]:
    import json

    from edgellm.memory.shape import UnknownShape

    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnknownShape(f"{path} is missing: copy it there from the model's repository") from error
    except ValueError as error:
        raise UnknownShape(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise UnknownShape(f"{path} is no JSON object")
    return config
