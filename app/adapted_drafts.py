"""Adapters of drafters as `edgellm export` takes them: the file that each was made for is found by its hash."""

from __future__ import annotations

from pathlib import Path

from edgellm.app.export_options import BadOption
from edgellm.export.lora.adapted_drafts import AdaptedDraft
from edgellm.export.obtain import naming, store
from edgellm.export.obtain.catalogue import find, load_catalogue
from edgellm.export.obtain.download import Progress
from edgellm.export.obtain.source import ModelSource
from edgellm.export.obtain.store import ModelFile
from edgellm.memory.draft_adapter import AdapterFile
from edgellm.memory.split import model_sha256


def of_file(
    path: Path, reference: str, token: str | None = None, progress: Progress | None = None
) -> tuple[AdaptedDraft, ModelSource]:
    """An adapter with the GGUF file that `reference` stands for, which must be the very one that it was made for.

    Args:
        reference: of a file, or a name of the catalogue, whose file of that hash is taken.

    Raises:
        BadOption: it is another file, or a checkpoint.
        DraftAdapterError: the adapter is none, or damaged.
        BadReference, UnknownModel, PullError: as `store.pull`.
    """
    adapter = AdapterFile.read(path)
    model = _file_of(reference, adapter, token, progress)
    if model is None:
        raise BadOption(
            f"--adapter {path} changes one GGUF file{_of(adapter)}, which {reference} does not name: give --draft that "
            "file, or a name with its type"
        )
    if (model.sha256 or model_sha256(model.path)) != adapter.base:
        raise BadOption(f"--adapter {path} was made for another file{_of(adapter)} than {model.path}")
    source = ModelSource(model.path.stem, model.path, model.repo, model.revision, model.licence)
    return AdaptedDraft(adapter, model.path), source


def of_checkpoint(path: Path, progress: Progress | None = None) -> AdaptedDraft:
    """An adapter with the GGUF file that it was made for, whose weights go into a checkpoint.

    Raises:
        BadOption: the file is not on this machine, nor of the catalogue.
        DraftAdapterError, PullError: as `of_file`.
    """
    adapter = AdapterFile.read(path)
    model = _of_hash(adapter.base, None, progress)
    if model is None:
        raise BadOption(
            f"the GGUF file{_of(adapter)} that --adapter {path} was made for (sha256 {adapter.base[:12]}…) is not on "
            "this machine: `edgellm pull` it first"
        )
    return AdaptedDraft(adapter, model.path)


def _file_of(reference: str, adapter: AdapterFile, token: str | None, progress: Progress | None) -> ModelFile | None:
    """The GGUF file that a reference stands for; None where that is a checkpoint."""
    if Path(reference).expanduser().is_dir():
        return None
    parsed = naming.parse(reference)
    if parsed.path is not None or parsed.quant is not None:
        return store.pull(reference, progress=progress, token=token)
    return _of_hash(adapter.base, parsed.name, progress) if parsed.name is not None else None


def _of_hash(sha256: str, name: str | None, progress: Progress | None) -> ModelFile | None:
    """The model file with that hash: one that is here, or else the catalogue's; `name`: of this model alone."""
    if name is None:
        here = next((model for model in store.installed() if model.sha256 == sha256), None)
        if here is not None:
            return here
    entries = [find(name)] if name is not None else list(load_catalogue())
    offered = [f"{entry.name}:{file.quant}" for entry in entries for file in entry.files if file.sha256 == sha256]
    return store.pull(offered[0], progress=progress) if offered else None


def _of(adapter: AdapterFile) -> str:
    drafter = adapter.record.get("drafter")
    return f" of {drafter}" if isinstance(drafter, str) else ""
