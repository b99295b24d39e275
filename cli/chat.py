"""`edgellm chat`: talk with a model, or let it answer once."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.export.store import ModelFile
    from edgellm.memory.plan import MemoryPlan
    from edgellm.runtime.chat import Answer, ChatSession
    from edgellm.runtime.engine import Engine
    from edgellm.runtime.planning import EngineOptions

_SAMPLING, _DRAFTING, _ENGINE, _OUTPUT = "Sampling", "Drafting", "Engine", "Output"  # panels of --help


def chat(
    model: str = typer.Argument(
        None,
        envvar="EDGELLM_MODEL",
        show_envvar=False,
        help="Target: a catalogue name, user/repo[:QUANT], or a file; qwen2.5-coder-1.5b-instruct if none is named.",
        show_default=False,
    ),
    prompt: str = typer.Option(
        None,
        "--prompt",
        "-p",
        envvar="EDGELLM_PROMPT",
        show_envvar=False,
        help="Answer this once and leave.",
        metavar="TEXT",
    ),
    system: str = typer.Option(
        None, "--system", "-s", envvar="EDGELLM_SYSTEM", show_envvar=False, help="System prompt.", metavar="TEXT"
    ),
    max_tokens: int = typer.Option(
        None,
        "--max-tokens",
        "-n",
        envvar="EDGELLM_MAX_TOKENS",
        show_envvar=False,
        min=1,
        metavar="N",
        help="Most tokens of an answer.",
    ),
    stop: list[str] = typer.Option(
        [],
        "--stop",
        envvar="EDGELLM_STOP",
        show_envvar=False,
        metavar="TEXT",
        help="End before this text; may be repeated.",
    ),
    draft: str = typer.Option(
        None,
        "--draft",
        "-d",
        envvar="EDGELLM_DRAFT",
        show_envvar=False,
        help="A small model of any vocabulary, or `none`; the one that the catalogue recommends if not given.",
        metavar="MODEL",
        rich_help_panel=_DRAFTING,
    ),
    draft_tokens: int = typer.Option(
        None,
        "--draft-tokens",
        envvar="EDGELLM_DRAFT_TOKENS",
        show_envvar=False,
        min=0,
        max=64,
        metavar="N",
        help="Draft so many tokens each time; what pays, by measured costs, if not given.",
        rich_help_panel=_DRAFTING,
    ),
    no_learn: bool = typer.Option(
        False,
        "--no-learn",
        envvar="EDGELLM_NO_LEARN",
        show_envvar=False,
        help="Neither use nor keep what was learnt from earlier answers.",
        rich_help_panel=_DRAFTING,
    ),
    assume_cost: float = typer.Option(
        None,
        "--assume-cost",
        envvar="EDGELLM_ASSUME_COST",
        show_envvar=False,
        min=0.0,
        metavar="X",
        help="Choose lengths as if n tokens took 1 + X (n - 1) times the pass of one.",
        rich_help_panel=_DRAFTING,
    ),
    no_copy: bool = typer.Option(
        False,
        "--no-copy",
        envvar="EDGELLM_NO_COPY",
        show_envvar=False,
        help="Do not draft by copying from what was said before.",
        rich_help_panel=_DRAFTING,
    ),
    merged_probs: bool = typer.Option(
        False,
        "--merged-probs",
        envvar="EDGELLM_MERGED_PROBS",
        show_envvar=False,
        help="When sampling, use OmniDraft's merged probabilities: more is accepted, exact only approximately.",
        rich_help_panel=_DRAFTING,
    ),
    exact: bool = typer.Option(
        False,
        "--exact",
        envvar="EDGELLM_EXACT",
        show_envvar=False,
        help="Use only batch sizes whose results agree in every bit.",
        rich_help_panel=_DRAFTING,
    ),
    temp: float = typer.Option(
        0.0,
        "--temp",
        "-t",
        envvar="EDGELLM_TEMP",
        show_envvar=False,
        metavar="T",
        help="0 is greedy.",
        rich_help_panel=_SAMPLING,
    ),
    top_k: int = typer.Option(
        40,
        "--top-k",
        envvar="EDGELLM_TOP_K",
        show_envvar=False,
        metavar="K",
        help="0 keeps all.",
        rich_help_panel=_SAMPLING,
    ),
    top_p: float = typer.Option(
        0.95,
        "--top-p",
        envvar="EDGELLM_TOP_P",
        show_envvar=False,
        metavar="P",
        help="1 keeps all.",
        rich_help_panel=_SAMPLING,
    ),
    min_p: float = typer.Option(
        0.05,
        "--min-p",
        envvar="EDGELLM_MIN_P",
        show_envvar=False,
        metavar="P",
        help="0 keeps all.",
        rich_help_panel=_SAMPLING,
    ),
    repeat_penalty: float = typer.Option(
        1.0,
        "--repeat-penalty",
        envvar="EDGELLM_REPEAT_PENALTY",
        show_envvar=False,
        metavar="X",
        help="1 is off.",
        rich_help_panel=_SAMPLING,
    ),
    seed: int = typer.Option(
        None,
        "--seed",
        envvar="EDGELLM_SEED",
        show_envvar=False,
        min=0,
        metavar="N",
        help="Same seed, same answer; another one each time if not given.",
        rich_help_panel=_SAMPLING,
    ),
    ctx: int = typer.Option(
        None,
        "--ctx",
        envvar="EDGELLM_CTX",
        show_envvar=False,
        min=64,
        metavar="N",
        help="Context in tokens; 4096, or less where memory is short, if not given.",
        rich_help_panel=_ENGINE,
    ),
    on_full: str = typer.Option(
        "stop",
        "--on-full",
        envvar="EDGELLM_ON_FULL",
        show_envvar=False,
        metavar="stop|shift",
        help="A full context ends the answer, or forgets the oldest turns.",
        rich_help_panel=_ENGINE,
    ),
    kv: str = typer.Option(
        None,
        "--kv",
        envvar="EDGELLM_KV",
        show_envvar=False,
        metavar="TYPE",
        help="Type of the KV cache: f16, q8_0, q4_0 ...; f16, or less where memory is short, if not given.",
        rich_help_panel=_ENGINE,
    ),
    budget: str = typer.Option(
        None,
        "--budget",
        envvar="EDGELLM_BUDGET",
        show_envvar=False,
        metavar="SIZE",
        help="Most memory of this program; what the machine has free if not given.",
        rich_help_panel=_ENGINE,
    ),
    plan: Path = typer.Option(
        None,
        "--plan",
        envvar="EDGELLM_PLAN",
        show_envvar=False,
        metavar="FILE",
        help="Run what `edgellm plan --save FILE` planned.",
        rich_help_panel=_ENGINE,
    ),
    threads: int = typer.Option(
        None,
        "--threads",
        envvar="EDGELLM_THREADS",
        show_envvar=False,
        min=1,
        metavar="N",
        help="The physical cores if not given.",
        rich_help_panel=_ENGINE,
    ),
    gpu_layers: int = typer.Option(
        -1,
        "--gpu-layers",
        envvar="EDGELLM_GPU_LAYERS",
        show_envvar=False,
        min=-1,
        metavar="N",
        help="Layers on the GPU; -1: all that it takes.",
        rich_help_panel=_ENGINE,
    ),
    offline: bool = typer.Option(
        False,
        "--offline",
        envvar="EDGELLM_OFFLINE",
        show_envvar=False,
        help="Use only what is on this disk.",
        rich_help_panel=_ENGINE,
    ),
    json_: bool = typer.Option(
        False,
        "--json",
        envvar="EDGELLM_JSON",
        show_envvar=False,
        help="The answer as one JSON object.",
        rich_help_panel=_OUTPUT,
    ),
    jsonl: bool = typer.Option(
        False,
        "--jsonl",
        envvar="EDGELLM_JSONL",
        show_envvar=False,
        help="A line of JSON for each event.",
        rich_help_panel=_OUTPUT,
    ),
) -> None:
    """Talk with a model while a small one drafts ahead; the text is what the model alone would write.

    With --prompt, or with text piped in, it answers once: the answer on stdout, all else on stderr.

    Every option can be set in the environment too: EDGELLM_TOP_K=20 is --top-k 20.
    """
    from edgellm.cli._models import asked_bytes, check_kv, drafting_options, resolve_pair
    from edgellm.cli._plans import models_of, read_plan
    from edgellm.cli._terminal import silent_keys
    from edgellm.runtime.chat import ChatSession
    from edgellm.runtime.planning import EngineOptions
    from edgellm.runtime.sampling import Sampling

    if json_ and jsonl:
        raise typer.BadParameter("take one of --json and --jsonl")
    if on_full not in ("stop", "shift"):
        raise typer.BadParameter(f"{on_full!r} is no policy for a full context: take stop or shift")
    planned = read_plan(plan, ctx=ctx, kv=kv, draft_tokens=draft_tokens) if plan else None
    if planned is not None:
        model, draft = models_of(planned, model, draft)
    question = _question(prompt)
    if question is None and (json_ or jsonl or not sys.stdout.isatty()):
        raise typer.BadParameter("a conversation needs a terminal: give --prompt TEXT, or pipe the text in")
    sampling = Sampling(
        temperature=temp, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=repeat_penalty, seed=seed
    )
    options = EngineOptions(
        n_ctx=ctx,
        copy=not no_copy,
        **drafting_options(draft_tokens, learn=not no_learn, assume_cost=assume_cost, merged_probs=merged_probs),
        exact=exact,
        kv=check_kv(kv) if kv is not None else None,
        n_threads=threads,
        n_gpu_layers=gpu_layers,
        budget_bytes=asked_bytes(budget),
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an output in another encoding gets what it can show
    target, drafter = resolve_pair(model, draft, offline=offline)
    with silent_keys(), _load(target, drafter, options, planned) as engine:
        session = ChatSession(
            engine,
            system=system,
            sampling=sampling,
            stop=stop,
            on_full="shift" if on_full == "shift" else "stop",
        )
        if question is None:
            _talk(session, target, drafter, max_tokens)
        else:
            form = _Json(target, drafter) if json_ else _JsonLines(target, drafter) if jsonl else _Plain()
            _answer_once(session, question, max_tokens, form)
        if engine.controller is not None:
            out.detail(f"drafting: {engine.controller.explain()}")


def _question(prompt: str | None) -> str | None:
    """The prompt, what is piped in, or the one followed by the other; None where the terminal will ask."""
    parts = [] if prompt is None else [prompt]
    if _is_piped():
        with contextlib.suppress(OSError):  # Windows waits for sockets alone
            if not select.select([sys.stdin], [], [], 1.0)[0]:
                out.note("waiting for text on standard input (`< /dev/null` does without)")
        parts.append(sys.stdin.buffer.read().decode("utf-8", "replace").rstrip("\n"))
    elif prompt is None:
        if sys.stdin.isatty():
            return None
        parts.append("")
    text = "\n\n".join(filter(str.strip, parts)).encode("utf-8", "replace").decode("utf-8")
    if not text:
        raise typer.BadParameter("there is nothing to answer: give --prompt TEXT, or pipe some text in")
    return text


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file; /dev/null and closed input are neither."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


@contextlib.contextmanager
def _load(
    target: ModelFile, drafter: ModelFile | None, options: EngineOptions, plan: MemoryPlan | None
) -> Iterator[Engine]:
    from edgellm.cli._terminal import waiting
    from edgellm.runtime.engine import load

    if out.verbose:
        log = logging.getLogger("edgellm.llama_cpp")
        log.setLevel(logging.DEBUG)
        log.addHandler(logging.StreamHandler())
    with waiting(f"loading {target.name} …"):
        engine = load(target.path, drafter.path if drafter else None, options, plan=plan)
    with engine:
        for note in engine.notes:
            out.detail(note)
        for warning in engine.warnings:
            out.warning(warning)
        yield engine


def _talk(session: ChatSession, target: ModelFile, drafter: ModelFile | None, max_tokens: int | None) -> None:
    from edgellm.cli._talk import Talk
    from edgellm.cli._terminal import dim
    from edgellm.export.store import home

    with_drafter = f", drafted by {drafter.name}" if drafter else ""
    out.note(f"{target.name}{with_drafter}, context {session.engine.backend.n_ctx:,} tokens")
    out.note(dim("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves"))
    Talk(session, target, drafter, max_tokens).run(home() / "history")


def _answer_once(session: ChatSession, question: str, max_tokens: int | None, form: _Plain) -> None:
    from edgellm.cli._talk import forgotten_line, status_line
    from edgellm.cli._terminal import dim, interrupts, waiting

    form.start()
    with interrupts(session.engine.stop_asked), waiting("…") as erase:
        for piece in session.reply(question, max_tokens=max_tokens):
            erase()
            form.text(piece)
    answer = session.last
    assert answer is not None
    form.end(answer)
    if sys.stderr.isatty() and answer.stats.n_rounds:
        out.note(dim(status_line(answer, session)))
    if answer.n_forgotten:
        out.note(forgotten_line(answer))
    if answer.finish_reason == "interrupted":
        raise KeyboardInterrupt


class _Plain:
    """The answer's text as it comes."""

    def __init__(self) -> None:
        from edgellm.cli._talk import AnswerText

        self._shown = AnswerText()

    def start(self) -> None:
        pass

    def text(self, piece: str) -> None:
        self._shown.write(piece)

    def end(self, answer: Answer) -> None:
        self._shown.end()


class _Json(_Plain):
    """One object at the end."""

    def __init__(self, target: ModelFile, drafter: ModelFile | None) -> None:
        self._models = {"target": target.reference, "draft": drafter.reference if drafter else None}

    def text(self, piece: str) -> None:
        pass

    def end(self, answer: Answer) -> None:
        out.json(self._result(answer))

    def _result(self, answer: Answer) -> dict[str, Any]:
        result = {"text": answer.text, "finish_reason": answer.finish_reason, "n_forgotten": answer.n_forgotten}
        return result | self._models | {"stats": answer.stats.to_json()}


class _JsonLines(_Json):
    """An event for the start, for each piece of text, and for the end, which repeats the whole."""

    def start(self) -> None:
        out.jsonl({"event": "start", **self._models})

    def text(self, piece: str) -> None:
        out.jsonl({"event": "text", "text": piece})

    def end(self, answer: Answer) -> None:
        out.jsonl({"event": "end", **self._result(answer)})
