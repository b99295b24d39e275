"""A checkpoint and its drafter as ONNX folders with one manifest, verified against the checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from shutil import copyfile
from typing import Any

from edgellm.export import manifest
from edgellm.export.check.fidelity import TEXT, VerificationFailed
from edgellm.export.environments import Exporter, run_job
from edgellm.export.lora.adapted_drafts import AdaptedDraft
from edgellm.export.manifest import Manifest
from edgellm.export.obtain.source import TOKENIZER_FILES, ModelSource, fingerprint
from edgellm.export.read.checkpoint import READABLE, read_checkpoint
from edgellm.export.request import SMALL_PARAMS, Event, Judge
from edgellm.export.staging import ExportError, publish
from edgellm.memory.cpu import usable_cores
from edgellm.memory.files import discard, making, write
from edgellm.memory.onnx_graph import OnnxError, read_graph

_JOB = "onnx/onnx_job.py"
_ADAPTED = ".adapted"
QUANTS = ("int4", "int8", "fp16", "fp32")
N_VERIFIED = 2000  # tokens
MIN_TOP1 = {"fp32": 0.999, "fp16": 0.98, "int8": 0.8, "int4": 0.5}  # below: not the same model any more


@dataclass(frozen=True, slots=True)
class OnnxRequest:
    target: ModelSource
    draft: ModelSource | None
    quants: tuple[str, ...]
    draft_quants: tuple[str, ...]  # empty: as `quants`
    exporter: Exporter
    python: Path  # of the exporter's environment
    output: Path
    verify: bool | None = None  # None: small models only
    judge: Judge | None = None
    adapted: AdaptedDraft | None = None  # what the drafter learnt, which becomes part of it


def export_onnx(request: OnnxRequest, on_event: Callable[[Event], None]) -> Manifest:
    """Make the folder `request.output`: a folder of its own for each model and type, and the manifest.

    Raises:
        ExportError: the output is taken, or a source is no checkpoint.
        ExporterError: the exporter failed.
        VerificationFailed: what came out is not the checkpoint's model.
    """
    sources = {"target": request.target} | ({"draft": request.draft} if request.draft else {})
    for source in sources.values():
        if source.is_gguf:
            raise ExportError(
                f"{source.name} is a GGUF file: ONNX is exported from a checkpoint, name its repository or folder"
            )
    key = fingerprint([
        request.quants, request.draft_quants, request.exporter, version("edgellm"),
        [[s.name, s.repo, s.revision, [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in s.files()]]
         for s in sources.values()],
        *([request.adapted.described()] if request.adapted else ()),
    ])  # fmt: skip
    return publish(request.output, key, lambda work: {"key": key, **_make(request, sources, work, on_event)})


def _make(
    request: OnnxRequest, sources: dict[str, ModelSource], work: Path, on_event: Callable[[Event], None]
) -> dict[str, Any]:
    log = work / "exporter.log"
    tools_path = work / "tools.json"  # what made the folders that an interrupted run left
    tools = json.loads(tools_path.read_text()) if tools_path.exists() else {"edgellm": version("edgellm")}
    options = {"format": "onnx", "quants": request.quants, "draft_quants": request.draft_quants}
    document: dict[str, Any] = {"options": {**options, "exporter": request.exporter}, "plan": None}
    files: list[dict[str, Any]] = []
    firsts: dict[str, Path] = {}
    for role, source in sources.items():
        quants = request.quants if role == "target" else (request.draft_quants or request.quants)
        adapted = request.adapted if role == "draft" else None
        remarks = list(filter(None, map(adapted.remark, quants))) if adapted else []
        for remark in remarks:
            on_event({"event": "remark", "step": "convert", "role": role, "file": source.name, "text": remark})
        told = {"adapter": adapted.described(), "remarks": remarks} if adapted else {}
        digests, source = source.digests(), _with_adapter(adapted, source, work) if adapted else source
        stored = read_checkpoint(source.path).values()
        n_params = sum(math.prod(tensor.shape) for tensor in stored if tensor.type in READABLE)
        wants_proof = request.verify or (request.verify is None and n_params <= SMALL_PARAMS)
        checked: dict[str, Any] = {}
        for quant in quants:
            folder = work / f"{'' if role == 'target' else 'draft-'}{source.name}-{quant}"

            def say(event: str, step: str, role: str = role, name: str = folder.name, **more: Any) -> None:
                on_event({"event": event, "step": step, "role": role, "file": name, **more})

            if folder.exists():
                say("resumed", "convert")
            else:
                say("start", "convert")
                tools |= _convert(request, source, folder, quant, log)
                write(tools_path, json.dumps(tools).encode())
                say("done", "convert", n_bytes=sum(path.stat().st_size for path in folder.iterdir()))
            firsts.setdefault(role, folder)
            if wants_proof:
                say("start", "verify")
                checked[quant] = _verify(request, source, folder, quant, log)
                say("done", "verify")
            files += [
                {
                    **manifest.file_entry(path, role=role, quant=quant, n_params=n_params),
                    "path": f"{folder.name}/{path.name}",
                }
                for path in sorted(folder.iterdir())
            ]
        graph = read_graph(firsts[role] / "model.onnx")
        document[role] = {
            "name": source.name,
            "n_params": n_params,
            "n_vocab": graph.n_vocab,
            "operators": graph.operators,
            "source": {
                "repo": source.repo,
                "revision": source.revision,
                "licence": source.licence,
                "files": digests,
            },
            **told,
            "verification": checked or None,
        }
    if request.judge and "draft" in firsts:
        on_event({"event": "start", "step": "judge", "role": "draft", "file": firsts["draft"].name})
        document["pair"] = {"exported": request.judge(firsts["target"], firsts["draft"], measure=bool(checked))}
        on_event({"event": "done", "step": "judge", "role": "draft", "file": firsts["draft"].name})
    for path in (log, tools_path, work / _ADAPTED):
        discard(path)
    return document | {"tools": tools, "files": files}


def _with_adapter(adapted: AdaptedDraft, source: ModelSource, work: Path) -> ModelSource:
    """The checkpoint with what its model learnt, for as long as the export runs."""
    folder = work / _ADAPTED
    if not folder.exists():
        with making(folder) as aside:
            adapted.write_checkpoint(source, aside)
    return replace(source, path=folder)


def _convert(request: OnnxRequest, source: ModelSource, folder: Path, quant: str, log: Path) -> dict[str, str]:
    """The folder of one model and type, which appears whole or not at all; versions of what made it."""
    job = {"job": "export", "exporter": request.exporter, "source": str(source.path.resolve()), "quant": quant}
    what = f"exporting {source.name} to {quant}"
    with making(folder) as aside:
        aside.mkdir()
        answer = run_job(request.python, {**job, "output": str(aside)}, what, log=log, program=_JOB)
        for path in source.path.iterdir():
            if path.name in TOKENIZER_FILES and path.is_file():
                copyfile(path, aside / path.name)  # the model's own: exporters rewrite them, not always rightly
        try:
            graph = read_graph(aside / "model.onnx")
            graph.check_data()
            if not graph.kv:
                raise OnnxError(f"{folder.name} has no cache")
        except OnnxError as error:
            raise ExportError(f"the exporter left a graph that cannot be used: {error}") from error
    return dict(answer["versions"])


def _verify(request: OnnxRequest, source: ModelSource, folder: Path, quant: str, log: Path) -> dict[str, Any]:
    job = {
        "job": "verify",
        "source": str(source.path.resolve()),
        "output": str(folder.resolve()),
        "text": verification_text(),
        "n_tokens": N_VERIFIED,
        "n_threads": usable_cores(),
    }
    found = run_job(request.python, job, f"checking {folder.name}", log=log, program=_JOB)
    if found["top1"] < MIN_TOP1[quant]:
        raise VerificationFailed(
            f"{folder.name} chooses the checkpoint's token at {found['top1']:.1%} of {found['n_tokens']:,} places, "
            f"less than {MIN_TOP1[quant]:.1%}: try the other --exporter or --quant; --no-verify exports it anyway"
        )
    return found


def verification_text() -> str:
    """Prose, and then this package's own code, some thousand tokens in all."""
    return TEXT + "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.parent.glob("read/*.py"))
    )
