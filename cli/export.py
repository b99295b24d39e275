"""`edgellm export` and `edgellm verify`: from the Hub to a folder of device files, and the check of such a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgellm.cli import _options as opt

if TYPE_CHECKING:
    pass


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
    from edgellm.app import exporting
    from edgellm.app.defaults import asked_bytes
    from edgellm.app.evaluation import judge, tabulate
    from edgellm.app.export_options import ExportRequest
    from edgellm.cli import _export_view as view
    from edgellm.cli._progress import DownloadBar

    asked_bytes(mem)  # answers are in its units
    request = ExportRequest(
        model=model,
        format=format_,
        output=output,
        draft=draft,
        quant=quant,
        draft_quant=draft_quant,
        mem=mem,
        ctx=ctx,
        trim_vocab=trim_vocab,
        trim_corpus=trim_corpus,
        trim_input=trim_input,
        drop_layers=drop_layers,
        draft_head=draft_head,
        imatrix=imatrix,
        converter=converter,
        base=base,
        merge=merge,
        exporter=exporter,
        exporter_python=exporter_python,
        locked=locked,
        verify=verify,
        revision=revision,
        token=token,
    )
    hooks = exporting.Hooks(view.Watch(jsonl), DownloadBar(), view.consent(yes=yes), judge, tabulate)
    with view.usage():
        done = exporting.export(request, hooks, view.typed(context))
    view.show_export(done, json_=json_, jsonl=jsonl)


def verify(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder made by `export` or `bundle`.")
    ],
    json_: opt.Json = False,
) -> None:
    """Check every file of an exported folder against its manifest."""
    from edgellm.cli import _export_view as view
    from edgellm.export import manifest

    view.show(manifest.verify(folder), folder, json_=json_)


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
    from edgellm.cli import _export_view as view
    from edgellm.export.bundle import pack

    made = pack(folder, output, quant=quant, draft_quant=draft_quant, ort=ort, expected_format=format_)
    view.show(made, output, json_=json_)
