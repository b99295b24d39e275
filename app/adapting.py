"""A drafter learns its target: which models and lessons, for how long, in which child, one at a time for a pair."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgellm.app.adapt_jobs import MINUTES, N_TOKENS, TALKING_SHARE, Phase, Watcher, talk_order, training_order
from edgellm.app.adapt_jobs import AdaptError as AdaptError
from edgellm.app.adapt_jobs import AdaptJob as AdaptJob
from edgellm.app.adapt_jobs import Outcome as Outcome
from edgellm.app.adapt_jobs import Progress as Progress
from edgellm.app.adapt_jobs import alone as alone
from edgellm.app.background import Background, BackgroundError
from edgellm.app.defaults import BadSetting, asked_bytes
from edgellm.app.listener import SILENCE, Listener
from edgellm.runtime.distillation.orders import ENVIRONMENT, TALKING, TRAINING, Result

END_S = 0.05  # that somebody who leaves or asks waits for a child to be gone


def prepare(
    model: str | None = None,
    draft: str | None = None,
    *,
    prompts: Path | None = None,
    minutes: float = MINUTES,
    memory: str | None = None,
    n_threads: int | None = None,
    n_tokens: int = N_TOKENS,
    output: Path | None = None,
    offline: bool = False,
    listener: Listener = SILENCE,
) -> AdaptJob:
    """The files of a pair, fetched where they are not here, and the bounds of a training.

    Args:
        model, draft: as for `load`.
        memory: as people write it.
        n_threads: None: the cores that this process may use.

    Raises:
        BadSetting: there is no drafter, one of the two is no GGUF file, or the prompts are not there.
        BadReference, UnknownModel, NotHere, PullError: as `resolve_pair`.
    """
    from edgellm.app.drafter_adapters import pick
    from edgellm.app.own_heads import is_head
    from edgellm.app.references import resolve_pair
    from edgellm.memory.cpu import usable_cores

    mem_bytes = asked_bytes(memory)
    if prompts is not None and not prompts.is_file():
        raise BadSetting(f"--prompts {prompts} is no file that is here")
    target, drafter = resolve_pair(model, draft, offline=offline, listener=listener)
    if drafter is None:
        raise BadSetting(f"nothing drafts for {target.name}, so nothing can learn from it: name a --draft")
    for file in (target, drafter):
        if file.path.suffix != ".gguf":
            raise BadSetting(f"{file.name} is no GGUF file: a drafter learns, and its target answers, as GGUF alone")
    if is_head(drafter.path):
        raise BadSetting(f"{drafter.name} is a draft head, which reads its target's states and is not taught here")
    if drafter.parts:
        raise BadSetting(
            f"{drafter.name} lies in {len(drafter.parts)} files, and a drafter learns in one: "
            f"`edgellm export {shlex.quote(drafter.reference)} --quant {drafter.quant or 'TYPE'}` joins them"
        )
    adapter = pick(target, drafter, listener=listener)
    return AdaptJob(
        target,
        drafter,
        adapter.file.path if adapter is not None else None,
        prompts,
        minutes * 60,
        mem_bytes,
        n_threads or usable_cores(),
        n_tokens,
        output.absolute() if output is not None else None,
    )


def adapt(
    job: AdaptJob,
    listener: Listener = SILENCE,
    cancel: threading.Event | None = None,
    *,
    watch: Watcher = lambda progress: None,
) -> Outcome:
    """Bring lessons together, learn them, and use what was learnt where it is better.

    What is interrupted, by `cancel` or by an exception of this process, keeps the answers and the steps that were done:
    the same job goes on from there.

    Raises:
        AdaptError: another process adapts the pair.
        BackgroundError: a child failed.
        DoesNotFit: the target, or a training of the drafter, takes more memory than there is.
        OSError: the disk.
    """
    began_s = time.monotonic()
    with alone(job):
        talk = _Talk(job, listener, watch)
        talk.follow(cancel)
        spent_s = time.monotonic() - began_s
        if cancel is not None and cancel.is_set():
            return Outcome(job, None, talk.n_answered, spent_s)
        left = replace(job, seconds=max(job.seconds - spent_s, 0.0))
        outcome = Training(left, listener, watch).finish(cancel)
    return replace(outcome, job=job, n_answered=talk.n_answered, seconds=time.monotonic() - began_s)


class Training:
    """A child that trains: in the background of a chat it stands still while an answer is computed.

    It takes `job.seconds` while it is let run.
    """

    def __init__(self, job: AdaptJob, listener: Listener = SILENCE, watch: Watcher = lambda progress: None) -> None:
        """Starts it, for whoever holds `alone(job)`."""
        self.progress = Progress("judging")
        self._job, self._listener, self._watch = job, listener, watch
        self._held = contextlib.ExitStack()
        self._result: Result | None = None
        self._started_s = self._began_s = time.monotonic()
        self._n_steps_before = 0
        order = training_order(job).to_json()
        self._child = Background(
            TRAINING, order, self._hear, what="training", environment=ENVIRONMENT, listener=listener
        )

    @classmethod
    def start(cls, job: AdaptJob, listener: Listener = SILENCE, watch: Watcher = lambda progress: None) -> Training:
        """Start one that holds the pair until it has ended.

        Raises:
            AdaptError: another process adapts the pair.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(alone(job))
            training = cls(job, listener, watch)
            training._held = stack.pop_all()
        return training

    @property
    def may_stand_still(self) -> bool:
        """From when it has told something: then it ends with this process even where it stands still."""
        return self._child.has_told

    def suspend(self) -> None:
        self._child.suspend()

    def resume(self) -> None:
        self._child.resume()

    def poll(self) -> Outcome | None:
        """What became of it; None while it runs.

        Raises:
            BackgroundError: it failed, or was ended by somebody else.
            DoesNotFit: it takes more memory than there is.
            OSError: the disk.
        """
        try:
            ended = self._child.poll()
        finally:
            self._let_go()
        return self._outcome() if ended else None

    def finish(self, cancel: threading.Event | None = None) -> Outcome:
        """Wait for it. Raises as `poll`."""
        try:
            self._child.follow(cancel)
        finally:
            self._let_go()
        return self._outcome()

    def stop(self) -> Outcome:
        """Keep what was done, and end it: the next training goes on there. Raises as `poll`."""
        try:
            self._child.stop()
        finally:
            self._let_go()
        return Outcome(self._job, self._result, 0, time.monotonic() - self._started_s)

    def end(self) -> None:
        """End it at once: what it did since it last kept anything is lost."""
        self._child.end(END_S)
        self._let_go()

    def _let_go(self) -> None:
        if self._child.ended:
            self._held.close()

    def _outcome(self) -> Outcome:
        if self._result is None:
            raise BackgroundError("training failed: it ended without a result")
        return Outcome(self._job, self._result, 0, time.monotonic() - self._started_s)

    def _hear(self, event: Mapping[str, Any]) -> None:
        if "result" in event:
            self._result = Result(**event["result"])
        elif "taken_back" in event:
            self._listener.note(f"{self._job.draft.name} no longer uses what it learnt before: {event['taken_back']}")
        elif "resumed" in event:
            self._listener.note("going on with the training that was interrupted")
        elif "phase" in event:
            phase: Phase = "learning" if event["phase"] == "learning" else "judging"
            self._tell(Progress(phase, n_lessons=event.get("n_lessons", 0), what=event["phase"]))
            self._began_s, self._n_steps_before = time.monotonic(), -1
        elif "step" in event:
            self._tell(self._after(event["step"]))

    def _after(self, step: Mapping[str, Any]) -> Progress:
        n_done, n_all = step["n_done"], step["n_steps"]
        if self._n_steps_before < 0:
            self._n_steps_before = n_done - 1
        each_s = (time.monotonic() - self._began_s) / (n_done - self._n_steps_before)
        return replace(
            self.progress,
            phase="learning",
            n_done=n_done,
            n_all=n_all,
            tokens_per_s=step["tokens_per_s"],
            loss=step["loss"],
            seconds_left=each_s * (n_all - n_done),
        )

    def _tell(self, progress: Progress) -> None:
        self.progress = progress
        self._watch(progress)


class _Talk:
    """The child in which the target answers."""

    def __init__(self, job: AdaptJob, listener: Listener, watch: Watcher) -> None:
        self._job, self._watch, self._began_s = job, watch, time.monotonic()
        self._n_before, self._n_lessons = -1, 0
        self._child = Background(TALKING, talk_order(job).to_json(), self._hear, what="answering", listener=listener)

    @property
    def n_answered(self) -> int:
        return max(self._n_lessons - max(self._n_before, 0), 0)

    def follow(self, cancel: threading.Event | None) -> None:
        self._child.follow(cancel)

    def _hear(self, event: Mapping[str, Any]) -> None:
        if "n_lessons" not in event:
            return
        self._n_lessons = event["n_lessons"]
        if self._n_before < 0:
            self._n_before = self._n_lessons
        speed, left_s = event["tokens_per_s"], TALKING_SHARE * self._job.seconds - (time.monotonic() - self._began_s)
        if speed and self._job.prompts is None:
            left_s = min(left_s, max(event["n_wanted"] - event["n_tokens"], 0) / speed)
        n_all = event["n_wanted"] if self._job.prompts is None else 0
        self._watch(
            Progress("answering", event["n_tokens"], n_all, self._n_lessons, speed or None, None, max(left_s, 0.0))
        )
