"""What drafters have learnt on this machine, and what the catalogue knows of them: for `show` and `cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgellm.app.defaults import adapted_folder
from edgellm.app.drafter_adapters import DrafterAdapter, readable
from edgellm.app.listener import SILENCE, Listener
from edgellm.app.references import entry_of

if TYPE_CHECKING:
    from edgellm.export.obtain.catalogue import ModelEntry
    from edgellm.export.obtain.store import ModelFile
    from edgellm.runtime.distillation.adopted import Adopted, AdoptedDraft, TakenBack


def adapters_for(target: ModelFile, listener: Listener = SILENCE) -> list[DrafterAdapter]:
    """All adapters for a target that is here: those that were learnt here, and the catalogue's."""
    entry = entry_of(target)
    found = [
        DrafterAdapter(one.adapter, "here", one.draft) for one in _kept_for(target, listener) if one.adapter is not None
    ]
    return found + (adapters_of(entry, listener) if entry is not None else [])


def adapters_of(entry: ModelEntry, listener: Listener = SILENCE) -> list[DrafterAdapter]:
    """The catalogue's for a target."""
    files = {name: readable(path, listener) for name, path in entry.adapters.items()}
    return [DrafterAdapter(file, "project", name) for name, file in files.items() if file is not None]


def adapters_taken_back(target: ModelFile) -> list[str]:
    """What drafters had learnt of a target and were slower with, a sentence each."""
    return [_sentence(one, given_up) for one in _kept_for(target) for given_up in one.taken_back]


def kept(listener: Listener = SILENCE) -> list[dict[str, Any]]:
    """What was adopted here and what was taken back, by target and drafter, for machines. Sizes in bytes."""
    return [_described(one) for one in _adopted(listener).listing()]


def clear() -> int:
    """Delete all of it; how many adapters that were."""
    return _adopted(SILENCE).clear()


def _described(one: AdoptedDraft) -> dict[str, Any]:
    paths = [one.adapter.path if one.adapter is not None else None, one.path]
    return {
        "target": one.target,
        "target_key": one.target_key,
        "draft": one.draft,
        "draft_sha256": one.draft_sha256,
        "date": one.date or None,
        "adapter": DrafterAdapter(one.adapter, "here", one.draft).to_json() if one.adapter is not None else None,
        "record": dict(one.adapter.record) if one.adapter is not None else None,
        "bytes": sum(path.stat().st_size for path in paths if path is not None and path.is_file()),
        "taken_back": [
            {"note": _sentence(one, it), "sha256": it.sha256, "why": it.why, "date": it.date} for it in one.taken_back
        ],
    }


def _sentence(one: AdoptedDraft, given_up: TakenBack) -> str:
    return f"an adapter of {one.draft or 'a drafter'} was taken back on {given_up.date}: {given_up.why}"


def _kept_for(target: ModelFile, listener: Listener = SILENCE) -> list[AdoptedDraft]:
    from edgellm.runtime.distillation.adopted import target_key

    key = target_key(target.path)
    return [one for one in _adopted(listener).listing() if one.target_key == key]


def _adopted(listener: Listener) -> Adopted:
    from edgellm.runtime.distillation.adopted import Adopted

    return Adopted(adapted_folder(), listener.warning)
