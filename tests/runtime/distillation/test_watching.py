"""What ends a training early: its time, a wish, or answers apart that are drafted worse."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.distillation.lesson import Sample
from edgellm.runtime.distillation.orders import KEPT_EVERY_S
from edgellm.runtime.distillation.watching import N_LOOKS, RunningClock, Watch

APART = [Sample(np.zeros(1, np.int32), np.zeros(1000, np.int32))]


@dataclass
class Fake:
    """A network that agrees as well as it is told for each state."""

    shares: Mapping[float, float]
    theta: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, np.float32))

    def agreement(self, samples: Sequence[Sample]) -> list[NDArray[np.bool_]]:
        share = self.shares[round(float(self.theta[0]), 3)]
        return [np.arange(len(sample.answer)) < share * len(sample.answer) for sample in samples]

    def changes(self) -> dict[str, NDArray[np.float32]]:
        return {"w": self.theta}

    def take(self, changes: Mapping[str, NDArray[np.float32]]) -> None:
        self.theta = changes["w"]


@dataclass(frozen=True)
class Step:
    n_done: int
    n_steps: int = N_LOOKS


def watching(network: Fake, apart: Sequence[Sample] = APART, **more: Any) -> tuple[Watch, list[Mapping[str, Any]]]:
    told: list[Mapping[str, Any]] = []
    given: dict[str, Any] = {"clock": lambda: 0.0, "until_s": 1e9, "stop_asked": lambda: False} | more
    given.setdefault("kept_every_s", KEPT_EVERY_S)
    return Watch(network, apart, n_threads=1, tell=told.append, **given), told


def run(watch: Watch, network: Fake) -> int:
    """Steps that were done."""
    for n in range(1, N_LOOKS + 1):
        network.theta = network.theta + np.float32(1.0)  # as training moves it
        if not watch(Step(n)):
            return n
    return N_LOOKS


def test_it_ends_where_agreement_falls_twice_and_goes_back_to_the_best() -> None:
    shares = {1: 0.70, 2: 0.78, 3: 0.80, 4: 0.79, 5: 0.78, 6: 0.9}
    network = Fake(shares)
    watch, told = watching(network)
    assert run(watch, network) == 5
    assert watch.reason == "levelled off"
    watch.settle()
    assert float(network.theta[0]) == 3.0
    assert [round(event["agreement"], 2) for event in told] == [0.7, 0.78, 0.8, 0.79, 0.78]


def test_a_dip_or_noise_ends_nothing_and_the_last_state_stays() -> None:
    shares = {float(n): 0.8 for n in range(1, 11)} | {4.0: 0.78, 6.0: 0.797, 7.0: 0.798}
    network = Fake(shares)
    watch, _ = watching(network)
    assert run(watch, network) == N_LOOKS
    assert watch.reason == "learnt"
    watch.settle()
    assert float(network.theta[0]) == 10.0


def test_too_few_answers_apart_end_nothing() -> None:
    network = Fake({})  # would fail if it were asked
    watch, told = watching(network, [Sample(np.zeros(1, np.int32), np.zeros(100, np.int32))])
    assert run(watch, network) == N_LOOKS
    assert not told


def test_time_and_a_wish_end_it() -> None:
    network = Fake({float(n): 0.8 for n in range(11)})
    late, _ = watching(network, until_s=-1.0)
    assert not late(Step(3))
    assert late.reason == "time"
    asked, _ = watching(network, stop_asked=lambda: True)
    assert not asked(Step(3))
    assert asked.reason == "stopped"


def test_it_rests_now_and_then_so_that_it_is_kept() -> None:
    now = [0.0]
    network = Fake({0.0: 0.8})
    watch, _ = watching(network, clock=lambda: now[0])
    assert watch(Step(1))
    now[0] = KEPT_EVERY_S
    assert not watch(Step(2))
    assert watch.is_resting
    assert watch.reason == "learnt"
    assert watch(Step(3))
    assert not watch.is_resting


def test_the_clock_counts_what_runs_and_not_what_stood_still() -> None:
    clock = RunningClock()
    time.sleep(0.6)
    assert 0.1 < clock.seconds < 2.0
    clock._seen_s -= 1000.0  # as if it had been suspended
    time.sleep(0.4)
    assert clock.seconds < 2.0 + RunningClock.MOST_S
