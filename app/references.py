"""References of a target and its drafter to files on this machine, fetched with a notice where they are not here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.app.defaults import DEFAULT_DRAFTER, DEFAULT_TARGET, MIN_SIZE_RATIO, NO_DRAFTER
from edgellm.app.listener import SILENCE, Listener
from edgellm.app.own_heads import beside, drafts_itself, is_own

if TYPE_CHECKING:
    from edgellm.export.obtain.catalogue import ModelEntry
    from edgellm.export.obtain.store import ModelFile


def resolve(reference: str, *, offline: bool = False, listener: Listener = SILENCE) -> ModelFile:
    """The file of a reference, fetched first if it must be; what is fetched is announced with size and licence.

    Raises:
        BadReference, UnknownModel, NotHere, PullError: as `store.pull`.
    """
    from edgellm.export.obtain import store

    return store.pull(reference, offline=offline, progress=listener.progress())


def resolve_pair(
    model: str | None,
    draft: str | None,
    *,
    offline: bool = False,
    n_parallel: int = 1,
    listener: Listener = SILENCE,
) -> tuple[ModelFile, ModelFile | None]:
    """The files of a target and of its drafter; None for a drafter also where `drafts_itself` holds for the target.

    Args:
        model: None for the default target.
        draft: "none" for no drafter, "mtp" for the head inside the target's file; None for that head, an assistant that
            lies beside the file, or the drafter that the catalogue recommends for this target (one that is here before
            one that is not), which is done without, and said so, where it cannot be had.
        n_parallel: conversations at once.

    Raises:
        BadReference, UnknownModel, NotHere, PullError: as `store.pull`, for what was asked for by name.
    """
    from edgellm.export.obtain import store

    if model is None and draft is None:
        _announce_default_pair(listener)
    target = resolve(model or DEFAULT_TARGET, offline=offline, listener=listener)
    if drafts_itself(target, draft, n_parallel=n_parallel) or is_own(draft):
        return target, None
    if draft is not None:
        is_none = draft.casefold() == NO_DRAFTER
        return target, None if is_none else resolve(draft, offline=offline, listener=listener)
    if n_parallel == 1 and (assistant := beside(target)) is not None:
        return target, resolve(str(assistant), offline=offline, listener=listener)
    chosen = recommended(target)
    if chosen is None:
        return target, None
    if model is not None and not store.locate(chosen.name):
        listener.note(f"{target.name} is drafted by {_described(chosen)}, fetched once; `--draft none` does without")
    try:
        return target, resolve(chosen.name, offline=offline, listener=listener)
    except (store.NotHere, store.PullError) as error:
        listener.warning(f"no drafter, so answers come slower than they could: {error}")
        return target, None


def recommended(target: ModelFile) -> ModelEntry | None:
    """The best drafter that is here, else the best; None where none is small enough to pay."""
    from edgellm.export.obtain import store
    from edgellm.export.obtain.catalogue import find

    entry = entry_of(target)
    drafters = [find(name) for name in (entry.drafters if entry else (DEFAULT_DRAFTER,))]
    small = [
        drafter
        for drafter in drafters
        if drafter.files and (drafter.files[0].n_bytes or 0) * MIN_SIZE_RATIO <= target.n_bytes
    ]
    return next((drafter for drafter in small if store.locate(drafter.name)), small[0] if small else None)


def _announce_default_pair(listener: Listener) -> None:
    from edgellm.export.obtain import store
    from edgellm.export.obtain.catalogue import find

    missing = [entry for entry in map(find, (DEFAULT_TARGET, DEFAULT_DRAFTER)) if not store.locate(entry.name)]
    if missing:
        named = " and ".join(map(_described, missing))
        listener.note(f"No model is named, so the default pair is fetched once: {named}.")


def entry_of(model: ModelFile) -> ModelEntry | None:
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
