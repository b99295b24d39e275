"""The options that several commands share, and those of `edgellm chat`, each declared once.

`_variables.py` gives each its environment variable.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from edgellm.app.defaults import DEFAULT_TARGET
from edgellm.cli._texts import unescaped
from edgellm.cli._variables import is_typed
from edgellm.memory.errors import EdgellmError
from edgellm.memory.limits import N_CTX, N_CTX_MAX, N_CTX_MIN, N_DRAFT_MAX, N_PARALLEL_MAX, N_UBATCH_MAX

# Panels of --help.
SAMPLING, DRAFTING, ENGINE, OUTPUT, THINKING = "Sampling", "Drafting", "Engine", "Output", "Thinking"
OF_GGUF, OF_ONNX = "Of --format gguf", "Of --format onnx"


def option(flag: str, *short: str, help: str, panel: str | None = None, **more: Any) -> Any:
    return typer.Option(flag, *short, help=help, rich_help_panel=panel, **more)


def checked(check: Callable[[Any], Any]) -> Callable[..., Any]:
    """A callback that gives what `check` makes of the value; a failure names the variable that the value is from."""

    def callback(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        try:
            return None if value is None else check(value)
        except EdgellmError as error:
            if is_typed(ctx, str(param.name)):
                raise
            raise typer.BadParameter(str(error)) from error

    return callback


def one_of(*words: str, what: str) -> Callable[..., Any]:
    """A callback that takes one of `words`."""

    def check(value: str) -> str:
        if value not in words:
            raise typer.BadParameter(f"{value!r} is no {what}: take {' or '.join(words)}")
        return value

    return checked(check)


FORMAT = one_of("gguf", "onnx", what="format")


def exclusive(**given: bool) -> None:
    """Raises typer.BadParameter: two of these were given, as `--json` and `--jsonl`."""
    if sum(given.values()) > 1:
        raise typer.BadParameter(f"take one of {' and '.join(f'--{name}' for name in given)}")


def _kv_type(word: str) -> str | None:
    from edgellm.app.defaults import cache_type

    return cache_type(word)


def _held(name: str) -> Callable[..., Any]:
    """A callback that gives what a function of `app/constraints.py`, imported when it is used, makes of the value."""
    return checked(lambda said: getattr(import_module("edgellm.app.constraints"), name)(said))


def size(text: str) -> str:
    """Memory as people write it, found to be some. Raises BadSize."""
    from edgellm.memory.units import parse_memory

    parse_memory(text)
    return text


# Models.
Model = Annotated[
    str | None,
    typer.Argument(
        envvar="EDGELLM_MODEL",
        show_envvar=False,
        show_default=False,
        help=f"Target: a catalogue name, user/repo[:QUANT], or a file; {DEFAULT_TARGET} if none is named.",
    ),
]
Draft = Annotated[
    str | None,
    option(
        "--draft",
        "-d",
        help="A small model of any vocabulary, `mtp` for the head inside the target's file, or `none`; that head, or "
        "else the one that the catalogue recommends, if not given.",
        metavar="MODEL",
        panel=DRAFTING,
    ),
]
DraftAdapter = Annotated[
    str | None,
    option(
        "--draft-adapter",
        help="What the drafter learnt of the target: a file, or `none`; what it learnt here, or else comes with "
        "edgellm, if not given.",
        metavar="FILE|none",
        panel=DRAFTING,
    ),
]
Lora = Annotated[
    list[str],
    option(
        "--lora",
        metavar="FILE[:SCALE]",
        help="Apply an adapter to the target, at SCALE times its strength. May be repeated; several in the variable "
        "are quoted each.",
        panel=ENGINE,
    ),
]
Offline = Annotated[bool, option("--offline", help="Use only what is on this disk.", panel=ENGINE)]
Token = Annotated[
    str | None, option("--token", help="For gated repositories of the Hub.", show_default="HF_TOKEN", metavar="TOKEN")
]

# The engine and its memory.
Ctx = Annotated[
    int | None,
    option(
        "--ctx",
        "-c",
        min=N_CTX_MIN,
        max=N_CTX_MAX,
        metavar="N",
        help=f"Context in tokens; {N_CTX}, or less where memory is short, if not given.",
        panel=ENGINE,
    ),
]
Kv = Annotated[
    str | None,
    option(
        "--kv",
        metavar="TYPE",
        help="Type of the KV cache: f16, q8_0, q4_0 ...; f16, or less where memory is short, if not given.",
        callback=checked(_kv_type),
        panel=ENGINE,
    ),
]
Budget = Annotated[
    str | None,
    option(
        "--budget",
        metavar="SIZE",
        help="Most memory of this program; what the machine has free if not given.",
        callback=checked(size),
        panel=ENGINE,
    ),
]
Mem = Annotated[
    str | None,
    option(
        "--mem",
        metavar="SIZE",
        help="Plan for a device with this memory (6GB, 6GiB), half of it a program's; an export then makes the most "
        "exact type that fits.",
        callback=checked(size),
        panel=ENGINE,
    ),
]
DeviceName = Annotated[
    str | None,
    option("--device", help="Plan for a device of `edgellm devices`.", metavar="NAME", panel=ENGINE),
]
Parallel = Annotated[
    int,
    option(
        "--parallel",
        min=1,
        max=N_PARALLEL_MAX,
        help="Conversations at once, each with a context of its own.",
        metavar="N",
        panel=ENGINE,
    ),
]
PrefixCache = Annotated[
    str | None,
    option(
        "--prefix-cache",
        metavar="SIZE",
        help="Keep what was read of long beginnings on the disk, so much at most, for when the server is started anew.",
        callback=checked(size),
        panel=ENGINE,
    ),
]
Ubatch = Annotated[
    int | None, option("--ubatch", min=1, max=N_UBATCH_MAX, help="Tokens computed at once.", metavar="N", panel=ENGINE)
]
Plan = Annotated[
    Path | None, option("--plan", metavar="FILE", help="Run what `edgellm plan --save FILE` planned.", panel=ENGINE)
]
Threads = Annotated[
    int | None, option("--threads", min=1, metavar="N", help="The physical cores if not given.", panel=ENGINE)
]
GpuLayers = Annotated[
    int,
    option("--gpu-layers", min=-1, metavar="N", help="Layers on the main device; -1: all that it takes.", panel=ENGINE),
]
MainDevice = Annotated[
    str,
    option(
        "--main-device",
        metavar="NAME",
        help="Where the model runs: a name of `edgellm devices --here`, cpu, or auto: a GPU where there is one.",
        panel=ENGINE,
    ),
]
DraftGpuLayers = Annotated[
    int,
    option(
        "--draft-gpu-layers", min=-1, metavar="N", help="The drafter's layers on its device; -1: all.", panel=ENGINE
    ),
]
DraftDevice = Annotated[
    str,
    option(
        "--draft-device",
        metavar="NAME",
        help="Where the drafter runs, likewise; auto: the processor, if it is small.",
        panel=ENGINE,
    ),
]
OnFull = Annotated[
    str,
    option(
        "--on-full",
        metavar="stop|shift",
        help="A full context ends the answer, or forgets the oldest turns.",
        callback=one_of("stop", "shift", what="policy for a full context"),
        panel=ENGINE,
    ),
]

# Drafting.
DraftTokens = Annotated[
    int | None,
    option(
        "--draft-tokens",
        "-k",
        min=0,
        max=N_DRAFT_MAX,
        metavar="N",
        help="Draft so many tokens a round; what pays, by measured costs, if not given.",
        panel=DRAFTING,
    ),
]
NoLearn = Annotated[
    bool, option("--no-learn", help="Neither use nor keep what was learnt from earlier answers.", panel=DRAFTING)
]
AssumeCost = Annotated[
    float | None,
    option(
        "--assume-cost",
        min=0.0,
        metavar="X",
        help="Choose lengths as if n tokens took 1 + X (n - 1) times the pass of one; 0.05: 5 % for each further one.",
        panel=DRAFTING,
    ),
]
NoCopy = Annotated[bool, option("--no-copy", help="Do not draft by copying from what was said before.", panel=DRAFTING)]
MergedProbs = Annotated[
    bool,
    option(
        "--merged-probs",
        help="When sampling, use OmniDraft's merged probabilities: more is accepted, exact only approximately.",
        panel=DRAFTING,
    ),
]
Adapt = Annotated[
    str,
    option(
        "--adapt",
        metavar="off|idle|battery",
        help="Let the drafter learn between the answers of a conversation: not at all, while nobody waits, or on a "
        "battery too.",
        callback=one_of("off", "idle", "battery", what="time to learn"),
        panel=DRAFTING,
    ),
]
Exact = Annotated[
    bool, option("--exact", help="Use only batch sizes whose results agree in every bit.", panel=DRAFTING)
]

# The conversation.
Prompt = Annotated[str | None, option("--prompt", "-p", help="Answer this once and leave.", metavar="TEXT")]
System = Annotated[str | None, option("--system", "-s", help="System prompt.", metavar="TEXT")]
MaxTokens = Annotated[
    int | None, option("--max-tokens", "-n", min=1, metavar="N", help="Most tokens of an answer and its thought.")
]
Stop = Annotated[
    list[str],
    option(
        "--stop",
        metavar="TEXT",
        help=r"End before this text; \n is a new line. May be repeated; several in the variable are quoted each.",
        callback=checked(lambda texts: list(map(unescaped, texts))),
    ),
]
# The callbacks of these give what `app/constraints.py` read: a file may be a pipe, which can be read once.
Schema = Annotated[
    str | None,
    option(
        "--schema",
        metavar="FILE|JSON",
        help="Hold the answer to a JSON schema, or json_object.",
        callback=_held("schema_said"),
    ),
]
Grammar = Annotated[
    str | None,
    option(
        "--grammar",
        metavar="FILE|TEXT",
        help="Hold it to a Lark or GBNF grammar, or /regex/.",
        callback=_held("grammar_said"),
    ),
]
Resume = Annotated[bool, option("--resume", help="Go on with the conversation that was left last.")]
Think = Annotated[
    bool | None,
    option(
        "--think/--no-think",
        help="Whether the model thinks before it answers; as its template has it if neither is given.",
        panel=THINKING,
        show_default=False,
    ),
]
ThinkBudget = Annotated[
    int | None,
    option("--think-budget", min=0, metavar="N", help="End a thought after so many tokens.", panel=THINKING),
]

# What is shown and written.
Json = Annotated[bool, option("--json", help="Print one JSON document.", panel=OUTPUT)]
Jsonl = Annotated[bool, option("--jsonl", help="Print a line of JSON for each event.", panel=OUTPUT)]
Quiet = Annotated[bool, option("--quiet", "-q", help="Only data and errors.")]
Yes = Annotated[bool, option("--yes", "-y", help="Do not ask.")]
