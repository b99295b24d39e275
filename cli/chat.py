"""`edgellm chat`: talk with a model, or let it answer once."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import typer

from edgellm.cli import _options as opt
from edgellm.cli._output import out
from edgellm.cli._sampling_options import ChosenSampling, takes_sampling
from edgellm.cli._worker_options import Workers

if TYPE_CHECKING:
    from edgellm.app.loading import Pair
    from edgellm.cli._answers import Plain
    from edgellm.cli._talk import Around, Talk
    from edgellm.runtime.conversation import ChatSession
    from edgellm.runtime.engine import Engine
    from edgellm.runtime.text.guidance import Grammar


@takes_sampling()
def chat(
    model: opt.Model = None,
    prompt: opt.Prompt = None,
    lora: opt.Lora = [],  # noqa: B006
    system: opt.System = None,
    max_tokens: opt.MaxTokens = None,
    stop: opt.Stop = [],  # noqa: B006
    schema: opt.Schema = None,
    grammar: opt.Grammar = None,
    resume: opt.Resume = False,
    think: opt.Think = None,
    think_budget: opt.ThinkBudget = None,
    draft: opt.Draft = None,
    draft_adapter: opt.DraftAdapter = None,
    adapt: opt.Adapt = "off",
    draft_tokens: opt.DraftTokens = None,
    no_learn: opt.NoLearn = False,
    assume_cost: opt.AssumeCost = None,
    no_copy: opt.NoCopy = False,
    merged_probs: opt.MergedProbs = False,
    exact: opt.Exact = False,
    sampling: ChosenSampling = {},  # noqa: B006
    ctx: opt.Ctx = None,
    on_full: opt.OnFull = "stop",
    kv: opt.Kv = None,
    budget: opt.Budget = None,
    plan: opt.Plan = None,
    threads: opt.Threads = None,
    main_device: opt.MainDevice = "auto",
    gpu_layers: opt.GpuLayers = -1,
    draft_device: opt.DraftDevice = "auto",
    draft_gpu_layers: opt.DraftGpuLayers = -1,
    workers: Workers = None,
    offline: opt.Offline = False,
    json_: opt.Json = False,
    jsonl: opt.Jsonl = False,
) -> None:
    """Talk with a model while a small one drafts ahead; the text is what the model alone would write.

    With --prompt, or with text piped in, it answers once: the answer on stdout, all else on stderr.
    """
    from edgellm.app.defaults import asked_bytes, cache_type, drafting_options
    from edgellm.app.loading import prepare
    from edgellm.cli._listener import TERMINAL
    from edgellm.cli._terminal import silent_keys
    from edgellm.runtime.bringup.planning import EngineOptions

    opt.exclusive(json=json_, jsonl=jsonl)
    opt.exclusive(schema=schema is not None, grammar=grammar is not None)
    question = _question(prompt)
    if question is None and (json_ or jsonl or not sys.stdout.isatty()):
        raise typer.BadParameter("a conversation needs a terminal: give --prompt TEXT, or pipe the text in")
    _check_resumable(resume)
    options = EngineOptions(
        n_ctx=ctx,
        copy=not no_copy,
        **drafting_options(draft_tokens, learn=not no_learn, assume_cost=assume_cost, merged_probs=merged_probs),
        exact=exact,
        kv=cache_type(kv),
        n_threads=threads,
        main_device=main_device,
        n_gpu_layers=gpu_layers,
        draft_device=draft_device,
        n_draft_gpu_layers=draft_gpu_layers,
        workers=cast("tuple[str, ...]", workers or ()),
        budget_bytes=asked_bytes(budget),
    )
    pair = prepare(
        model,
        draft,
        options,
        plan=plan,
        loras=lora,
        draft_adapter=draft_adapter,
        offline=offline,
        listener=TERMINAL,
    )
    _log_engine()
    held = cast("Grammar | None", schema or grammar)
    shift = on_full == "shift"
    asked = _Asked(question, system, max_tokens, stop, shift, think, think_budget, sampling, resume, adapt, held)
    if workers and adapt != "off":
        raise typer.BadParameter("--adapt trains beside a model that is whole here: leave out --workers or --adapt")
    with silent_keys(), pair.open(TERMINAL) as engine:
        _converse(engine, pair, asked, form=_form(json_, jsonl, pair))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is said to the model, and how it is to answer."""

    question: str | None  # None: a conversation in the terminal
    system: str | None
    max_tokens: int | None
    stop: list[str]
    shift: bool  # forget the oldest turns where the context is full
    think: bool | None
    think_budget: int | None
    sampling: Mapping[str, Any]
    resume: bool
    adapt: str
    grammar: Grammar | None  # what the answers are held to


def _check_resumable(resume: bool) -> None:
    from edgellm.app.conversations import BadConversation, kept_path

    if resume and not kept_path().exists():
        raise BadConversation("there is no conversation to resume: one is kept when a chat in a terminal is left")


def _form(json_: bool, jsonl: bool, pair: Pair) -> Plain:
    """How an answer is shown."""
    from edgellm.cli._answers import Json, JsonLines, Plain

    kind = Json if json_ else JsonLines if jsonl else None
    return kind(pair) if kind is not None else Plain()


def _converse(engine: Engine, pair: Pair, asked: _Asked, *, form: Plain) -> None:
    from edgellm.app.conversations import kept_path
    from edgellm.cli._talk import Talk
    from edgellm.runtime.conversation import ChatSession
    from edgellm.runtime.sampling import Sampling

    session = ChatSession(
        engine,
        system=asked.system,
        sampling=Sampling(**asked.sampling),
        stop=asked.stop,
        on_full="shift" if asked.shift else "stop",
        think=asked.think,
        think_budget=asked.think_budget,
        constraint=asked.grammar.of(engine.model.vocabulary) if asked.grammar is not None else None,
    )
    if note := session.thinking.about():
        out.warning(note)
    talk = Talk(session, pair.target, pair.draft, asked.max_tokens, kept=kept_path())
    if asked.question is None:
        talk.reopen = functools.partial(_reopen, session, pair, asked)
        try:
            with _learning(session, pair, asked.adapt) as talk.around:
                _talk(talk, resume=asked.resume)
        finally:
            session.engine.close()
    else:
        if asked.resume:
            talk.resume()
        try:
            _answer_once(session, asked.question, asked.max_tokens, form)
        finally:
            if asked.resume:
                talk.keep()
    if session.engine.controller is not None:
        out.detail(f"drafting: {session.engine.controller.explain()}")


def _reopen(session: ChatSession, pair: Pair, asked: _Asked) -> None:
    """The models anew, on the workers and devices that are left; the conversation stays."""
    from edgellm.cli._listener import TERMINAL

    session.engine.close()
    session.engine = pair.reopen(TERMINAL, processor=session.engine.model.has_failed)
    if asked.grammar is not None:
        session.constraint = asked.grammar.of(session.engine.model.vocabulary)


@contextlib.contextmanager
def _learning(session: ChatSession, pair: Pair, adapt: str) -> Iterator[Around]:
    """What goes around each answer, so that the drafter learns between them."""
    from edgellm.app.defaults import BadSetting
    from edgellm.app.idle_adapting import IdleAdapting
    from edgellm.app.next_training import IdleBounds
    from edgellm.cli._listener import DIM

    with contextlib.ExitStack() as stack:
        around: Around = contextlib.nullcontext
        if adapt != "off":
            bounds = IdleBounds(on_battery=adapt == "battery")
            try:
                around = stack.enter_context(IdleAdapting(session, pair, bounds, DIM)).answering
            except BadSetting as error:
                out.warning(f"the drafter does not learn: {error}")
        yield around


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


def _log_engine() -> None:
    """With --verbose, the engine's own log on stderr."""
    if out.verbose:
        log = logging.getLogger("edgellm.llama_cpp")
        log.setLevel(logging.DEBUG)
        log.addHandler(logging.StreamHandler())


def _talk(talk: Talk, *, resume: bool) -> None:
    from edgellm.cli._terminal import dim
    from edgellm.memory.folders import home

    own = ", drafted by its own head" if talk.session.engine.drafts_itself else ""
    with_drafter = f", drafted by {talk.draft.name}" if talk.draft else own
    out.note(f"{talk.target.name}{with_drafter}, context {talk.session.engine.backend.n_ctx:,} tokens")
    if talk.session.engine.template.reads_last:
        out.note(dim("it has an encoder: each message is a request of its own, and nothing said before is read"))
    out.note(dim("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves"))
    if resume:
        talk.resume()
    talk.run(home() / "history")


def _answer_once(session: ChatSession, question: str, max_tokens: int | None, form: Plain) -> None:
    from edgellm.cli._status import forgotten_line, incomplete_line, status_line, unanswered_line
    from edgellm.cli._terminal import dim, interrupts, waiting

    form.start()
    cancel = threading.Event()
    with interrupts(cancel), waiting("…") as erase:

        def on_thought(piece: str) -> None:
            erase()
            form.thought(piece)

        for piece in session.reply(question, max_tokens=max_tokens, cancel=cancel, on_thought=on_thought):
            erase()
            form.text(piece)
    answer = session.last
    assert answer is not None
    form.end(answer)
    if sys.stderr.isatty() and answer.stats.n_rounds:
        out.note(dim(status_line(answer, session)))
    if answer.n_forgotten:
        out.note(forgotten_line(answer))
    out.warnings(session.engine.warnings)
    if answer.finish_reason != "interrupted" and (line := unanswered_line(answer)):
        out.note(line)
    if session.constraint is not None and (line := incomplete_line(answer)):
        out.warning(line)
    if answer.finish_reason == "interrupted":
        raise KeyboardInterrupt
