"""What ends a training early: its time, a wish, or answers apart that are drafted worse than before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from edgellm.memory.quantised import Floats
from edgellm.runtime.distillation.judging import SupportsAgreement, hits_of, judge
from edgellm.runtime.distillation.lesson import Sample

N_LOOKS = 10  # at the answers apart, in one training
MIN_LOOK_TOKENS = 500  # of answers: with fewer, agreement says nothing
FALL = 0.005  # of agreement: two looks in a row below the best by more than this end it

Reason = Literal["learnt", "levelled off", "time", "stopped"]


class SupportsStep(Protocol):
    """What is read of a step, see `training.Step`."""

    @property
    def n_done(self) -> int: ...

    @property
    def n_steps(self) -> int: ...


class Trainable(SupportsAgreement, Protocol):
    def changes(self) -> dict[str, Floats]: ...

    def take(self, changes: Mapping[str, Floats]) -> None: ...


class RunningClock:
    """Seconds that this process was let run: none of those that it stood still for, suspended or asleep."""

    TICK_S, MOST_S = 0.25, 2.0  # of a tick, at most so much is counted

    def __init__(self) -> None:
        self.seconds, self._seen_s = 0.0, time.monotonic()
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        while True:
            time.sleep(self.TICK_S)
            now = time.monotonic()
            self.seconds += min(now - self._seen_s, self.MOST_S)
            self._seen_s = now


class Watch:
    """Called after each step; False ends the training, or only rests it while `is_resting`, so that it is kept."""

    def __init__(
        self,
        network: Trainable,
        apart: Sequence[Sample],
        *,
        n_threads: int,
        clock: Callable[[], float],
        until_s: float,
        kept_every_s: float,
        stop_asked: Callable[[], bool],
        tell: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """
        Args:
            apart: samples that are not learnt, which tell when it gets worse.
            until_s: by the clock, when it has to end.
            kept_every_s: how often it rests.
            tell: is told how agreement on them goes.
        """
        self._network, self._apart, self._n_threads = network, apart, n_threads
        self._clock, self._until_s, self._kept_every_s = clock, until_s, kept_every_s
        self._stop_asked, self._tell = stop_asked, tell
        self._looks = sum(len(sample.answer) for sample in apart) >= MIN_LOOK_TOKENS
        self._best, self._best_changes, self._n_below = 0.0, dict[str, Floats](), 0
        self._kept_s, self.is_resting, self.reason = clock(), False, "learnt"

    def __call__(self, step: SupportsStep) -> bool:
        now, self.is_resting = self._clock(), False
        every = max(1, step.n_steps // N_LOOKS)
        if self._stop_asked():
            self.reason = "stopped"
        elif self._looks and step.n_done % every == 0 and self._has_fallen():
            self.reason = "levelled off"
        elif now >= self._until_s:
            self.reason = "time"
        elif now - self._kept_s >= self._kept_every_s:
            self._kept_s, self.is_resting = now, True
            return False
        return self.reason == "learnt"

    def _has_fallen(self) -> bool:
        found = judge(hits_of(self._network, self._apart, self._n_threads)).agreement
        self._tell({"agreement": found})
        if found > self._best:
            self._best, self._best_changes = found, copied(self._network.changes())
        self._n_below = self._n_below + 1 if found < self._best - FALL else 0
        return self._n_below >= 2

    def settle(self) -> None:
        """Where it got worse, go back to the best."""
        if self.reason == "levelled off":
            self._network.take(self._best_changes)


def copied(changes: Mapping[str, Floats]) -> dict[str, Floats]:
    return {name: theta.copy() for name, theta in changes.items()}


def zeroed(changes: Mapping[str, Floats]) -> dict[str, Floats]:
    """The file as it is."""
    return {name: np.zeros_like(theta) for name, theta in changes.items()}
