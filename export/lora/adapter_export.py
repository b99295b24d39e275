"""From a PEFT folder to a checked folder of GGUF adapters, or to its base with the adapter merged into it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.export import manifest
from edgellm.export.check import fidelity
from edgellm.export.check.fidelity import MAX_LOGITS_ERROR, N_TOKENS, TEXT, VerificationFailed
from edgellm.export.check.reference import NoReference, reference_logits
from edgellm.export.convert import engine_jobs, gguf_writer
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.lora.adapter_source import AdapterSource, BaseSource, called_by_name
from edgellm.export.lora.adapters import Adapter, Base, read_adapter, read_base
from edgellm.export.lora.lora_facts import read_facts
from edgellm.export.lora.lora_gguf import check_can_be_applied, check_facts_allow_it, write_adapter
from edgellm.export.lora.merging import merge, write_merged
from edgellm.export.manifest import Manifest
from edgellm.export.obtain.source import ModelSource, fingerprint
from edgellm.export.read.checkpoint import chosen_weights
from edgellm.export.read.facts import UnsupportedModel
from edgellm.export.staging import publish, staging_folder
from edgellm.memory import adapter as applied
from edgellm.memory.files import settle

Event = Mapping[str, Any]
SMALL_PARAMS = 1_500_000_000  # of a base; up to here an adapter is verified where the base's weights are here


@dataclass(frozen=True, slots=True)
class AdapterRequest:
    adapter: AdapterSource
    base: BaseSource
    types: tuple[str, ...]
    output: Path
    verify: bool | None = None  # None: where the base is small and its weights are here


def judged(adapter: AdapterSource, base: BaseSource, *, merge: bool = False) -> Base:
    """The base's shapes, once both configurations are accounted for; no weights are looked at.

    Args:
        merge: it need not be such that llama.cpp can apply it.

    Raises:
        UnsupportedModel: either of them is not exported.
    """
    with called_by_name(adapter, base):
        facts, shapes = read_facts(adapter.path), read_base(base.path, base.name)
        if not merge:
            check_facts_allow_it(facts, shapes)
        return shapes


def export_adapter(request: AdapterRequest, on_event: Callable[[Event], None]) -> Manifest:
    """Make the folder `request.output`, which appears at once when all is done.

    Raises:
        ExportError: the output is taken.
        UnsupportedModel, CheckpointError, VerificationFailed: from the steps.
    """
    key = _key(request)
    with called_by_name(request.adapter, request.base):
        return publish(request.output, key, lambda work: _make(request, work, key, on_event))


def reproduce_adapter(request: AdapterRequest, locked: Manifest, on_event: Callable[[Event], None]) -> list[str]:
    """Make everything once more and compare with a manifest; what differs, in sentences. Empty: identical."""
    key = _key(request)
    with staging_folder(request.output, key) as work:
        made = _make(replace(request, verify=False), work, key, on_event)
        before, now = ({e["path"]: e["sha256"] for e in side["files"]} for side in (locked.document, made))
        for name in now:
            if before == now and not (request.output / name).exists():
                settle(work / name, request.output / name)
        shutil.rmtree(work)
    return [f"{name} comes out otherwise" for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def _say(on_event: Callable[[Event], None], event: str, step: str, file: str, **more: Any) -> None:
    on_event({"event": event, "step": step, "role": "lora", "file": file, **more})


def _key(request: AdapterRequest) -> str:
    source = request.adapter
    facts = [source.repo, source.revision, source.digests(), request.base.described()]
    return fingerprint([facts, request.types, manifest.tools()])


def _make(request: AdapterRequest, work: Path, key: str, on_event: Callable[[Event], None]) -> dict[str, Any]:
    source, base = request.adapter, judged(request.adapter, request.base)
    adapter = read_adapter(source.path, base)
    check_can_be_applied(adapter, base)
    files = {}
    for type_name in request.types:
        path = files[type_name] = work / f"{source.name}-lora-{type_name}.gguf"
        _say(on_event, "start", "convert", path.name)
        write_adapter(adapter, base, path, type_name, _entries(source, request.base))
        applied.read_adapter(path)
        _say(on_event, "done", "convert", path.name, n_bytes=path.stat().st_size)
    proof = _proof(request, base, adapter, files, work, on_event)
    return {
        "key": key,
        "tools": manifest.tools(),
        "options": {"format": "gguf", "quants": list(request.types)},
        "plan": None,
        "lora": {
            **described(source, adapter),
            "architecture": base.arch,
            "base": request.base.described(),
            "verification": proof,
        },
        "files": [manifest.file_entry(path, role="lora", quant=name) for name, path in files.items()],
    }


def described(source: AdapterSource, adapter: Adapter) -> dict[str, Any]:
    """An adapter as a manifest tells of it."""
    return {
        "name": source.name,
        "ranks": sorted({pair.rank for pair in adapter.pairs.values()}),
        "alpha": adapter.facts.alpha,
        "n_adapted": len(adapter.pairs),
        "n_whole": len(adapter.whole),
        "source": source.described(),
    }


def _entries(source: AdapterSource, base: BaseSource) -> dict[str, bytes]:
    entries = {"general.name": gguf_writer.string(source.name.encode("utf-8", "replace"))}
    if source.licence:
        entries["general.license"] = gguf_writer.string(source.licence)
    entries["general.base_model.count"] = gguf_writer.u32(1)
    entries["general.base_model.0.name"] = gguf_writer.string(base.name.encode("utf-8", "replace"))
    if base.repo:
        entries["general.base_model.0.repo_url"] = gguf_writer.string(f"https://huggingface.co/{base.repo}")
    return entries


def _proof(
    request: AdapterRequest,
    base: Base,
    adapter: Adapter,
    files: Mapping[str, Path],
    work: Path,
    on_event: Callable[[Event], None],
) -> dict[str, Any] | str | None:
    """Logits of the base with each file applied, against a plain forward pass over the merged checkpoint."""
    folder = request.base.path
    if request.verify is False:
        return None
    if folder.is_file():
        return "not compared: the base is a GGUF file, and its checkpoint is not here"
    if chosen_weights([path.name for path in folder.iterdir()]) is None:
        return "not compared: the base's weights are not here"
    n_params = sum(int(np.prod(extent, dtype=np.int64)) for extent in base.extents.values())
    if request.verify is None and n_params > SMALL_PARAMS:
        return None
    _say(on_event, "start", "verify", request.adapter.name)
    whole, merged = work / ".base.gguf", work / ".merged"
    try:
        to_gguf(folder, whole, float_type="F32", name=base.name)
        write_merged(folder, adapter, merged)
        tokens = engine_jobs.tokenise(whole, [TEXT])[0][:N_TOKENS]
        try:
            expected = reference_logits(merged, tokens)
        except NoReference as error:
            return f"not compared: {error}"
        errors = {name: _error(engine_jobs.logits(whole, tokens, lora=path), expected) for name, path in files.items()}
    finally:
        whole.unlink(missing_ok=True)
        shutil.rmtree(merged, ignore_errors=True)
    for name, worst in errors.items():
        if not worst <= MAX_LOGITS_ERROR:
            raise VerificationFailed(
                f"{files[name].name} gives other logits than the adapter merged into {base.name} (relative error "
                f"{worst:.3g}): please report the adapter; --no-verify exports it all the same"
            )
    _say(on_event, "done", "verify", request.adapter.name)
    return {name: {"n_tokens": len(tokens), "max_relative_error": round(worst, 7)} for name, worst in errors.items()}


def _error(found: Any, expected: Any) -> float:
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@dataclass(frozen=True, slots=True)
class Merging:
    """An adapter that is merged into a target on its way to GGUF."""

    source: AdapterSource
    adapter: Adapter

    @classmethod
    def of(cls, source: AdapterSource, base: ModelSource) -> Merging:
        """Raises UnsupportedModel: they do not fit, or the base is no checkpoint."""
        if base.is_gguf:
            raise UnsupportedModel(
                f"{base.path} is a GGUF file, and an adapter is merged into a checkpoint: name the base's folder or "
                "repository with --base, or apply the adapter beside the file (without --merge)"
            )
        with called_by_name(source):
            return cls(source, read_adapter(source.path, read_base(base.path, base.name)))

    def write(self, base: ModelSource, path: Path, kind: str, on_tensor: Callable[[int, int], None]) -> None:
        """The merged model, unquantised."""
        adapt = partial(merge, adapter=self.adapter)
        float_type = "BF16" if kind == "BF16" else "F16"
        to_gguf(base.path, path, float_type=float_type, name=base.name, adapt=adapt, on_tensor=on_tensor)  # type: ignore[arg-type]

    def verified(
        self, base: ModelSource, path: Path, files: Mapping[str, Path], *, work: Path, **options: Any
    ) -> dict[str, Any]:
        """As `fidelity.verification`, against the merged checkpoint, which is written out for as long."""
        folder = work / ".merged"
        try:
            write_merged(base.path, self.adapter, folder)
            return fidelity.verification(replace(base, path=folder), path, files, **options)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def described(self) -> dict[str, Any]:
        return described(self.source, self.adapter)
