"""References of a target and its drafter to files on this machine, fetched with a notice where they are not here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.export.obtain.catalogue import ModelEntry
    from edgellm.export.obtain.store import ModelFile
    from edgellm.memory.context import KvType

DEFAULT_TARGET = "qwen2.5-coder-1.5b-instruct"
DEFAULT_DRAFTER = "smollm2-135m-instruct"  # another vocabulary than any target's but its own family's
NO_DRAFTER = "none"
MIN_RATIO = 2  # a target must be this many times its drafter's bytes; less could never pay


def drafting_options(
    n: int | None, *, learn: bool = True, assume_cost: float | None = None, merged_probs: bool = False
) -> dict[str, Any]:
    """Options of an engine that drafts what pays, or `n` tokens a round, and keeps what it learns."""
    from edgellm.memory.context import N_DRAFT_MOST
    from edgellm.memory.folders import home

    return {
        "n_draft": N_DRAFT_MOST if n is None else n,
        "fixed": n is not None,
        "learn": "kept" if learn else "off",
        "learned": home() / "learned",
        "assume_cost": assume_cost,
        "merged_probs": merged_probs,
        "spelling": "omnidraft" if merged_probs else "merged",
    }


def resolve(reference: str, *, offline: bool = False) -> ModelFile:
    """The file of a reference, fetched first if it must be; what is fetched is announced with size and licence.

    Raises:
        BadReference, UnknownModel, NotHere, PullError: as `store.pull`.
    """
    from edgellm.cli._progress import DownloadBar
    from edgellm.export.obtain import store

    return store.pull(reference, offline=offline, progress=DownloadBar())


def resolve_pair(model: str | None, draft: str | None, *, offline: bool = False) -> tuple[ModelFile, ModelFile | None]:
    """The files of a target and of its drafter.

    Args:
        model: None for the default target.
        draft: "none" for no drafter; None for the one that the catalogue recommends for this target (one that is here
            before one that is not), which is done without, and said so, where it cannot be had.

    Raises:
        BadReference, UnknownModel, NotHere, PullError: as `store.pull`, for what was asked for by name.
    """
    from edgellm.export.obtain import store

    if model is None and draft is None:
        _announce_default_pair()
    target = resolve(model or DEFAULT_TARGET, offline=offline)
    if draft is not None:
        return target, None if draft.casefold() == NO_DRAFTER else resolve(draft, offline=offline)
    chosen = _recommended(target)
    if chosen is None:
        return target, None
    if model is not None and not store.locate(chosen.name):
        out.note(f"{target.name} is drafted by {_described(chosen)}, fetched once; `--draft none` does without")
    try:
        return target, resolve(chosen.name, offline=offline)
    except (store.NotHere, store.PullError) as error:
        out.warning(f"no drafter, so answers come slower than they could: {error}")
        return target, None


def asked_bytes(size: str | None) -> int | None:
    """Memory as an option gives it; answers are then in its units (GB or GiB).

    Raises:
        BadSize: it is no size.
    """
    from edgellm.memory import units

    if size is None:
        return None
    units.answer_in(decimal=units.is_decimal(size))
    return units.parse_memory(size)


def check_kv(word: str) -> KvType:
    """A type of the KV cache.

    Raises:
        typer.BadParameter: there is no such type; the message lists them.
    """
    from edgellm.memory.context import KV_BLOCKS

    for known in KV_BLOCKS:
        if word.casefold() == known:
            return known
    raise typer.BadParameter(f"{word!r} is no type of the KV cache: take one of {', '.join(KV_BLOCKS)}")


def _announce_default_pair() -> None:
    from edgellm.export.obtain import store
    from edgellm.export.obtain.catalogue import find

    missing = [entry for entry in map(find, (DEFAULT_TARGET, DEFAULT_DRAFTER)) if not store.locate(entry.name)]
    if missing:
        out.note(f"No model is named, so the default pair is fetched once: {' and '.join(map(_described, missing))}.")


def _recommended(target: ModelFile) -> ModelEntry | None:
    """The best drafter that is here, else the best; None where none is small enough to pay."""
    from edgellm.export.obtain import store
    from edgellm.export.obtain.catalogue import find

    entry = _entry_of(target)
    drafters = [find(name) for name in (entry.drafters if entry else (DEFAULT_DRAFTER,))]
    small = [
        drafter
        for drafter in drafters
        if drafter.files and (drafter.files[0].n_bytes or 0) * MIN_RATIO <= target.n_bytes
    ]
    return next((drafter for drafter in small if store.locate(drafter.name)), small[0] if small else None)


def _entry_of(model: ModelFile) -> ModelEntry | None:
    """The catalogue's entry, by name or, for a file from elsewhere, by the name of the file."""
    from edgellm.export.obtain.catalogue import HfSource, load_catalogue

    for entry in load_catalogue():
        names = {file.filename for file in entry.files}
        names |= {source.filename for file in entry.files for source in file.sources if isinstance(source, HfSource)}
        if model.name == entry.name or model.path.name in names:
            return entry
    return None


def _described(entry: ModelEntry) -> str:
    from edgellm.memory.units import format_bytes

    size = format_bytes(entry.files[0].n_bytes) if entry.files[0].n_bytes else "size unknown"
    return f"{entry.name} ({size}, licence {entry.licence})"
