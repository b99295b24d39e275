"""The options of `edgellm export` alone. What each goes with is said in `app/export_options.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgellm.cli._options import FORMAT, OF_GGUF, OF_ONNX, option

Model = Annotated[str, typer.Argument(help="A catalogue name, user/repo, a Hub folder, or a GGUF file.")]
Draft = Annotated[
    str | None,
    option("--draft", "-d", help="The drafter, named alike; `self` cuts one out of the model.", metavar="MODEL"),
]
Format = Annotated[str, option("--format", help="gguf, or onnx for onnxruntime.", metavar="gguf|onnx", callback=FORMAT)]
Quant = Annotated[
    str | None,
    option(
        "--quant", help="Types to make, with commas: Q4_K_M,Q8_0,F16; of ONNX int4,int8,fp16,fp32.", metavar="TYPES"
    ),
]
DraftQuant = Annotated[
    str | None,
    option("--draft-quant", help="Types of the drafter.", show_default="as --quant", metavar="TYPES"),
]
DraftAdapter = Annotated[
    Path | None,
    option(
        "--adapter",
        exists=True,
        dir_okay=False,
        help="What the drafter learnt of its target, which becomes part of it; `edgellm cache show` names the file.",
        metavar="FILE",
    ),
]
Output = Annotated[
    Path | None,
    option("--output", "-o", help="The folder to make.", show_default="NAME-export", metavar="FOLDER"),
]
TrimVocab = Annotated[
    float | None,
    option(
        "--trim-vocab",
        min=0.001,
        max=1.0,
        help="Share of the drafter's vocabulary to keep.",
        metavar="X",
        panel=OF_GGUF,
    ),
]
TrimCorpus = Annotated[
    Path | None,
    option(
        "--trim-corpus",
        exists=True,
        dir_okay=False,
        help="Text whose tokens are kept first.",
        metavar="FILE",
        panel=OF_GGUF,
    ),
]
TrimInput = Annotated[
    bool,
    option(
        "--trim-input",
        help="Trim what the drafter reads too: a smaller file, fewer drafts accepted.",
        panel=OF_GGUF,
    ),
]
DropLayers = Annotated[
    str | None,
    option(
        "--drop-layers",
        help="Layers to leave out of the drafter, as in 4,8-11.",
        metavar="LAYERS",
        panel=OF_GGUF,
    ),
]
DraftHead = Annotated[
    str | None,
    option(
        "--draft-head",
        help="Type of the drafter's last matrix, as in Q4_0.",
        show_default="as is",
        metavar="TYPE",
        panel=OF_GGUF,
    ),
]
Imatrix = Annotated[
    Path | None,
    option(
        "--imatrix",
        exists=True,
        dir_okay=False,
        help="Importance matrix of the model (GGUF).",
        metavar="FILE",
        panel=OF_GGUF,
    ),
]
Converter = Annotated[
    str | None,
    option(
        "--converter",
        metavar="own|llama.cpp|PATH",
        help="Who converts: edgellm, llama.cpp's own script, or that of a checkout.",
        show_default="own where it knows the family, else llama.cpp",
        panel=OF_GGUF,
    ),
]
Base = Annotated[
    str | None,
    option(
        "--base",
        help="MODEL is an adapter (LoRA) for this one.",
        show_default="as it says itself",
        metavar="MODEL",
        panel=OF_GGUF,
    ),
]
Merge = Annotated[
    bool,
    option("--merge", help="One model of an adapter and its base, not an adapter's file.", panel=OF_GGUF),
]
Exporter = Annotated[
    str,
    option(
        "--exporter",
        help="Of ONNX: onnxruntime-genai's builder, or optimum.",
        metavar="builder|optimum",
        panel=OF_ONNX,
    ),
]
ExporterPython = Annotated[
    Path | None,
    option(
        "--exporter-python",
        exists=True,
        help="A Python that has the exporter's (or the converter's) packages.",
        metavar="FILE",
    ),
]
Locked = Annotated[
    bool,
    option("--locked", help="Repeat the export in --output; fail if a bit differs.", panel=OF_GGUF),
]
Verify = Annotated[
    bool | None,
    option("--verify/--no-verify", help="Check the result.", show_default="small models"),
]
Revision = Annotated[
    str | None,
    option("--revision", help="Commit, branch or tag of the model's repository.", metavar="REVISION"),
]
