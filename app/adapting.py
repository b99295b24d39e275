"""A drafter learns its target: which models and lessons, for how long, in which child, one at a time for a pair."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgellm.app.background import Background, BackgroundError
from edgellm.app.defaults import BadSetting, adapted_folder, asked_bytes, learned_folder
from edgellm.app.listener import SILENCE, Listener
from edgellm.memory.errors import EdgellmError
from edgellm.runtime.distillation.orders import (
    ENVIRONMENT,
    KEPT_EVERY_S,
    TALKING,
    TRAINING,
    Result,
    TalkOrder,
    TrainingOrder,
)

if TYPE_CHECKING:
    from edgellm.export.obtain.store import ModelFile

MINUTES = 30.0  # in all, at most, where nobody says
N_TOKENS = 30_000  # of answers that are new to the drafter: what most of the gain comes from
BESIDE_CHAT_KEPT_EVERY_S = 60.0  # chats are left at any moment, and what is kept is tens of megabytes
TALKING_SHARE = 0.6  # of the time, at most, for answers: learning one takes less than writing it

Phase = Literal["answering", "learning", "judging"]


class AdaptError(EdgellmError, RuntimeError):
    """Another process adapts the pair already."""


@dataclass(frozen=True, slots=True)
class AdaptJob:
    """What is asked for: files that are here, and bounds."""

    target: ModelFile
    draft: ModelFile
    adapter: Path | None = None  # that the drafter goes with now
    prompts: Path | None = None  # questions; None: what chats left, and the target's own where that is too little
    seconds: float = MINUTES * 60
    mem_bytes: int | None = None  # None: what the machine has free
    n_threads: int = 1
    n_tokens: int = N_TOKENS
    output: Path | None = None  # where the adapter is written as well
    beside_chat: bool = False  # gives way to everything, and may be ended at any moment


@dataclass(frozen=True, slots=True)
class Progress:
    """Where it stands."""

    phase: Phase
    n_done: int = 0  # tokens of answers, or steps of learning
    n_all: int = 0  # 0: not known
    n_lessons: int = 0
    tokens_per_s: float | None = None
    loss: float | None = None  # nats a token
    seconds_left: float | None = None  # of this phase


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it."""

    job: AdaptJob
    result: Result | None  # of the training; None where it did not come to it
    n_answered: int  # questions that the target answered
    seconds: float

    @property
    def interrupted(self) -> bool:
        return self.result is None or self.result.reason == "stopped"

    @property
    def adopted(self) -> bool:
        return self.result is not None and self.result.adopted

    @property
    def why(self) -> str:
        return self.result.why if self.result is not None else "it was stopped; the same command goes on"

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = (
            self.result.to_json() if self.result is not None else {"adopted": False, "why": self.why}
        )
        compared = found.pop("comparison", None)
        if compared is None:
            compared = dict.fromkeys(("old", "new", "ratio", "interval"))
        names = {"target": self.job.target.name, "drafter": self.job.draft.name}
        return {**names, **found, **compared, "n_answered": self.n_answered, "seconds": round(self.seconds, 1)}


Watcher = Callable[[Progress], None]


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
        result = Training(left, listener, watch).finish(cancel)
    return Outcome(job, result, talk.n_answered, time.monotonic() - began_s)


class Training:
    """A child that trains: in the background of a chat it stands still while an answer is computed.

    Whoever starts it holds `alone(job)` as long as it runs, and polls it now and then.
    """

    def __init__(self, job: AdaptJob, listener: Listener = SILENCE, watch: Watcher = lambda progress: None) -> None:
        """Starts it; it takes `job.seconds` while it is let run."""
        self.progress = Progress("judging")
        self._result: Result | None = None
        self._listener, self._watch, self._draft_name = listener, watch, job.draft.name
        self._began_s, self._n_steps_before = time.monotonic(), 0
        order = _training_order(job).to_json()
        self._child = Background(
            TRAINING, order, self._hear, what="training", environment=ENVIRONMENT, listener=listener
        )

    @property
    def may_stand_still(self) -> bool:
        """From when it has told something: then it ends with this process even where it stands still."""
        return self._child.has_told

    def suspend(self) -> None:
        self._child.suspend()

    def resume(self) -> None:
        self._child.resume()

    def poll(self) -> Result | None:
        """What became of it; None while it runs.

        Raises:
            BackgroundError: it failed, or was ended by somebody else.
            DoesNotFit: it takes more memory than there is.
            OSError: the disk.
        """
        return self._finished() if self._child.poll() else None

    def finish(self, cancel: threading.Event | None = None) -> Result:
        """Wait for it. Raises as `poll`."""
        self._child.follow(cancel)
        return self._finished()

    def stop(self) -> Result | None:
        """Keep what was done, and end it: the next training goes on there. Raises as `poll`."""
        self._child.stop()
        return self._result

    def end(self) -> None:
        """End it at once: what it did since it last kept anything is lost."""
        self._child.end()

    def _finished(self) -> Result:
        if self._result is None:
            raise BackgroundError("training failed: it ended without a result")
        return self._result

    def _hear(self, event: Mapping[str, Any]) -> None:
        if "result" in event:
            self._result = Result(**event["result"])
        elif "taken_back" in event:
            self._listener.note(f"{self._draft_name} no longer uses what it learnt before: {event['taken_back']}")
        elif "resumed" in event:
            self._listener.note("going on with the training that was interrupted")
        elif "phase" in event:
            phase: Phase = "learning" if event["phase"] == "learning" else "judging"
            self._tell(Progress(phase, n_lessons=event.get("n_lessons", 0)))
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
        self._child = Background(TALKING, _talk_order(job).to_json(), self._hear, what="answering", listener=listener)

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


@contextlib.contextmanager
def alone(job: AdaptJob) -> Iterator[None]:
    """Hold a pair's own lock, which the system frees when a process dies.

    Raises:
        AdaptError: another process adapts the pair.
    """
    import hashlib

    from filelock import FileLock, Timeout

    from edgellm.runtime.learning.files import private_folder

    private_folder(adapted_folder())
    pair = f"{job.target.path} {job.draft.path}"
    lock = FileLock(
        adapted_folder() / f"adapting-{hashlib.sha256(pair.encode()).hexdigest()[:16]}.lock",
        mode=0o600,
        thread_local=False,
    )
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AdaptError(
            f"another process adapts {job.draft.name} to {job.target.name} just now: wait until it is done, or end it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _talk_order(job: AdaptJob) -> TalkOrder:
    return TalkOrder(
        target=str(job.target.path),
        target_name=job.target.name,
        learned=str(learned_folder()),
        n_tokens=job.n_tokens,
        seconds=TALKING_SHARE * job.seconds,
        n_threads=job.n_threads,
        adapter=str(job.adapter) if job.adapter is not None else None,
        prompts=str(job.prompts) if job.prompts is not None else None,
        mem_bytes=job.mem_bytes,
    )


def _training_order(job: AdaptJob) -> TrainingOrder:
    from edgellm.runtime.distillation.adopted import target_key

    return TrainingOrder(
        target=str(job.target.path),
        draft=str(job.draft.path),
        target_name=job.target.name,
        draft_name=job.draft.name,
        target_key=target_key(job.target.path),
        learned=str(learned_folder()),
        adopted=str(adapted_folder()),
        seconds=job.seconds,
        n_threads=job.n_threads,
        adapter=str(job.adapter) if job.adapter is not None else None,
        mem_bytes=job.mem_bytes,
        output=str(job.output) if job.output is not None else None,
        niceness=19 if job.beside_chat else 10,
        kept_every_s=BESIDE_CHAT_KEPT_EVERY_S if job.beside_chat else KEPT_EVERY_S,
    )
