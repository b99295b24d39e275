"""`edgellm export` without its options and its talk: from a request to a folder of checked device files.

What is asked goes one of four ways (`export_options.Way`), each of which resolves its sources, looks at their
configuration before any weights are fetched, and has one of export's pipelines make the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgellm.app import adapted_drafts
from edgellm.app.converters import Converters
from edgellm.app.defaults import asked_bytes
from edgellm.app.evaluation import judge, tabulate
from edgellm.app.export_options import (
    DEFAULT_ONNX_QUANT,
    DEFAULT_QUANT,
    BadOption,
    ExportRequest,
    adapter_types,
    folder_name,
    gguf_types,
    head_type,
    layers,
    onnx_types,
    settled,
    way_of,
)
from edgellm.export import manifest, pipeline
from edgellm.export.convert import imatrix, imatrix_file
from edgellm.export.environments import EXPORTERS, Exporter, environment
from edgellm.export.lora import adapter_export, adapter_source
from edgellm.export.manifest import Manifest, ManifestError
from edgellm.export.obtain import source
from edgellm.export.obtain.download import Progress
from edgellm.export.obtain.source import ModelSource
from edgellm.export.onnx import onnx_export, onnx_facts
from edgellm.export.read.facts import IsAdapter
from edgellm.export.request import Event, Options, Request
from edgellm.export.sizing import DRAFT_QUANT, best_quant
from edgellm.memory.errors import EdgellmError
from edgellm.memory.files import sha256_of
from edgellm.memory.limits import N_CTX
from edgellm.memory.plan import MemoryPlan
from edgellm.memory.units import format_bytes


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who is told how an export goes, and who is asked."""

    on_event: Callable[[Event], None]
    progress: Progress  # of downloads; its `note` is told what is chosen
    ask: Callable[[str], bool]  # whether an exporter's environment may be installed


@dataclass(frozen=True, slots=True)
class Exported:
    """What is in a folder now."""

    manifest: Manifest
    folder: Path
    is_repeated: bool = False  # made a second time, and identical to the bit


def export(request: ExportRequest, hooks: Hooks, typed: Collection[str] | None = None) -> Exported:
    """Make the folder that is asked for, or prove that what is in it comes out the same again.

    Args:
        typed: as `settled` has it.

    Raises:
        BadOption, BadReference, UnknownModel: the request stands for nothing.
        ManifestError: an export is to be repeated and comes out otherwise.
        ExportError, UnsupportedModel, SourceError and others: from the pipelines.
    """
    way = way_of(request)
    asked = settled(request, way, typed)
    if way == "onnx":
        return _to_onnx(asked, hooks)
    if way == "adapter":
        return _adapter(asked, hooks)
    _refuse_early(asked)
    try:
        return _to_gguf(asked, hooks)
    except _FoundAdapter:
        return _adapter(settled(request, "adapter", typed), hooks)


class _FoundAdapter(EdgellmError):
    """The repository that was named as a model holds an adapter, which only its list of files shows."""


def _refuse_early(asked: ExportRequest) -> None:
    """What is misspelt, cannot be made, or is no importance matrix, before anything is fetched."""
    asked_bytes(asked.mem)
    head_type(asked.draft_head)
    layers(asked.drop_layers)
    wanted = gguf_types(asked.quant or DEFAULT_QUANT, also=("F32",))  # F32: of an adapter, as it may turn out to be
    drafts = (gguf_types(asked.draft_quant or "") or wanted) if asked.draft else ()
    imatrix.refuse_without(wanted if asked.mem is None else (), drafts, has_matrix=asked.imatrix is not None)
    if asked.imatrix is not None:
        imatrix_file.read(asked.imatrix)


def _folder(asked: ExportRequest, suffix: str = "export") -> Path:
    return asked.output or Path(f"{folder_name(asked.model)}-{suffix}")


def _to_onnx(asked: ExportRequest, hooks: Hooks) -> Exported:
    exporter = _exporter(asked.exporter)
    types, draft_types = onnx_types(asked.quant or DEFAULT_ONNX_QUANT), onnx_types(asked.draft_quant or "")
    fetch = _Fetch(partial(onnx_facts.examine, exporter=exporter), asked.token, hooks.progress)
    adapted = adapted_drafts.of_checkpoint(asked.adapter, hooks.progress) if asked.adapter else None
    target = fetch(asked.model, asked.revision)
    draft = fetch(asked.draft, None) if asked.draft else None
    folder = _folder(asked, "onnx")
    python = asked.exporter_python or environment(exporter, ask=hooks.ask)
    request = onnx_export.OnnxRequest(
        target,
        draft,
        types,
        draft_types,
        exporter,
        python,
        folder,
        verify=asked.verify,
        judge=judge,
        adapted=adapted,
    )
    return Exported(onnx_export.export_onnx(request, hooks.on_event), folder)


def _exporter(name: str) -> Exporter:
    chosen = next((known for known in EXPORTERS if known == name), None)
    if chosen is None:
        raise BadOption(f"--exporter {name}: take {' or '.join(EXPORTERS)}")
    return chosen


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Models brought to this machine, each looked at before its weights are fetched."""

    check: source.Check
    token: str | None
    progress: Progress

    def __call__(self, reference: str, revision: str | None) -> ModelSource:
        return source.resolve(reference, revision=revision, token=self.token, progress=self.progress, check=self.check)


def _to_gguf(asked: ExportRequest, hooks: Hooks) -> Exported:
    """Raises _FoundAdapter beside what `export` raises."""
    folder = _folder(asked)
    there = manifest.read(folder) if asked.locked else None
    converters = Converters(
        asked.converter or (there.converter if there else None), asked.exporter_python, hooks.progress
    )
    fetch = _Fetch(converters.check, asked.token, hooks.progress)
    merging = None
    if asked.merge:
        merging, target = _merging(asked, fetch, there)
    else:
        try:
            target = fetch(asked.model, there.revision("target") if there else asked.revision)
        except IsAdapter as error:
            raise _FoundAdapter from error
    reference, adapted = asked.draft or (there.repo("draft") if there else None), None
    draft: ModelSource | None
    if asked.adapter is not None and reference is not None:
        adapted, draft = adapted_drafts.of_file(asked.adapter, reference, asked.token, hooks.progress)
        asked = replace(asked, draft_quant=asked.draft_quant or adapted.quant)
    else:
        draft = _draft(reference, target, fetch, there)
    plan = None
    if (device_bytes := asked_bytes(asked.mem)) is not None:
        asked, plan = _sized(asked, device_bytes, target, draft, hooks.progress)
    request = Request(
        target,
        draft,
        Options.of(there.options) if there else _options(asked, converters),
        folder,
        imatrix=asked.imatrix,
        corpus=asked.trim_corpus,
        verify=False if there else asked.verify,
        converter=converters.converter,
        plan=plan.to_json() if plan else None,
        judge=None if there else judge,
        tabulate=tabulate,
        merging=merging,
        adapted=adapted,
    )
    if there is None:
        return Exported(pipeline.export(request, hooks.on_event), folder)
    return _identical(folder, there, pipeline.reproduce(request, there, hooks.on_event))


def _draft(reference: str | None, target: ModelSource, fetch: _Fetch, there: Manifest | None) -> ModelSource | None:
    if not reference:
        return None
    return target if reference == "self" else fetch(reference, there.revision("draft") if there else None)


def _sized(
    asked: ExportRequest, device_bytes: int, target: ModelSource, draft: ModelSource | None, progress: Progress
) -> tuple[ExportRequest, MemoryPlan]:
    """The request with the types that fit the device."""
    quant, plan = best_quant(target, draft, device_bytes, asked.ctx or N_CTX)
    progress.note(f"{quant} is the most exact type that fits {asked.mem} ({format_bytes(plan.required_bytes)})")
    return replace(asked, quant=quant, draft_quant=asked.draft_quant or DRAFT_QUANT), plan


def _options(asked: ExportRequest, converters: Converters) -> Options:
    return Options(
        quants=gguf_types(asked.quant or DEFAULT_QUANT),
        draft_quants=gguf_types(asked.draft_quant or ""),
        keep_vocab=asked.trim_vocab,
        trim_input=asked.trim_input,
        keep_corpus=sha256_of(asked.trim_corpus) if asked.trim_corpus else None,
        draft_head=head_type(asked.draft_head),
        drop_layers=layers(asked.drop_layers),
        imatrix=sha256_of(asked.imatrix) if asked.imatrix else None,
        draft_adapter=sha256_of(asked.adapter) if asked.adapter else None,
        converter=converters.option,
    )


def _adapter(asked: ExportRequest, hooks: Hooks) -> Exported:
    """A folder with GGUF adapters."""
    folder = _folder(asked)
    there = manifest.read(folder) if asked.locked else None
    told = (there.document.get("lora") or {}) if there else {}
    adapter = _adapter_source(asked, _commit(told.get("source")), hooks.progress)
    base = _base(asked, adapter, _commit(told.get("base")), hooks.progress)
    adapter_export.judged(adapter, base)
    types = tuple(there.options["quants"]) if there else adapter_types(asked.quant)
    request = adapter_export.AdapterRequest(adapter.complete(), base, types, folder, asked.verify)
    if there is None:
        return Exported(adapter_export.export_adapter(request, hooks.on_event), folder)
    return _identical(folder, there, adapter_export.reproduce_adapter(request, there, hooks.on_event))


def _merging(asked: ExportRequest, fetch: _Fetch, there: Manifest | None) -> tuple[adapter_export.Merging, ModelSource]:
    """What merges an adapter into its base, and the base, called after both."""
    told = (there.document.get("target") or {}) if there else {}
    adapter = _adapter_source(asked, _commit((told.get("adapter") or {}).get("source")), fetch.progress)
    base = _base(asked, adapter, _commit(told.get("source")), fetch.progress)
    adapter_export.judged(adapter, base, merge=True)
    model = fetch(asked.base or adapter_source.named_base(adapter), base.revision)
    merging = adapter_export.Merging.of(adapter.complete(), model)
    return merging, replace(model, name=f"{model.name}-{adapter.name}")


def _adapter_source(asked: ExportRequest, commit: str | None, progress: Progress) -> adapter_source.AdapterSource:
    return adapter_source.resolve_adapter(
        asked.model, revision=commit or asked.revision, token=asked.token, progress=progress
    )


def _base(
    asked: ExportRequest, adapter: adapter_source.AdapterSource, commit: str | None, progress: Progress
) -> adapter_source.BaseSource:
    if asked.base:
        return adapter_source.resolve_base(asked.base, revision=commit, token=asked.token, progress=progress)
    return adapter_source.told_base(adapter, revision=commit, token=asked.token, progress=progress)


def _commit(told: Any) -> str | None:
    """That a manifest's source was made from."""
    return told.get("revision") if isinstance(told, dict) else None


def _identical(folder: Path, there: Manifest, differences: list[str]) -> Exported:
    if differences:
        raise ManifestError(f"the export differs from {folder / manifest.NAME}: {'; '.join(differences)}")
    return Exported(there, folder, is_repeated=True)
