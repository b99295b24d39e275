"""`edgellm export` and `edgellm verify`: from the Hub to a folder of device files, and the check of such a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import _options as opt
from edgellm.cli._output import out
from edgellm.memory.limits import N_CTX

if TYPE_CHECKING:
    from edgellm.export.environments import Exporter
    from edgellm.export.manifest import Manifest
    from edgellm.export.obtain.source import ModelSource
    from edgellm.export.pipeline import Request


def export(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A catalogue name, user/repo, a Hub folder, or a GGUF file.")],
    draft: Annotated[
        str | None,
        opt.option(
            "--draft", "-d", help="The drafter, named alike; `self` cuts one out of the model.", metavar="MODEL"
        ),
    ] = None,
    format_: Annotated[
        str, opt.option("--format", help="gguf, or onnx for onnxruntime.", metavar="gguf|onnx", callback=opt.FORMAT)
    ] = "gguf",
    quant: Annotated[
        str | None,
        opt.option(
            "--quant", help="Types to make, with commas: Q4_K_M,Q8_0,F16; of ONNX int4,int8,fp16,fp32.", metavar="TYPES"
        ),
    ] = None,
    draft_quant: Annotated[
        str | None,
        opt.option("--draft-quant", help="Types of the drafter.", show_default="as --quant", metavar="TYPES"),
    ] = None,
    output: Annotated[
        Path | None,
        opt.option("--output", "-o", help="The folder to make.", show_default="NAME-export", metavar="FOLDER"),
    ] = None,
    mem: opt.Mem = None,
    ctx: opt.Ctx = None,
    trim_vocab: Annotated[
        float | None,
        opt.option(
            "--trim-vocab",
            min=0.001,
            max=1.0,
            help="Share of the drafter's vocabulary to keep.",
            metavar="X",
            panel=opt.OF_GGUF,
        ),
    ] = None,
    trim_corpus: Annotated[
        Path | None,
        opt.option(
            "--trim-corpus",
            exists=True,
            dir_okay=False,
            help="Text whose tokens are kept first.",
            metavar="FILE",
            panel=opt.OF_GGUF,
        ),
    ] = None,
    trim_input: Annotated[
        bool,
        opt.option(
            "--trim-input",
            help="Trim what the drafter reads too: a smaller file, fewer drafts accepted.",
            panel=opt.OF_GGUF,
        ),
    ] = False,
    drop_layers: Annotated[
        str | None,
        opt.option(
            "--drop-layers",
            help="Layers to leave out of the drafter, as in 4,8-11.",
            metavar="LAYERS",
            panel=opt.OF_GGUF,
        ),
    ] = None,
    draft_head: Annotated[
        str | None,
        opt.option(
            "--draft-head",
            help="Type of the drafter's last matrix, as in Q4_0.",
            show_default="as is",
            metavar="TYPE",
            panel=opt.OF_GGUF,
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        opt.option(
            "--imatrix",
            exists=True,
            dir_okay=False,
            help="Importance matrix of the model (GGUF).",
            metavar="FILE",
            panel=opt.OF_GGUF,
        ),
    ] = None,
    converter: Annotated[
        str | None,
        opt.option(
            "--converter",
            metavar="own|llama.cpp|PATH",
            help="Who converts: edgellm, llama.cpp's own script, or that of a checkout.",
            show_default="own where it knows the family, else llama.cpp",
            panel=opt.OF_GGUF,
        ),
    ] = None,
    base: Annotated[
        str | None,
        opt.option(
            "--base",
            help="MODEL is an adapter (LoRA) for this one.",
            show_default="as it says itself",
            metavar="MODEL",
            panel=opt.OF_GGUF,
        ),
    ] = None,
    merge: Annotated[
        bool,
        opt.option("--merge", help="One model of an adapter and its base, not an adapter's file.", panel=opt.OF_GGUF),
    ] = False,
    exporter: Annotated[
        str,
        opt.option(
            "--exporter",
            help="Of ONNX: onnxruntime-genai's builder, or optimum.",
            metavar="builder|optimum",
            panel=opt.OF_ONNX,
        ),
    ] = "builder",
    exporter_python: Annotated[
        Path | None,
        opt.option(
            "--exporter-python",
            exists=True,
            help="A Python that has the exporter's (or the converter's) packages.",
            metavar="FILE",
        ),
    ] = None,
    yes: opt.Yes = False,
    locked: Annotated[
        bool,
        opt.option("--locked", help="Repeat the export in --output; fail if a bit differs.", panel=opt.OF_GGUF),
    ] = False,
    verify: Annotated[
        bool | None,
        opt.option("--verify/--no-verify", help="Check the result.", show_default="small models"),
    ] = None,
    revision: Annotated[
        str | None,
        opt.option("--revision", help="Commit, branch or tag of the model's repository.", metavar="REVISION"),
    ] = None,
    token: opt.Token = None,
    json_: opt.Json = False,
    jsonl: opt.Jsonl = False,
) -> None:
    """Make checked files for a device: a model, its drafter, and a manifest that an app's build can trust.

    Of an adapter (a PEFT folder or repository) it makes a GGUF adapter for `--lora`, or with --merge a model.

    An interrupted export goes on where it stopped. The folder appears when all of it is there.
    """
    from edgellm.cli._converters import Converters
    from edgellm.cli._lora import AdapterJob, is_adapter
    from edgellm.cli._models import asked_bytes
    from edgellm.cli._pair import judge, tabulate
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
    if format_ == "onnx":
        for name in [*opt.typed_of(context, opt.OF_GGUF, "mem", "ctx"), *(["--draft self"] if draft == "self" else [])]:
            raise typer.BadParameter(f"{name} goes with --format gguf")
    else:
        for name in opt.typed_of(context, opt.OF_ONNX):
            raise typer.BadParameter(f"{name} goes with --format onnx")
    folder = output or Path(f"{_stem(model)}-export")
    there = manifest.read(folder) if locked and format_ == "gguf" else None
    if format_ == "onnx":
        converter = None  # what is set for all exports is no wish for this one
    converters = Converters(converter or (there.converter if there else None), exporter_python)

    def fetch(reference: str, at: str | None) -> source.ModelSource:
        check = converters.check if format_ == "gguf" else partial(onnx_facts.examine, exporter=_exporter(exporter))
        return source.resolve(reference, revision=at, token=token, progress=DownloadBar(), check=check)

    if format_ == "onnx":
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
    others = opt.typed_of(context, opt.OF_GGUF, "draft", "draft_quant", "mem", "ctx", but=("base", "merge", "locked"))
    given = dict.fromkeys(others, True)
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

        quant, plan = best_quant(target, drafter, device_bytes, ctx or N_CTX)
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
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder made by `export` or `bundle`.")
    ],
    json_: opt.Json = False,
) -> None:
    """Check every file of an exported folder against its manifest."""
    from edgellm.export import manifest

    _show(manifest.verify(folder), folder, json_=json_, silent=False)


def bundle(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A folder made by `export`.")],
    output: Annotated[
        Path,
        opt.option("--output", "-o", help="A folder to make, or a .tar, .tar.gz or .zip file.", metavar="PATH"),
    ],
    quant: Annotated[
        str | None,
        opt.option("--quant", help="The one type of the model to pack.", show_default="the first", metavar="TYPE"),
    ] = None,
    draft_quant: Annotated[
        str | None,
        opt.option(
            "--draft-quant", help="The one type of the drafter to pack.", show_default="the first", metavar="TYPE"
        ),
    ] = None,
    format_: Annotated[
        str | None,
        opt.option(
            "--format",
            help="What the export must be of.",
            show_default="either",
            metavar="gguf|onnx",
            callback=opt.FORMAT,
        ),
    ] = None,
    ort: Annotated[
        bool, opt.option("--ort", help="ONNX models in onnxruntime's own format, for reduced builds.")
    ] = False,
    json_: opt.Json = False,
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

    from edgellm.cli._pair import judge
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
