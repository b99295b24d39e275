"""How well a drafter says what its target said, from nothing but where it was right, and whether another is better.

Hits are of an answer that is given (teacher forcing): whether the drafter's likeliest token is the answer's, for each
of its tokens. A draft that begins at some place is accepted as far as the hits run from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.distillation.lesson import Sample

N_DRAFTED = 4  # tokens a pass, for the figures
N_BOOTSTRAP = 4000
MIN_ANSWERS = 5  # of fewer no interval is given: all of four better is chance in one case of sixteen
_TAIL = 0.025  # on either side of an interval of 95 %
_PASS_TOKENS = 1024  # read at once, which bounds the memory

Hits = NDArray[np.bool_]


class SupportsAgreement(Protocol):
    """What is asked of a drafter; several threads may ask at once."""

    def agreement(self, samples: Sequence[Sample]) -> list[Hits]: ...


@dataclass(frozen=True, slots=True)
class Judgement:
    """One drafter on a set of answers, in its own tokens."""

    agreement: float  # share of tokens that it holds likeliest
    accepted_of_4: float  # tokens of a draft of four that are right from its beginning, over all places for one
    tokens_per_pass: float  # answers written with drafts of four: their tokens, by the target's passes
    n_tokens: int
    n_answers: int

    def to_json(self) -> dict[str, Any]:
        return {
            "agreement": round(self.agreement, 5),
            "accepted_of_4": round(self.accepted_of_4, 4),
            "tokens_per_pass": round(self.tokens_per_pass, 4),
            "n_tokens": self.n_tokens,
            "n_answers": self.n_answers,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two drafters on the same answers."""

    old: Judgement
    new: Judgement
    ratio: float  # of tokens a pass, new by old
    interval: tuple[float, float] | None  # of the ratio, 95 %; None where the answers are too few for one

    @property
    def is_better(self) -> bool:
        return self.interval is not None and self.interval[0] > 1.0

    @property
    def is_worse(self) -> bool:
        return self.interval is not None and self.interval[1] < 1.0

    def to_json(self) -> dict[str, Any]:
        return {
            "old": self.old.to_json(),
            "new": self.new.to_json(),
            "ratio": round(self.ratio, 5),
            "interval": [round(bound, 5) for bound in self.interval] if self.interval else None,
        }


def hits_of(network: SupportsAgreement, samples: Sequence[Sample], n_threads: int = 1) -> list[Hits]:
    """Where a drafter is right, a sample each."""
    with ThreadPoolExecutor(n_threads) as pool:
        return list(chain.from_iterable(pool.map(network.agreement, _passes_of(samples))))


def _passes_of(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """Neighbours that are read together."""
    start = n_tokens = 0
    for stop, sample in enumerate(samples):
        if n_tokens and n_tokens + sample.n_tokens > _PASS_TOKENS:
            yield samples[start:stop]
            start, n_tokens = stop, 0
        n_tokens += sample.n_tokens
    if n_tokens:
        yield samples[start:]


def judge(hits: Sequence[Hits]) -> Judgement:
    """The figures of a drafter; all zero where there is nothing to judge."""
    runs = [_runs(answer) for answer in hits]
    n_tokens, n_passes = sum(map(len, hits)), sum(map(_passes, runs))
    n_hits = sum(int(answer.sum()) for answer in hits)
    whole = [answer[: len(answer) - N_DRAFTED + 1] for answer in runs if len(answer) >= N_DRAFTED]
    n_places = sum(map(len, whole))
    return Judgement(
        n_hits / n_tokens if n_tokens else 0.0,
        sum(int(answer.sum()) for answer in whole) / n_places if n_places else 0.0,
        n_tokens / n_passes if n_passes else 0.0,
        n_tokens,
        len(hits),
    )


def compare(old: Sequence[Hits], new: Sequence[Hits]) -> Comparison:
    """Two drafters on the same answers, hits in the same order.

    Raises:
        ValueError: they are not of the same answers.
    """
    if [len(answer) for answer in old] != [len(answer) for answer in new]:
        raise ValueError("hits of different answers cannot be compared")
    passes = np.array([[_passes(_runs(answer)) for answer in side] for side in (old, new)], np.int64)
    total_old, total_new = (int(side.sum()) for side in passes)
    # The tokens are the same on both sides, so they cancel.
    ratio = total_old / total_new if total_new else 1.0
    return Comparison(judge(old), judge(new), ratio, _interval(passes))


def _runs(hits: Hits) -> NDArray[np.int64]:
    """How many hits follow from each place on, its own included; four at most."""
    padded = np.concatenate((hits, np.zeros(N_DRAFTED, np.bool_)))
    runs, unbroken = np.zeros(len(hits), np.int64), np.ones(len(hits), np.bool_)
    for ahead in range(N_DRAFTED):
        unbroken &= padded[ahead : ahead + len(hits)]
        runs += unbroken
    return runs


def _passes(runs: NDArray[np.int64]) -> int:
    """The target's passes for an answer: each takes the draft as far as it is right, and adds a token of its own."""
    lengths, at, n_passes = runs.tolist(), 0, 0
    while at < len(lengths):
        at += lengths[at] + 1
        n_passes += 1
    return n_passes


def _interval(passes: NDArray[np.int64]) -> tuple[float, float] | None:
    """Of the ratio of passes, by bootstrap over the answers.

    Percentiles are wider than 95 % by what few answers ask for (Hesterberg, "What Teachers Should Know About the
    Bootstrap", 2015: expanded percentiles): with many they are the usual ones.
    """
    n = passes.shape[1]
    if n < MIN_ANSWERS:
        return None
    picked = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), N_BOOTSTRAP)
    old, new = picked @ passes[0], picked @ passes[1]
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * _student_quantile(n - 1))
    low, high = np.quantile(old / np.maximum(new, 1), [tail, 1 - tail])
    return float(low), float(high)


def _student_quantile(n_free: int) -> float:
    """Of Student's t at 97.5 %, by Cornish and Fisher's expansion: within 0.3 % from four degrees of freedom on."""
    z = NormalDist().inv_cdf(1 - _TAIL)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n_free + second / n_free**2 + third / n_free**3
