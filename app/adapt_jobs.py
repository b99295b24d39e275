"""What adapting a drafter is asked for, where it stands, what became of it; and the lock of a pair."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgellm.app.defaults import adapted_folder, learned_folder
from edgellm.memory.errors import EdgellmError
from edgellm.runtime.distillation.orders import KEPT_EVERY_S, Result, TalkOrder, TrainingOrder

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
    what: str = ""  # that it does, in more words


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


@contextlib.contextmanager
def alone(job: AdaptJob) -> Iterator[None]:
    """Hold a pair's own lock, which the system frees when a process dies.

    Raises:
        AdaptError: another process adapts the pair.
    """
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


def talk_order(job: AdaptJob) -> TalkOrder:
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


def training_order(job: AdaptJob) -> TrainingOrder:
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
