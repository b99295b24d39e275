"""`edgellm export` and `edgellm verify`: from the Hub to a folder of device files, and the check of such a folder."""

from __future__ import annotations

from pathlib import Path

import typer


def export(
    context: typer.Context,
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
    from edgellm.app import exporting
    from edgellm.app.export_options import ExportRequest
    from edgellm.cli import _export_view as view
    from edgellm.cli._models import asked_bytes
    from edgellm.cli._pair import judge, tabulate
    from edgellm.cli._progress import DownloadBar

    asked_bytes(mem)  # answers are in its units
    request = ExportRequest(
        model, format=format_, output=output, draft=draft, quant=quant, draft_quant=draft_quant, mem=mem, ctx=ctx,
        trim_vocab=trim_vocab, trim_corpus=trim_corpus, trim_input=trim_input, drop_layers=drop_layers,
        draft_head=draft_head, imatrix=imatrix, converter=converter, base=base, merge=merge, exporter=exporter,
        exporter_python=exporter_python, locked=locked, verify=verify, revision=revision, token=token,
    )  # fmt: skip
    hooks = exporting.Hooks(view.Watch(jsonl), DownloadBar(), view.consent(yes=yes), judge, tabulate)
    with view.usage():
        done = exporting.export(request, hooks, view.typed(context))
    view.show_export(done, json_=json_, jsonl=jsonl)


def verify(
    folder: Path = typer.Argument(exists=True, file_okay=False, help="A folder made by `export` or `bundle`."),
    json_: bool = typer.Option(False, "--json", help="Print the manifest."),
) -> None:
    """Check every file of an exported folder against its manifest."""
    from edgellm.cli import _export_view as view
    from edgellm.export import manifest

    view.show(manifest.verify(folder), folder, json_=json_)


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
    from edgellm.cli import _export_view as view
    from edgellm.export.bundle import pack

    made = pack(folder, output, quant=quant, draft_quant=draft_quant, ort=ort, expected_format=format_)
    view.show(made, output, json_=json_)
