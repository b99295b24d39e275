"""`edgellm export` and `edgellm verify`: from the Hub to a folder of device files, and the check of such a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.export.environments import Exporter
    from edgellm.export.manifest import Manifest
    from edgellm.export.obtain.source import ModelSource
    from edgellm.export.pipeline import Request


def export(
    model: str = typer.Argument(help="A catalogue name, user/repo, a Hub folder, or a GGUF file."),
    draft: str | None = typer.Option(None, help="The drafter, named alike; `self` cuts one out of the model."),
    format_: str = typer.Option("gguf", "--format", envvar="EDGELLM_FORMAT", help="gguf, or onnx for onnxruntime."),
    quant: str = typer.Option(
        None, envvar="EDGELLM_QUANT", help="Types to make, with commas: Q4_K_M,Q8_0,F16; of ONNX int4,int8,fp16,fp32."
    ),
    draft_quant: str | None = typer.Option(None, help="Types of the drafter.  [default: as --quant]"),
    output: Path | None = typer.Option(None, "--output", "-o", help="The folder to make.  [default: NAME-export]"),
    mem: str | None = typer.Option(None, help="The device's memory (6GB): choose the best type that fits it."),
    ctx: int = typer.Option(4096, help="Tokens of context that --mem plans for."),
    trim_vocab: float | None = typer.Option(
        None, min=0.001, max=1.0, help="Share of the drafter's vocabulary to keep."
    ),
    trim_corpus: Path | None = typer.Option(
        None, exists=True, dir_okay=False, help="Text whose tokens are kept first."
    ),
    trim_input: bool = typer.Option(
        False, "--trim-input", help="Trim what the drafter reads too: a smaller file, fewer drafts accepted."
    ),
    drop_layers: str | None = typer.Option(None, help="Layers to leave out of the drafter, as in 4,8-11."),
    draft_head: str | None = typer.Option(
        None, help="Type of the drafter's last matrix, as in Q4_0.  [default: as is]"
    ),
    imatrix: Path | None = typer.Option(
        None, exists=True, dir_okay=False, help="Importance matrix of the model (GGUF)."
    ),
    converter: str | None = typer.Option(
        None,
        envvar="EDGELLM_CONVERTER",
        metavar="own|llama.cpp|PATH",
        help="Who converts: edgellm, llama.cpp's own script, or that of a checkout.  [default: own where it knows the "
        "family, else llama.cpp]",
    ),
    base: str | None = typer.Option(
        None, help="MODEL is an adapter (LoRA) for this one.  [default: as it says itself]"
    ),
    merge: bool = typer.Option(False, "--merge", help="One model of an adapter and its base, not an adapter's file."),
    exporter: str = typer.Option(
        "builder", envvar="EDGELLM_EXPORTER", help="Of ONNX: onnxruntime-genai's builder, or optimum."
    ),
    exporter_python: Path | None = typer.Option(
        None,
        envvar="EDGELLM_EXPORTER_PYTHON",
        exists=True,
        help="A Python that has the exporter's (or the converter's) packages.",
    ),
    yes: bool = typer.Option(False, "--yes", "-y", envvar="EDGELLM_YES", help="Install the exporter without asking."),
    locked: bool = typer.Option(False, "--locked", help="Repeat the export in --output; fail if a bit differs."),
    verify: bool | None = typer.Option(None, "--verify/--no-verify", help="Check the result.  [default: small models]"),
    revision: str | None = typer.Option(None, help="Commit, branch or tag of the model's repository."),
    token: str | None = typer.Option(None, help="For gated repositories of the Hub.  [default: HF_TOKEN]"),
    json_: bool = typer.Option(False, "--json", help="Print the manifest."),
    jsonl: bool = typer.Option(False, "--jsonl", help="Print each step as one line of JSON."),
) -> None:
    """Make checked files for a device: a model, its drafter, and a manifest that an app's build can trust.

    Of an adapter (a PEFT folder or repository) it makes a GGUF adapter for `--lora`, or with --merge a model.

    An interrupted export goes on where it stopped. The folder appears when all of it is there.
    """
    from edgellm.app.defaults import asked_bytes
    from edgellm.app.evaluation import judge, tabulate
    from edgellm.cli._converters import Converters
    from edgellm.cli._lora import AdapterJob, is_adapter
    from edgellm.cli._progress import DownloadBar
    from edgellm.export import manifest, pipeline
    from edgellm.export.obtain import naming, source
    from edgellm.export.onnx import onnx_facts
    from edgellm.export.read import facts

    if format_ == "gguf":
        from edgellm.export.convert.imatrix import read, refuse_without

        wanted = _types(quant or "Q4_K_M", also=("F32",))  # which an adapter may be, and only its files tell that it is
        drafts = (_types(draft_quant or "") or wanted) if draft else ()
        refuse_without(wanted if mem is None else (), drafts, has_matrix=imatrix is not None)
        if imatrix is not None:
            read(imatrix)  # a file that is none is told before anything is fetched
    if format_ not in ("gguf", "onnx"):
        raise typer.BadParameter(f"--format {format_}: take gguf or onnx")
    if format_ == "onnx" and converter == os.environ.get("EDGELLM_CONVERTER"):
        converter = None  # what is set for all exports is no wish for this one
    folder = output or Path(f"{_stem(model)}-export")
    there = manifest.read(folder) if locked and format_ == "gguf" else None
    converters = Converters(converter or (there.converter if there else None), exporter_python)

    def fetch(reference: str, at: str | None) -> source.ModelSource:
        check = converters.check if format_ == "gguf" else partial(onnx_facts.examine, exporter=_exporter(exporter))
        return source.resolve(reference, revision=at, token=token, progress=DownloadBar(), check=check)

    if format_ == "onnx":
        only_gguf = {
            "--mem": mem, "--trim-vocab": trim_vocab, "--trim-corpus": trim_corpus, "--drop-layers": drop_layers,
            "--imatrix": imatrix, "--converter": converter, "--locked": locked, "--draft self": draft == "self",
            "--merge": merge, "--base": base,
        }  # fmt: skip
        for name in (name for name, value in only_gguf.items() if value):
            raise typer.BadParameter(f"{name} goes with --format gguf")
        types, draft_types = _onnx_types(quant or "int4"), _onnx_types(draft_quant or "")
        return _export_onnx(
            fetch(model, revision),
            fetch(draft, None) if draft else None,
            types,
            draft_types,
            exporter,
            exporter_python,
            output or Path(f"{_stem(model)}-onnx"),
            yes=yes,
            verify=verify,
            json_=json_,
            jsonl=jsonl,
        )
    adapter = AdapterJob(model, base, revision, token, folder=output, locked=locked)
    given = {
        "--draft": draft, "--mem": mem, "--trim-vocab": trim_vocab, "--drop-layers": drop_layers,
        "--draft-head": draft_head, "--imatrix": imatrix, "--converter": converter, "--draft-quant": draft_quant,
    }  # fmt: skip
    if (base or is_adapter(model)) and not merge:
        return adapter.export(quant, given, _Watch(jsonl), verify=verify, json_=json_, jsonl=jsonl)
    types_of_adapter, quant = quant, quant or "Q4_K_M"
    draft = draft or (there.repo("draft") if there else None)
    merging = None
    try:
        if merge:
            merging, target = adapter.merged(fetch, there, converter)
        else:
            target = fetch(model, there.revision("target") if there else revision)
    except facts.IsAdapter:  # a repository, which only its list of files shows for one
        return adapter.export(types_of_adapter, given, _Watch(jsonl), verify=verify, json_=json_, jsonl=jsonl)
    drafter = target if draft == "self" else fetch(draft, there.revision("draft") if there else None) if draft else None
    if (trim_vocab or drop_layers or draft_quant or draft_head) and drafter is None and there is None:
        raise naming.BadReference(
            "--trim-vocab, --drop-layers, --draft-quant and --draft-head make a drafter smaller: name it with --draft"
        )
    plan = None
    device_bytes = asked_bytes(mem)
    if device_bytes is not None and not there:
        from edgellm.export.sizing import DRAFT_QUANT, best_quant
        from edgellm.memory.units import format_bytes

        quant, plan = best_quant(target, drafter, device_bytes, ctx)
        draft_quant = draft_quant or DRAFT_QUANT
        out.note(f"{quant} is the most exact type that fits {mem} ({format_bytes(plan.required_bytes)})")
    options = pipeline.Options(
        quants=_types(quant),
        draft_quants=_types(draft_quant or ""),
        keep_vocab=trim_vocab,
        trim_input=trim_input,
        keep_corpus=source.sha256_of(trim_corpus) if trim_corpus else None,
        draft_head=_head_type(draft_head),
        drop_layers=_layers(drop_layers or ""),
        imatrix=source.sha256_of(imatrix) if imatrix else None,
        converter=converters.option,
    )
    request = pipeline.Request(
        target,
        drafter,
        pipeline.Options.of(there.options) if there else options,
        folder,
        imatrix=imatrix,
        corpus=trim_corpus,
        verify=False if there else verify,
        converter=converters.converter,
        plan=plan.to_json() if plan else None,
        judge=None if there else judge,
        tabulate=tabulate,
        merging=merging,
    )
    watch = _Watch(jsonl)
    if there:
        return _reproduce(request, there, watch)
    made = pipeline.export(request, watch)
    _show(made, folder, json_=json_, silent=jsonl)


def verify(
    folder: Path = typer.Argument(exists=True, file_okay=False, help="A folder made by `export` or `bundle`."),
    json_: bool = typer.Option(False, "--json", help="Print the manifest."),
) -> None:
    """Check every file of an exported folder against its manifest."""
    from edgellm.export import manifest

    _show(manifest.verify(folder), folder, json_=json_, silent=False)


def bundle(
    folder: Path = typer.Argument(exists=True, file_okay=False, help="A folder made by `export`."),
    output: Path = typer.Option(..., "--output", "-o", help="A folder to make, or a .tar, .tar.gz or .zip file."),
    quant: str | None = typer.Option(None, help="The one type of the model to pack.  [default: the first]"),
    draft_quant: str | None = typer.Option(None, help="The one type of the drafter to pack.  [default: the first]"),
    format_: str | None = typer.Option(
        None, "--format", envvar="EDGELLM_FORMAT", help="What the export must be of: gguf or onnx.  [default: either]"
    ),
    ort: bool = typer.Option(False, "--ort", help="ONNX models in onnxruntime's own format, for reduced builds."),
    json_: bool = typer.Option(False, "--json", help="Print the bundle's manifest."),
) -> None:
    """Pack one model, one drafter and their manifest into a folder or tar for an app's assets."""
    from edgellm.export import manifest
    from edgellm.export.bundle import pack

    if format_ is not None and format_ != manifest.read(folder).options.get("format", "gguf"):
        raise manifest.ManifestError(
            f"{folder} was not exported to {format_}: `edgellm export MODEL --format {format_}`"
        )
    _show(pack(folder, output, quant=quant, draft_quant=draft_quant, ort=ort), output, json_=json_, silent=False)


def _export_onnx(
    target: ModelSource,
    draft: ModelSource | None,
    quants: tuple[str, ...],
    draft_quants: tuple[str, ...],
    exporter: str,
    python: Path | None,
    output: Path,
    *,
    yes: bool,
    verify: bool | None,
    json_: bool,
    jsonl: bool,
) -> None:
    import sys

    from edgellm.app.evaluation import judge
    from edgellm.export.environments import environment
    from edgellm.export.onnx.onnx_export import OnnxRequest, export_onnx

    chosen = _exporter(exporter)

    def ask(question: str) -> bool:
        if yes:
            out.note(question.removesuffix("; create it?"))
            return True
        return sys.stdin.isatty() and typer.confirm(question, err=True)

    request = OnnxRequest(
        target,
        draft,
        quants,
        draft_quants,
        chosen,
        python or environment(chosen, ask=ask),
        output,
        verify=verify,
        judge=judge,
    )
    _show(export_onnx(request, _Watch(jsonl)), output, json_=json_, silent=jsonl)


def _exporter(name: str) -> Exporter:
    from edgellm.export.environments import EXPORTERS

    chosen = next((known for known in EXPORTERS if known == name), None)
    if chosen is None:
        raise typer.BadParameter(f"--exporter {name}: take {' or '.join(EXPORTERS)}")
    return chosen


class _Watch:
    """Steps as they come: lines of JSON on stdout, or talk on stderr."""

    def __init__(self, jsonl: bool) -> None:
        self._jsonl = jsonl
        self._quarter, self._told_s = 0, 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self._jsonl:
            return out.jsonl(dict(event))
        if event["event"] == "remark":
            out.note(f"{event['role']}: {event['text']}")
        elif event["event"] == "start":
            self._quarter, self._told_s = 0, time.monotonic()
            out.note(f"{event['role']}: {event['step']} {event['file']}")
        elif event["event"] == "resumed":
            out.note(f"{event['role']}: {event['file']} is there from an earlier run")
        elif event["event"] == "progress":
            self._show_progress(event)

    def _show_progress(self, event: Mapping[str, Any]) -> None:
        """Each quarter of a step: said where the step takes long, else only to the curious."""
        quarter = 4 * event["done"] // max(event["total"], 1)
        if quarter == self._quarter:
            return
        self._quarter = quarter
        is_slow = time.monotonic() - self._told_s > 5
        self._told_s = time.monotonic()
        (out.note if is_slow else out.detail)(f"{event['role']}: {event['step']} {quarter * 25} % of {event['file']}")


def _reproduce(request: Request, there: Manifest, watch: _Watch) -> None:
    from edgellm.export import manifest, pipeline

    differences = pipeline.reproduce(request, there, watch)
    if differences:
        raise manifest.ManifestError(
            f"the export differs from {request.output / manifest.NAME}: {'; '.join(differences)}"
        )
    out.note("identical to the bit")


def _show(made: Manifest, folder: Path, *, json_: bool, silent: bool) -> None:
    from edgellm.memory.units import format_bytes

    if json_:
        return out.json(made.document)
    if silent:
        return out.jsonl({"event": "finished", "folder": str(folder), "files": list(made.files())})
    rows = [
        (entry["role"], entry["path"], format_bytes(entry["n_bytes"]), entry["sha256"][:12]) for entry in made.files()
    ]
    out.table(["role", "file", "size ", "sha256"], rows)
    for role in ("target", "draft"):
        checked = (made.document.get(role) or {}).get("verification") or {}
        for quant, found in checked.items():
            if isinstance(found, dict) and {"top1", "n_tokens", "perplexity"} <= set(found):
                both = found["perplexity"]
                out.note(
                    f"{role} {quant}: the checkpoint's token at {found['top1']:.2%} of {found['n_tokens']:,} places, "
                    f"perplexity {both['exported']:g} against {both['checkpoint']:g}"
                )
        if isinstance(checked.get("logits"), dict) and {"max_relative_error", "n_tokens"} <= set(checked["logits"]):
            error, n_tokens = checked["logits"]["max_relative_error"], checked["logits"]["n_tokens"]
            out.note(f"{role}: logits of {n_tokens} tokens within {error:.2g} of the checkpoint's")
        if isinstance(checked.get("perplexity"), dict):
            out.note(
                f"{role}: perplexity " + ", ".join(f"{name} {value:g}" for name, value in checked["perplexity"].items())
            )
        if head := (made.document.get(role) or {}).get("draft_head_layers"):
            out.note(f"{role}: the file carries a draft head of its own ({head} layers), which is kept")
    pair = made.document.get("pair") or {}
    for name, facts in pair.items():
        if "shared_of_target" not in facts:
            continue
        measured = f", takes {facts['acceptance']:.0%} of its drafts" if "acceptance" in facts else ""
        out.note(
            f"pair, {name}: {facts['shared_of_target']:.0%} of the target's tokens are the drafter's too{measured}"
        )
    out.note(f"in {folder}")


def _stem(model: str) -> str:
    """What the output is named after: `user/repo:Q8_0` gives `repo`, and `.` the folder's own name."""
    path = Path(model).expanduser()
    name = path.resolve().name if path.is_dir() else path.name.partition(":")[0].removesuffix(".gguf")
    return name or "model"


def _types(text: str, *, also: tuple[str, ...] = ()) -> tuple[str, ...]:
    from edgellm.export.convert.engine_jobs import QUANTS

    types = tuple(dict.fromkeys(word.strip().upper() for word in text.split(",") if word.strip()))
    for name in types:
        if name not in (*QUANTS, *also):
            raise typer.BadParameter(
                f"{name} is no type of llama.cpp; among them are Q4_K_M, Q4_0, Q5_K_M, Q6_K, Q8_0, F16"
            )
    return types


def _head_type(text: str | None) -> str | None:
    from edgellm.export.convert.engine_jobs import HEADS

    if text and text.upper() not in HEADS:
        raise typer.BadParameter(f"{text} is no type for a matrix: take one of {', '.join(HEADS)}")
    return text.upper() if text else None


def _onnx_types(text: str) -> tuple[str, ...]:
    from edgellm.export.onnx.onnx_export import QUANTS

    types = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    for name in types:
        if name not in QUANTS:
            raise typer.BadParameter(f"{name} is no type of ONNX export; take {', '.join(QUANTS)}")
    return types


def _layers(text: str) -> tuple[int, ...]:
    layers: set[int] = set()
    for word in filter(None, text.split(",")):
        first, dash, last = word.partition("-")
        try:
            layers |= set(range(int(first), int(last if dash else first) + 1))
        except ValueError as error:
            raise typer.BadParameter(f"--drop-layers {text}: write numbers and ranges, as in 4,8-11") from error
    return tuple(sorted(layers))
