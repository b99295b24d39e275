"""`edgellm adapt`: a drafter learns what its target says, and is used from then on where that makes it better."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgellm.app.defaults import DEFAULT_TARGET
from edgellm.cli import _options as opt
from edgellm.cli._completion import model_names
from edgellm.cli._listener import TERMINAL, Terminal
from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.app.adapting import Outcome, Progress

Target = Annotated[
    str | None,
    typer.Argument(
        envvar="EDGELLM_MODEL",
        show_envvar=False,
        show_default=False,
        help=f"Target: a catalogue name, user/repo[:QUANT], or a GGUF file; {DEFAULT_TARGET} if none is named.",
        autocompletion=model_names,
    ),
]
Draft = Annotated[
    str | None,
    opt.option(
        "--draft",
        "-d",
        help="The drafter that learns, of any vocabulary; the one that the catalogue recommends if not given.",
        metavar="MODEL",
    ),
]
Prompts = Annotated[
    Path | None,
    opt.option(
        "--prompts",
        "-f",
        help="Questions that the target answers: one a line, or JSON lines with `prompt`, `messages` or `turns`.",
        show_default="what chats left, and the target's own",
        metavar="FILE",
    ),
]
Minutes = Annotated[float, opt.option("--minutes", min=0.1, help="Most time, answers included.", metavar="M")]
Mem = Annotated[
    str | None,
    opt.option(
        "--mem",
        help="Most memory to take.",
        show_default="what the machine has free",
        metavar="SIZE",
        callback=opt.checked(opt.size),
    ),
]
Tokens = Annotated[
    int,
    opt.option(
        "--tokens", min=1000, help="Learn from so many tokens of answers that are new to the drafter.", metavar="N"
    ),
]
Output = Annotated[
    Path | None,
    opt.option("--output", "-o", help="Write what was learnt to a file as well, used or not.", metavar="FILE"),
]


def adapt(
    target: Target = None,
    draft: Draft = None,
    prompts: Prompts = None,
    minutes: Minutes = 30.0,
    tokens: Tokens = 30_000,
    mem: Mem = None,
    threads: opt.Threads = None,
    output: Output = None,
    offline: opt.Offline = False,
    quiet: opt.Quiet = False,
    json_: opt.Json = False,
) -> None:
    """Let a drafter learn its target on this machine: more of what it drafts is accepted, and answers stay the same.

    It learns from what the target answered in chats, from answers to your --prompts, or from questions that the target
    asks itself. What it learnt is used only where answers that it never saw are drafted better. An interrupted run goes
    on where it stopped.
    """
    from edgellm.app import adapting

    out.quiet = out.quiet or quiet
    job = adapting.prepare(
        target,
        draft,
        prompts=prompts,
        minutes=minutes,
        memory=mem,
        n_threads=threads,
        n_tokens=tokens,
        output=output,
        offline=offline,
        listener=TERMINAL,
    )
    out.note(f"{job.draft.name} learns from {job.target.name}, for {minutes:g} minutes at most")
    with _Line() as line:
        try:
            outcome = adapting.adapt(job, line, watch=line.see)
        except KeyboardInterrupt:
            line.erase()
            out.note(f"interrupted {line.where}: what was done is kept, and the same command goes on from there")
            raise
    _show(outcome, json_=json_)


def _show(outcome: Outcome, *, json_: bool) -> None:
    if json_:
        return out.json(outcome.to_json())
    result = outcome.result
    if result is not None and result.comparison is not None:
        old, new = result.comparison["old"], result.comparison["new"]
        out.table(
            ["", "before ", "after "],
            [
                ("tokens it would have said too", f"{old['agreement']:.1%}", f"{new['agreement']:.1%}"),
                ("accepted of 4 drafted", f"{old['accepted_of_4']:.2f}", f"{new['accepted_of_4']:.2f}"),
                ("tokens a pass", f"{old['tokens_per_pass']:.2f}", f"{new['tokens_per_pass']:.2f}"),
            ],
        )
        out.note(
            f"from {result.n_taught:,} answers ({result.n_tokens:,} tokens), judged by {result.n_judged} others, "
            f"in {_duration(outcome.seconds)}"
        )
    out.text(outcome.why)
    if result is not None and result.output is not None:
        out.note(f"written to {result.output}: `edgellm export --draft … --adapter` and `--draft-adapter` take it")
    elif outcome.adopted:
        out.note("`edgellm chat` uses it by itself; `--draft-adapter none` does without")


class _Line(Terminal):
    """A `Listener` that keeps one line of stderr on where it stands; where that is no terminal, a line now and then."""

    EVERY_S, REDRAWN_S = 30.0, 0.2

    def __init__(self) -> None:
        self.where = "before anything was learnt"
        self._is_live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not out.quiet
        self._told_s, self._kind, self._is_shown = 0.0, "", False

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *failure: object) -> None:
        self.erase()

    def see(self, progress: Progress) -> None:
        """An `adapting.Watcher`."""
        text, now = sentence(progress), time.monotonic()
        if progress.phase != "judging":
            self.where = f"while {progress.phase}"
        kind = f"{progress.phase} {progress.what} {progress.tokens_per_s is not None}"
        is_new, self._kind = kind != self._kind, kind
        if not is_new and now - self._told_s < (self.REDRAWN_S if self._is_live else self.EVERY_S):
            return
        self._told_s = now
        if self._is_live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\033[K{text[:width]}")
            sys.stderr.flush()
            self._is_shown = True
        else:
            out.note(text)

    def erase(self) -> None:
        if self._is_shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        self._is_shown = False

    def note(self, text: str) -> None:
        self.erase()
        super().note(text)

    def detail(self, text: str) -> None:
        self.erase()
        super().detail(text)

    def warning(self, text: str) -> None:
        self.erase()
        super().warning(text)

    def working(self, what: str) -> AbstractContextManager[object]:
        self.erase()
        return super().working(what)


def sentence(progress: Progress) -> str:
    """Where it stands: "answering: 12,040 of 30,000 tokens, 81 answers, 108 tok/s, 3 min left"."""
    parts = []
    if progress.phase == "answering" and progress.n_done >= progress.n_all > 0:
        return f"{progress.n_lessons:,} answers ({progress.n_done:,} tokens) to learn from"
    if progress.phase == "answering":
        wanted = f" of {progress.n_all:,}" if progress.n_all else ""
        parts += [f"{progress.n_done:,}{wanted} tokens", f"{progress.n_lessons:,} answers"]
    elif progress.phase == "learning" and progress.n_all:
        parts += [f"step {progress.n_done:,} of {progress.n_all:,}", f"{progress.n_lessons:,} answers"]
    if progress.tokens_per_s:
        parts.append(f"{progress.tokens_per_s:.0f} tok/s")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.seconds_left is not None:
        parts.append(f"{_duration(progress.seconds_left)} left")
    return f"{progress.phase}: {', '.join(parts)}" if parts else f"{progress.what or progress.phase} …"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
