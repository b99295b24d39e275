"""Which drafter file really runs: as it was pulled, or with an adapter that was learnt here or comes with edgellm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgellm.app.defaults import NO_ADAPTER, adapted_folder
from edgellm.app.listener import SILENCE, Listener
from edgellm.app.references import entry_of

if TYPE_CHECKING:
    from edgellm.app.shapes import Known
    from edgellm.export.obtain.store import ModelFile
    from edgellm.memory.adapter import Lora
    from edgellm.memory.draft_adapter import AdapterFile
    from edgellm.runtime.distillation.adopted import Adopted

Origin = Literal["asked", "here", "project"]


@dataclass(frozen=True, slots=True)
class DrafterAdapter:
    """An adapter of a drafter, and where it is from."""

    file: AdapterFile
    origin: Origin  # named by --draft-adapter, learnt on this machine, or shipped
    draft: str  # the drafter's name

    def __str__(self) -> str:
        """For people: "… with the adapter for … (learnt here on 12,345 tokens, 2.76 -> 3.04 tokens a pass)"."""
        file, learnt = self.file, {"here": "learnt here", "project": "made by the project"}
        facts = learnt.get(self.origin, f"{file.path.name}, learnt")
        facts += f" on {file.n_tokens:,} tokens" if file.n_tokens else ""
        if (sides := file.tokens_per_pass) is not None:
            facts += f", {sides[0]:.2f} -> {sides[1]:.2f} tokens a pass"
        whose = f" for {file.target}" if file.target else ""
        return f"{self.draft} with the adapter{whose} ({facts})"

    def to_json(self) -> dict[str, Any]:
        """As reports name it."""
        file = self.file
        before, after = file.tokens_per_pass or (None, None)
        return {
            "note": str(self),
            "draft": self.draft,
            "path": str(file.path),
            "sha256": file.sha256,
            "origin": self.origin,
            "target": file.target,
            "n_tokens": file.n_tokens,
            "tokens_per_pass": {"before": before, "after": after},
        }


@dataclass(frozen=True, slots=True)
class ChosenDraft:
    """The file that drafts."""

    path: Path
    adapter: DrafterAdapter | None = None

    @property
    def note(self) -> str:
        """On its adapter; "" without one."""
        return str(self.adapter) if self.adapter is not None else ""

    @property
    def fingerprint(self) -> str | None:
        """By which what is learnt of its drafts is kept apart."""
        return self.adapter.file.sha256 if self.adapter is not None else None


def adapter_json(adapter: DrafterAdapter | None) -> dict[str, Any] | None:
    """As every report names the adapter of its drafter."""
    return adapter.to_json() if adapter is not None else None


def choose(
    target: ModelFile,
    draft: ModelFile,
    asked: str | None = None,
    *,
    loras: Sequence[Lora] = (),
    listener: Listener = SILENCE,
) -> ChosenDraft:
    """The file that drafts for a target, with its adapter merged: the first time it takes a second or two.

    Args:
        asked: an adapter's file, or "none"; None for the one that was learnt here, or else the catalogue's.
        loras: adapters of the target.
        listener: is told of the adapter as a detail; what is damaged or cannot be written, as a warning, unless it was
            asked for.

    Raises:
        DraftAdapterError: the adapter that is asked for is none, damaged, or for another drafter.
        OSError: it cannot be read, or not be merged: the disk.
    """
    from edgellm.memory.draft_adapter import DraftAdapterError
    from edgellm.memory.gguf import GgufError

    adapter = pick(target, draft, asked, loras=loras, listener=listener)
    if adapter is None:
        return ChosenDraft(draft.path)
    try:
        path = file_with(adapter, draft.path, listener)
    except (DraftAdapterError, GgufError, OSError) as error:
        if adapter.origin == "asked":
            raise
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        listener.warning(f"{draft.name} drafts without its adapter: {why}")
        return ChosenDraft(draft.path)
    chosen = ChosenDraft(path, adapter)
    listener.detail(chosen.note)
    return chosen


def file_with(adapter: DrafterAdapter, base: Path, listener: Listener = SILENCE) -> Path:
    """The file of a drafter with an adapter merged, made now if it is not there.

    Raises:
        DraftAdapterError, GgufError: the two do not fit, or one is damaged.
        OSError: the disk.
    """
    adopted = _adopted(listener)
    if adopted.merged.path_of(adapter.file, base).exists():
        return adopted.with_adapter(adapter.file, base)
    with listener.working(f"merging the adapter of {adapter.draft} …"):
        return adopted.with_adapter(adapter.file, base)


def pick(
    target: ModelFile,
    draft: ModelFile,
    asked: str | None = None,
    *,
    loras: Sequence[Lora] = (),
    listener: Listener = SILENCE,
) -> DrafterAdapter | None:
    """The adapter that `choose` merges; nothing is written. Arguments and failures are those of `choose`."""
    if asked is not None:
        return None if asked.casefold() == NO_ADAPTER else DrafterAdapter(_asked(asked, draft), "asked", draft.name)
    if draft.path.is_dir():  # ONNX
        return None
    here = _learnt_here(target, draft, loras, listener)
    return here if here is not None else _shipped(target, draft, loras, listener)


def planned(
    target: Known,
    draft: Known,
    asked: str | None = None,
    *,
    loras: Sequence[Lora] = (),
    listener: Listener = SILENCE,
) -> DrafterAdapter | None:
    """The adapter of a pair that need not be here: then it is the catalogue's, if the drafter will be its file.

    Arguments and failures are those of `choose`.
    """
    from edgellm.export.obtain import store
    from edgellm.export.obtain.catalogue import load_catalogue
    from edgellm.memory.draft_adapter import AdapterFile

    here = [store.locate(known.reference) if known.path is not None else None for known in (target, draft)]
    if here[0] is not None and here[1] is not None:
        return pick(here[0], here[1], asked, loras=loras, listener=listener)
    name = draft.shape.name
    if asked is not None:
        is_none = asked.casefold() == NO_ADAPTER
        return None if is_none else DrafterAdapter(AdapterFile.read(Path(asked).expanduser()), "asked", name)
    entries = {entry.name: entry for entry in load_catalogue()}
    if target.shape.name not in entries or name not in entries:
        return None
    path = entries[target.shape.name].adapters.get(name)
    file = readable(path, listener) if path is not None else None
    offered = {one.sha256 for one in entries[name].files if one.quant == draft.shape.quantisation}
    return DrafterAdapter(file, "project", name) if file is not None and file.base in offered else None


def take_back(target: Path, adapter: DrafterAdapter, why: str, *, loras: Sequence[Lora] = ()) -> None:
    """Do not use an adapter with this target any more; `why`, a sentence, is told where adapters are shown.

    Raises:
        OSError: the disk, or another process.
    """
    from edgellm.runtime.distillation.adopted import target_key

    file = adapter.file
    _adopted(SILENCE).take_back(target_key(target, loras), file.base, why, adapter_sha256=file.sha256)


def _adopted(listener: Listener) -> Adopted:
    from edgellm.runtime.distillation.adopted import Adopted

    return Adopted(adapted_folder(), listener.warning)


def _asked(asked: str, draft: ModelFile) -> AdapterFile:
    from edgellm.memory.draft_adapter import AdapterFile, DraftAdapterError

    path = Path(asked).expanduser()
    if not path.is_file():
        raise DraftAdapterError(f"there is no adapter {asked}: give the file of one, or `none`")
    if draft.path.is_dir():
        raise DraftAdapterError(f"{draft.name} is no GGUF file, and an adapter changes nothing else: leave it out")
    file = AdapterFile.read(path.resolve())
    if file.base != _sha256(draft):
        whose = f", for {named}" if (named := file.record.get("drafter")) else ""
        raise DraftAdapterError(f"{asked} was made for another file than {draft.path}{whose}: draft with that one")
    return file


def _learnt_here(
    target: ModelFile, draft: ModelFile, loras: Sequence[Lora], listener: Listener
) -> DrafterAdapter | None:
    from edgellm.runtime.distillation.adopted import target_key

    adopted = _adopted(listener)
    if not adopted.folder.is_dir():
        return None
    key = target_key(target.path, loras)
    if draft.n_bytes not in adopted.draft_sizes(key):
        return None
    found = adopted.find(key, _sha256(draft))
    if found is not None and found.adapter is not None:
        return DrafterAdapter(found.adapter, "here", draft.name)
    for given_up in adopted.taken_back(key, _sha256(draft))[-1:]:
        listener.detail(f"an adapter of {draft.name} was taken back on {given_up.date}: {given_up.why}")
    return None


def _shipped(target: ModelFile, draft: ModelFile, loras: Sequence[Lora], listener: Listener) -> DrafterAdapter | None:
    from edgellm.runtime.distillation.adopted import target_key

    entry, drafter = entry_of(target), entry_of(draft)
    path = entry.adapters.get(drafter.name) if entry is not None and drafter is not None else None
    if path is None:
        return None
    file = readable(path, listener)
    if file is None:
        return None
    if file.base != _sha256(draft):
        listener.detail(f"{path.name} is not used: it was made for another file of {draft.name} than the one here")
        return None
    for given_up in _adopted(listener).taken_back(target_key(target.path, loras), file.base):
        if given_up.sha256 == file.sha256:
            listener.detail(f"{path.name} is not used: it was taken back on {given_up.date}: {given_up.why}")
            return None
    return DrafterAdapter(file, "project", draft.name)


def readable(path: Path, listener: Listener) -> AdapterFile | None:
    """One of the catalogue's; None where its file is missing or damaged, which is told."""
    from edgellm.memory.draft_adapter import AdapterFile, DraftAdapterError

    try:
        return AdapterFile.read(path)
    except FileNotFoundError as error:
        listener.detail(f"the catalogue names {error.filename}, which is not there")
    except (DraftAdapterError, OSError) as error:
        listener.warning(f"an adapter of the catalogue is not used: {error}")
    return None


def _sha256(draft: ModelFile) -> str:
    from edgellm.memory.split import model_sha256

    return draft.sha256 or model_sha256(draft.path)
