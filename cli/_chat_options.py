"""The options of `edgellm chat`. Each has a variable too: EDGELLM_TOP_K=20 is `--top-k 20`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgellm.cli._lora import lora_option
from edgellm.cli._texts import texts_option

_SAMPLING, _DRAFTING, _ENGINE, _OUTPUT = "Sampling", "Drafting", "Engine", "Output"  # panels of --help
_THINKING = "Thinking"


def _option(flag: str, *short: str, help: str, panel: str | None = None, **more: Any) -> Any:
    variable = "EDGELLM_" + flag.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(flag, *short, envvar=variable, show_envvar=False, help=help, rich_help_panel=panel, **more)


Model = Annotated[
    str | None,
    typer.Argument(
        envvar="EDGELLM_MODEL",
        show_envvar=False,
        show_default=False,
        help="Target: a catalogue name, user/repo[:QUANT], or a file; qwen2.5-coder-1.5b-instruct if none is named.",
    ),
]
Lora = Annotated[
    list[str],
    typer.Option(  # typer would cut the variable at spaces
        "--lora",
        metavar="FILE[:SCALE]",
        help="Apply an adapter to the target, at SCALE times its strength. May be repeated; several in EDGELLM_LORA "
        "are quoted each.",
        callback=lora_option,
        rich_help_panel=_ENGINE,
    ),
]
Prompt = Annotated[str | None, _option("--prompt", "-p", help="Answer this once and leave.", metavar="TEXT")]
System = Annotated[str | None, _option("--system", "-s", help="System prompt.", metavar="TEXT")]
MaxTokens = Annotated[
    int | None,
    _option("--max-tokens", "-n", min=1, metavar="N", help="Most tokens of an answer and its thought."),
]
Stop = Annotated[
    list[str],
    typer.Option(  # typer would cut the variable at spaces
        "--stop",
        metavar="TEXT",
        help=r"End before this text; \n is a new line. May be repeated; several in EDGELLM_STOP are quoted each.",
        callback=texts_option("EDGELLM_STOP"),
    ),
]
Resume = Annotated[bool, _option("--resume", help="Go on with the conversation that was left last.")]

Think = Annotated[
    bool | None,
    _option(
        "--think/--no-think",
        help="Whether the model thinks before it answers; as its template has it if neither is given.",
        panel=_THINKING,
        show_default=False,
    ),
]
ThinkBudget = Annotated[
    int | None,
    _option("--think-budget", min=0, metavar="N", help="End a thought after so many tokens.", panel=_THINKING),
]

Draft = Annotated[
    str | None,
    _option(
        "--draft",
        "-d",
        help="A small model of any vocabulary, or `none`; the one that the catalogue recommends if not given.",
        metavar="MODEL",
        panel=_DRAFTING,
    ),
]
DraftTokens = Annotated[
    int | None,
    _option(
        "--draft-tokens",
        min=0,
        max=64,
        metavar="N",
        help="Draft so many tokens each time; what pays, by measured costs, if not given.",
        panel=_DRAFTING,
    ),
]
NoLearn = Annotated[
    bool, _option("--no-learn", help="Neither use nor keep what was learnt from earlier answers.", panel=_DRAFTING)
]
AssumeCost = Annotated[
    float | None,
    _option(
        "--assume-cost",
        min=0.0,
        metavar="X",
        help="Choose lengths as if n tokens took 1 + X (n - 1) times the pass of one.",
        panel=_DRAFTING,
    ),
]
NoCopy = Annotated[
    bool, _option("--no-copy", help="Do not draft by copying from what was said before.", panel=_DRAFTING)
]
MergedProbs = Annotated[
    bool,
    _option(
        "--merged-probs",
        help="When sampling, use OmniDraft's merged probabilities: more is accepted, exact only approximately.",
        panel=_DRAFTING,
    ),
]
Exact = Annotated[
    bool, _option("--exact", help="Use only batch sizes whose results agree in every bit.", panel=_DRAFTING)
]

Temp = Annotated[float, _option("--temp", "-t", metavar="T", help="0 is greedy.", panel=_SAMPLING)]
TopK = Annotated[int, _option("--top-k", metavar="K", help="0 keeps all.", panel=_SAMPLING)]
TopP = Annotated[float, _option("--top-p", metavar="P", help="1 keeps all.", panel=_SAMPLING)]
MinP = Annotated[float, _option("--min-p", metavar="P", help="0 keeps all.", panel=_SAMPLING)]
RepeatPenalty = Annotated[float, _option("--repeat-penalty", metavar="X", help="1 is off.", panel=_SAMPLING)]
Seed = Annotated[
    int | None,
    _option(
        "--seed",
        min=-1,
        metavar="N",
        help="Same seed, same answer; another one each time if -1 or not given.",
        panel=_SAMPLING,
    ),
]

Ctx = Annotated[
    int | None,
    _option(
        "--ctx",
        min=64,
        metavar="N",
        help="Context in tokens; 4096, or less where memory is short, if not given.",
        panel=_ENGINE,
    ),
]
OnFull = Annotated[
    str,
    _option(
        "--on-full",
        metavar="stop|shift",
        help="A full context ends the answer, or forgets the oldest turns.",
        panel=_ENGINE,
    ),
]
Kv = Annotated[
    str | None,
    _option(
        "--kv",
        metavar="TYPE",
        help="Type of the KV cache: f16, q8_0, q4_0 ...; f16, or less where memory is short, if not given.",
        panel=_ENGINE,
    ),
]
Budget = Annotated[
    str | None,
    _option(
        "--budget",
        metavar="SIZE",
        help="Most memory of this program; what the machine has free if not given.",
        panel=_ENGINE,
    ),
]
Plan = Annotated[
    Path | None, _option("--plan", metavar="FILE", help="Run what `edgellm plan --save FILE` planned.", panel=_ENGINE)
]
Threads = Annotated[
    int | None, _option("--threads", min=1, metavar="N", help="The physical cores if not given.", panel=_ENGINE)
]
GpuLayers = Annotated[
    int,
    _option("--gpu-layers", min=-1, metavar="N", help="Layers on the GPU; -1: all that it takes.", panel=_ENGINE),
]
Offline = Annotated[bool, _option("--offline", help="Use only what is on this disk.", panel=_ENGINE)]

Json = Annotated[bool, _option("--json", help="The answer as one JSON object.", panel=_OUTPUT)]
Jsonl = Annotated[bool, _option("--jsonl", help="A line of JSON for each event.", panel=_OUTPUT)]
