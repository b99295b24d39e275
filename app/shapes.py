"""References to shapes: from a file that is here, a checkpoint's config.json, or the catalogue's counts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.app.defaults import DEFAULT_DRAFTER, MIN_SIZE_RATIO, NO_DRAFTER, BadSetting
from edgellm.memory.limits import CONFIG_JSON_MAX_BYTES

if TYPE_CHECKING:
    from edgellm.export.obtain.catalogue import ModelEntry
    from edgellm.memory.adapter import Lora
    from edgellm.memory.plan import MemoryPlan
    from edgellm.memory.shape import ModelShape

SMALLER = ("Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")  # what a target may be exported to, most exact first


@dataclass(frozen=True, slots=True)
class Known:
    """A model that a plan can be made for, and how it is had."""

    shape: ModelShape
    reference: str  # names it again, from another folder too
    path: Path | None = None  # where it lies, if it is here
    obtain: str | None = None  # how to make it, where nobody offers it ready to run
    is_open: bool = False  # nobody said which quantisation


def look_up(reference: str, *, offline: bool = False) -> Known:
    """What a reference stands for, without fetching any of its weights.

    A file that is here may be of any architecture, since llama.cpp can be asked then.

    Args:
        offline: ask no server for the header of a model that is not here.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing, or for several things.
        UnknownShape: nothing here tells the sizes.
        GgufError: a damaged file.
    """
    from edgellm.export.obtain import naming, store
    from edgellm.export.obtain.catalogue import find
    from edgellm.memory.adapter import refuse_adapter
    from edgellm.memory.draft_heads import shape_of
    from edgellm.memory.split import read_model

    folder = Path(reference).expanduser()
    if (folder / "model.onnx").is_file():
        from edgellm.memory.onnx_plan import read_shape

        return Known(read_shape(folder), str(folder.resolve()), folder)
    if (folder / "config.json").is_file():
        return _exported(_of_checkpoint(folder), str(folder.resolve()), folder.resolve().name)
    parsed = naming.parse(reference)
    if parsed.name and not is_offered(parsed.name, parsed.quant):
        return of_name(parsed.name, parsed.quant)
    if model := store.locate(reference):
        header = read_model(model.path)
        refuse_adapter(header)
        shape = shape_of(header, model.name, ask=True)
        return Known(shape, model.reference, model.path, is_open=parsed.name is not None and parsed.quant is None)
    if parsed.repo:
        return _on_the_hub(reference, parsed.repo, parsed.quant, offline=offline)
    entry = find(parsed.name or "")
    if entry.facts is None and entry.files and not offline:
        return _header_of(entry, parsed.quant)
    return of_name(entry.name, parsed.quant)


def is_offered(name: str, quant: str | None) -> bool:
    """Whether the catalogue has a file of this model at this type (None: any).

    Raises:
        UnknownModel: no model is called that.
    """
    from edgellm.export.obtain.catalogue import find

    files = find(name).files
    return any(quant is None or quant.casefold() in (file.quant.casefold(), file.filename.casefold()) for file in files)


def of_name(name: str, quant: str | None = None) -> Known:
    """A model of the catalogue that need not be here.

    Raises:
        UnknownModel: no model is called that.
        UnknownShape: the catalogue has no counts for it.
    """
    from edgellm.export.obtain.catalogue import find

    entry = find(name)
    file = next((file for file in entry.files if quant and quant.casefold() == file.filename.casefold()), None)
    shape = of_entry(entry, file.quant if file else quant)
    if is_offered(entry.name, shape.quantisation):
        return Known(shape, f"{entry.name}:{shape.quantisation}", is_open=quant is None)
    return replace(_exported(shape, entry.name, entry.name), is_open=quant is None)


def of_entry(entry: ModelEntry, quant: str | None = None) -> ModelShape:
    """A model of the catalogue, at one of its files' quantisations or at another by llama.cpp's rules.

    Raises:
        UnknownShape: the catalogue has no counts for it.
    """
    from edgellm.memory.counts import Counts, from_counts
    from edgellm.memory.shape import UnknownShape

    if entry.facts is None:
        raise UnknownShape(
            f"the catalogue has no sizes for {entry.name}: `edgellm plan {entry.name}` reads them from the Hub, "
            f"`edgellm pull {entry.name}` brings the file"
        )
    files = {file.quant: file for file in entry.files}
    default = entry.files[0].quant if entry.files else "Q4_K_M"
    chosen = (quant or default).upper()
    file = files.get(chosen)
    # A file is its weights and a header, which holds the vocabulary: about 36 bytes a token.
    weight_bytes = file.n_bytes - 36 * entry.facts.n_vocab if file and file.n_bytes else None
    return from_counts(entry.name, chosen, Counts(**asdict(entry.facts)), weight_bytes=weight_bytes)


def smaller_than(target: Known) -> list[ModelShape]:
    """The same model at smaller quantisations, where the catalogue knows its counts and none was asked for."""
    from edgellm.export.obtain.catalogue import load_catalogue
    from edgellm.memory.shape import UnknownShape

    if not target.is_open:
        return []
    shape = target.shape
    entry = next((entry for entry in load_catalogue() if entry.name == shape.name and entry.facts), None)
    if entry is None:
        return []
    found: list[ModelShape] = []
    for quant in SMALLER:
        with contextlib.suppress(UnknownShape):  # of an architecture of which a file alone tells the bytes
            found.append(of_entry(entry, quant))
    return [candidate for candidate in found if candidate.weight_bytes < shape.weight_bytes]


def drafter_for(
    target: ModelShape, draft: str | None, *, offline: bool = False, look: Callable[[str], Known] = look_up
) -> Known | None:
    """The drafter asked for, or the one the catalogue recommends; None for none, or where none is small enough.

    `look`: finds those of the catalogue; one that remembers, where many targets share them.
    """
    if draft is not None:
        return None if draft.casefold() == NO_DRAFTER else look_up(draft, offline=offline)
    from edgellm.export.obtain.catalogue import find, load_catalogue

    entry = next((entry for entry in load_catalogue() if entry.name == target.name), None)
    for name in entry.drafters if entry else (DEFAULT_DRAFTER,):
        if find(name).facts is None:
            continue
        drafter = look(name)
        if MIN_SIZE_RATIO * drafter.shape.bytes_read_per_token <= target.bytes_read_per_token:
            return drafter
    return None


def own_head(target: Known, draft: str | None, *, n_parallel: int = 1) -> Known | None:
    """The head inside a target's file that is here, where it is named as the drafter, or nothing is.

    Raises:
        BadSetting: it is named, and there is none.
        GgufError: the file is damaged.
    """
    from edgellm.app.own_heads import is_own
    from edgellm.memory.draft_heads import OWN_HEAD, head_shape, why_none
    from edgellm.memory.split import read_model

    if not (draft is None or is_own(draft)):
        return None
    is_here = target.path is not None and target.shape.onnx is None
    if is_here and target.path is not None and (n_parallel == 1 or draft is not None):
        header = read_model(target.path)
        if (why := why_none(header)) is None and n_parallel == 1:
            shape = head_shape(header, target.shape)
            return Known(shape, OWN_HEAD) if shape is not None else None
        if draft is not None:
            raise BadSetting(why or f"{target.shape.name}'s draft head drafts for one conversation at a time")
    elif draft is not None:
        raise BadSetting(f"{target.shape.name} is not on this machine, so whether it has a draft head is not known")
    return None


def with_adapters(target: Known, loras: Sequence[Lora]) -> Known:
    """The target with adapters on; they are checked against its file where that is here. One that is not at hand in
    other types keeps its own.

    Raises:
        AdapterError, GgufError: an adapter is damaged, or not for this model.
    """
    from edgellm.memory.adapter import adapted
    from edgellm.memory.split import read_model

    if not loras:
        return target
    is_here = target.path is not None and target.shape.onnx is None
    header = read_model(target.path) if is_here and target.path is not None else None
    return replace(target, shape=adapted(target.shape, loras, header), is_open=False)


def with_references(plan: MemoryPlan, target: Known, drafter: Known | None) -> MemoryPlan:
    """The plan with what finds its files again, and how to make those that nobody offers."""
    if plan.quantisation != target.shape.quantisation:
        target = of_name(target.shape.name, plan.quantisation)
    kept = drafter if plan.drafter is not None else None
    return replace(
        plan,
        target_reference=target.reference,
        target_obtain=target.obtain,
        drafter_reference=kept.reference if kept else None,
        drafter_obtain=kept.obtain if kept else None,
    )


def _exported(shape: ModelShape, source: str, name: str) -> Known:
    """A model that `edgellm export` has to make first."""
    import shlex

    path = f"{Path(source).name}-export/{name}-{shape.quantisation}.gguf"
    command = f"edgellm export {shlex.quote(source)} --quant {shape.quantisation}"
    return Known(
        shape,
        path,
        obtain=f"{name} is not offered at {shape.quantisation}: `{command}` makes {path}, which the plan then runs",
    )


def _on_the_hub(reference: str, repo: str, quant: str | None, *, offline: bool) -> Known:
    from edgellm.memory.shape import UnknownShape

    why = "--offline"
    if not offline:
        from edgellm.export.obtain.download import SourceError
        from edgellm.export.obtain.preview import shape_on_hub

        try:
            shape, is_gguf = shape_on_hub(repo, quant)
        except SourceError as error:
            why = str(error)
        else:
            if is_gguf:
                return Known(shape, f"{repo}:{quant}" if quant else repo)
            return _exported(shape, repo, repo.rpartition("/")[2])
    raise UnknownShape(
        f"{repo} is not on this machine and its header cannot be read ({why}): plan from a model of the "
        f"catalogue (`edgellm list --all`), or from a file, once `edgellm pull {reference}` could fetch it"
    )


def _header_of(entry: ModelEntry, quant: str | None) -> Known:
    """A model of which the catalogue has no counts, by the header of its file on the Hub.

    Raises:
        BadReference: it has no such file.
        UnknownShape: the Hub is out of reach, or the cache is not known.
    """
    from edgellm.export.obtain.catalogue import HfSource
    from edgellm.export.obtain.download import SourceError
    from edgellm.export.obtain.preview import shape_of
    from edgellm.export.obtain.wanted import wanted_of
    from edgellm.memory.shape import UnknownShape

    file = wanted_of(entry, quant).file
    why = "it is not on the Hub"
    for source in file.sources:
        if isinstance(source, HfSource):
            try:
                shape = shape_of(source, len(file.parts), entry.name)
            except SourceError as error:
                why = str(error)
            else:
                return Known(shape, f"{entry.name}:{file.quant}", is_open=quant is None)
    raise UnknownShape(
        f"the catalogue has no sizes for {entry.name}, and its header cannot be read ({why}): "
        f"`edgellm pull {entry.name}` brings the file"
    )


def _of_checkpoint(folder: Path) -> ModelShape:
    from edgellm.memory.counts import from_config

    return from_config(_config(folder), "Q4_K_M", folder.resolve().name)


def _config(folder: Path) -> dict[str, Any]:
    import json

    from edgellm.memory.shape import UnknownShape

    path = folder / "config.json"
    try:
        with path.open("rb") as file:
            text = file.read(CONFIG_JSON_MAX_BYTES + 1)
        if len(text) > CONFIG_JSON_MAX_BYTES:
            raise UnknownShape(f"{path} has more than {CONFIG_JSON_MAX_BYTES:,} bytes, as no configuration has")
        config = json.loads(text)
    except FileNotFoundError as error:
        raise UnknownShape(f"{path} is missing: copy it there from the model's repository") from error
    except RecursionError as error:
        raise UnknownShape(f"{path} is nested more deeply than any configuration") from error
    except ValueError as error:
        raise UnknownShape(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise UnknownShape(f"{path} is no JSON object: copy it anew from the model's repository")
    return config
