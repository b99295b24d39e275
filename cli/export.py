"""`edgellm export` and `edgellm verify`: from the Hub to a folder of device files, and the check of such a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgellm.cli import _export_options as given
from edgellm.cli import _options as opt


def export(
    context: typer.Context,
    model: given.Model,
    draft: given.Draft = None,
    format_: given.Format = "gguf",
    quant: given.Quant = None,
    draft_quant: given.DraftQuant = None,
    adapter: given.DraftAdapter = None,
    output: given.Output = None,
    mem: opt.Mem = None,
    ctx: opt.Ctx = None,
    trim_vocab: given.TrimVocab = None,
    trim_corpus: given.TrimCorpus = None,
    trim_input: given.TrimInput = False,
    drop_layers: given.DropLayers = None,
    draft_head: given.DraftHead = None,
    imatrix: given.Imatrix = None,
    converter: given.Converter = None,
    base: given.Base = None,
    merge: given.Merge = False,
    exporter: given.Exporter = "builder",
    exporter_python: given.ExporterPython = None,
    yes: opt.Yes = False,
    locked: given.Locked = False,
    verify: given.Verify = None,
    revision: given.Revision = None,
    token: opt.Token = None,
    json_: opt.Json = False,
    jsonl: opt.Jsonl = False,
) -> None:
    """Make checked files for a device: a model, its drafter, and a manifest that an app's build can trust.

    Of an adapter (a PEFT folder or repository) it makes a GGUF adapter for `--lora`, or with --merge a model.

    An interrupted export goes on where it stopped. The folder appears when all of it is there.
    """
    from edgellm.app import exporting
    from edgellm.app.export_options import ExportRequest
    from edgellm.cli import _export_view as view
    from edgellm.cli._progress import DownloadBar

    request = ExportRequest(
        model, format=format_, output=output, draft=draft, quant=quant, draft_quant=draft_quant, adapter=adapter,
        mem=mem, ctx=ctx,
        trim_vocab=trim_vocab, trim_corpus=trim_corpus, trim_input=trim_input, drop_layers=drop_layers,
        draft_head=draft_head, imatrix=imatrix, converter=converter, base=base, merge=merge, exporter=exporter,
        exporter_python=exporter_python, locked=locked, verify=verify, revision=revision, token=token,
    )  # fmt: skip
    hooks = exporting.Hooks(view.Watch(jsonl), DownloadBar(), view.consent(yes=yes))
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
