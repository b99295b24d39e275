"""Who judges, how many, and that judging leaves the drafter as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.runtime.distillation.curriculum import Named
from edgellm.runtime.distillation.job import MIN_BATCH_TOKENS, settings_for
from edgellm.runtime.distillation.judging import MIN_ANSWERS
from edgellm.runtime.distillation.lesson import Sample
from edgellm.runtime.distillation.training import TrainingSettings
from edgellm.runtime.distillation.trial import SHARE, Stopped, Trial, judge_in_use


def sample(n_answer: int = 50, n_prompt: int = 50) -> Sample:
    return Sample(np.zeros(n_prompt, np.int32), np.zeros(n_answer, np.int32))


@dataclass
class Fake:
    """Right from the first token on in a share of an answer, which is its only number. A token takes a millisecond."""

    theta: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, np.float32))
    now_s: float = 0.0

    def agreement(self, samples: Sequence[Sample]) -> list[NDArray[np.bool_]]:
        self.now_s += sum(one.n_tokens for one in samples) / 1000
        return [np.arange(len(one.answer)) < float(self.theta[0]) * len(one.answer) for one in samples]

    def changes(self) -> dict[str, NDArray[np.float32]]:
        return {"w": self.theta}

    def take(self, changes: Mapping[str, NDArray[np.float32]]) -> None:
        self.theta = changes["w"]

    def clock(self) -> float:
        return self.now_s


def trial(network: Fake, named: Sequence[Named], *, seconds: float = 100.0, **more: Any) -> Trial:
    given: dict[str, Any] = {"n_threads": 1, "clock": network.clock, "stop_asked": lambda: False} | more
    return Trial(network, named, seconds=seconds, **given)


NAMED: list[Named] = [(str(i), sample()) for i in range(300)]


def test_as_many_of_the_newest_judge_as_there_is_time_for() -> None:
    found = trial(Fake(), NAMED)
    assert found.tokens_per_s == pytest.approx(1000.0)
    assert found.judging == NAMED[-int(SHARE * 100.0 * 10) :]
    assert found.seconds == pytest.approx(SHARE * 100.0)
    assert trial(Fake(), NAMED, seconds=1e6).judging == NAMED
    assert trial(Fake(), NAMED, seconds=0.0).judging == NAMED[-MIN_ANSWERS:]  # fewer decide nothing


def test_the_plain_drafter_is_asked_without_a_trace() -> None:
    network = Fake(np.full(1, 0.5, np.float32))
    found = trial(network, NAMED[:10])
    assert not any(hits.any() for hits in found.plain_hits())
    assert float(network.theta[0]) == 0.5
    assert all(hits.mean() == 0.5 for hits in found.hits())


def test_judging_ends_at_once_where_an_end_is_wanted() -> None:
    asked = [False]
    network = Fake()
    found = trial(network, NAMED, stop_asked=lambda: asked[0])
    asked[0] = True
    with pytest.raises(Stopped):
        found.hits()
    with pytest.raises(Stopped):
        found.plain_hits()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_in_use_is_compared_with_the_plain_drafter(share: float) -> None:
    network = Fake(np.full(1, 0.9, np.float32))
    found = judge_in_use(network, {"w": np.full(1, share, np.float32)}, [sample() for _ in range(20)])
    assert found.is_better is (share > 0)
    assert (found.old.agreement, found.new.agreement) == (0.0, share)
    assert float(network.theta[0]) == share


def test_of_few_lessons_smaller_steps_are_made_and_of_many_the_usual_ones() -> None:
    usual = TrainingSettings(n_threads=2)
    many = [("", sample(500)) for _ in range(100)]
    assert settings_for(many, 2) == usual
    few = settings_for(many[:10], 2)  # 5,000 answer tokens
    assert few.batch_tokens == 250 == MIN_BATCH_TOKENS
    assert few.n_warm_up == 6
    least = settings_for([("", sample(20))], 2)
    assert (least.batch_tokens, least.n_warm_up) == (MIN_BATCH_TOKENS, 1)
