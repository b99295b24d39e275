"""A drafter learns its target: which models and lessons, for how long, in which child, one at a time for a pair."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgellm.app.defaults import BadSetting, adapted_folder, asked_bytes, learned_folder
from edgellm.app.listener import SILENCE, Listener
from edgellm.memory.errors import EdgellmError
from edgellm.runtime.distillation.orders import ENVIRONMENT, TALKING, TRAINING, Result, TalkOrder, TrainingOrder

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from edgellm.export.obtain.store import ModelFile
    from edgellm.memory.children import Child

MINUTES = 30.0  # in all, at most, where nobody says
N_TOKENS = 30_000  # of answers that are new to the drafter: what most of the gain comes from
TALKING_SHARE = 0.6  # of the time, at most, for answers: learning one takes less than writing it
STOP_S = 90.0  # that a child may take to keep what it has done; a step is the most that it finishes first

Phase = Literal["answering", "learning", "judging"]


class AdaptError(EdgellmError, RuntimeError):
    """A drafter that could not be adapted; the message says why."""


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
        found = self.result.to_json() if self.result is not None else {"adopted": False, "why": self.why}
        compared = found.pop("comparison", None) or {"old": None, "new": None, "ratio": None, "interval": None}
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
        AdaptError: another process adapts the pair, or a child failed.
        DoesNotFit: the target, or a training of the drafter, takes more memory than there is.
        OSError: the disk.
    """
    began_s = time.monotonic()
    with _alone(job) as lock:
        talking = _Work(TALKING, _talk_order(job).to_json(), listener, _Talking(watch, job))
        talked = talking.follow(cancel)
        n_answered = talked.n_lessons - talked.n_before
        spent_s = time.monotonic() - began_s
        if talked.stopped or (cancel is not None and cancel.is_set()):
            return Outcome(job, None, n_answered, spent_s)
        training = Training.start(replace(job, seconds=max(job.seconds - spent_s, 0.0)), listener, watch=watch, lock=lock)
        result = training.follow(cancel)
        return Outcome(job, result, n_answered, time.monotonic() - began_s)
