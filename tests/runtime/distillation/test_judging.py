"""The figures that decide about a drafter: against counting by hand, against the loop itself, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.runtime.distillation.judging import MIN_ANSWERS, compare, judge

Hits = NDArray[np.bool_]


def random_hits(seed: int, n_answers: int, share: float = 0.8) -> list[Hits]:
    rng = np.random.default_rng(seed)
    return [rng.random(int(rng.integers(1, 60))) < share for _ in range(n_answers)]


def counted(hits: Sequence[Hits]) -> tuple[float, float]:
    """Agreement, and what is accepted of four from every place that has four ahead of it, one by one."""
    n_right = n_tokens = n_accepted = n_places = 0
    for answer in hits:
        for place in range(len(answer)):
            n_tokens += 1
            n_right += bool(answer[place])
            if place + 4 <= len(answer):
                n_places += 1
                for ahead in range(4):
                    if not answer[place + ahead]:
                        break
                    n_accepted += 1
    return n_right / n_tokens, n_accepted / n_places


def looped(hits: Sequence[Hits]) -> float:
    """Tokens a pass of drafting and verifying: an answer of token ids, a drafter that errs where it is told to."""
    n_tokens = n_passes = 0
    for answer in hits:
        truth = [100 + i for i in range(len(answer))]
        said = [token if right else -1 for token, right in zip(truth, answer.tolist(), strict=True)]
        text: list[int] = []
        while len(text) < len(truth):
            draft = said[len(text) : len(text) + 4]
            n_passes += 1
            for token in draft:
                if token != truth[len(text)]:
                    break
                text.append(token)
            if len(text) < len(truth):
                text.append(truth[len(text)])  # the target's own
        n_tokens += len(text)
        assert text == truth
    return n_tokens / n_passes


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 0.97, 1.0])
def test_figures_are_those_of_counting_and_of_the_loop(share: float) -> None:
    hits = random_hits(1, 40, share)
    found = judge(hits)
    assert (found.agreement, found.accepted_of_4) == pytest.approx(counted(hits))
    assert found.tokens_per_pass == pytest.approx(looped(hits))
    assert (found.n_tokens, found.n_answers) == (sum(map(len, hits)), 40)


def test_nothing_to_judge_is_zero_and_not_an_error() -> None:
    assert judge([]).tokens_per_pass == 0.0
    assert judge([np.ones(3, np.bool_)]).accepted_of_4 == 0.0  # no place for a draft of four
    assert judge([np.ones(3, np.bool_)]).tokens_per_pass == 3.0
    assert compare([], []).interval is None


def test_the_ratio_is_that_of_tokens_a_pass() -> None:
    old, new = random_hits(2, 30), [answer | (np.arange(len(answer)) % 3 == 0) for answer in random_hits(2, 30)]
    found = compare(old, new)
    assert found.ratio == pytest.approx(looped(new) / looped(old))
    assert found.interval is not None
    assert found.interval[0] < found.ratio < found.interval[1]
    assert found.is_better
    assert not found.is_worse
    assert compare(new, old).is_worse


def test_the_same_drafter_is_neither_better_nor_worse() -> None:
    hits = random_hits(3, 30)
    found = compare(hits, hits)
    assert (found.ratio, found.interval) == (1.0, (1.0, 1.0))
    assert not found.is_better
    assert not found.is_worse


def test_chance_is_seldom_taken_for_a_gain() -> None:
    """Two drafters that are equally good, few answers of very different length and difficulty: 2.5 % are expected."""
    rng, n_better = np.random.default_rng(4), 0
    for _ in range(150):
        sides: list[list[Hits]] = [[], []]
        for _ in range(6):
            n, share = int(rng.integers(30, 300)), rng.uniform(0.6, 0.95)
            for side in sides:
                side.append(rng.random(n) < share)
        n_better += compare(*sides).is_better
    assert n_better <= 11  # 7 %: four standard deviations above


def test_of_a_few_answers_nothing_is_concluded() -> None:
    old = [np.zeros(100, np.bool_)] * (MIN_ANSWERS - 1)
    found = compare(old, [~answer for answer in old])
    assert found.ratio > 4
    assert found.interval is None
    assert not found.is_better
    assert found.to_json()["interval"] is None


def test_hits_of_other_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="different answers"):
        compare(random_hits(5, 3), random_hits(6, 3))
