"""Logits to the distribution that the next token is drawn from.

The order of the stages is llama.cpp's: penalty, top-k, top-p, min-p, temperature. A distribution is kept sparse (the
ids that survive, and their probabilities), so greedy decoding is the distribution with one id and costs one argmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.errors import USAGE, EdgellmError


class Distribution(NamedTuple):
    """Probabilities that sum to 1 over a few ids; every other id has 0."""

    ids: NDArray[np.int64]  # (n,)
    probs: NDArray[np.float64]  # (n,)

    def of(self, token: int) -> float:
        """The probability of one token."""
        found = np.flatnonzero(self.ids == token)
        return float(self.probs[found[0]]) if found.size else 0.0

    def at(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """The probabilities of several tokens, shape of `ids`."""
        order = np.argsort(self.ids)
        places = order[np.minimum(np.searchsorted(self.ids, ids, sorter=order), len(order) - 1)]
        return np.where(self.ids[places] == ids, self.probs[places], 0.0)

    def draw(self, rng: np.random.Generator) -> int:
        if len(self.ids) == 1:
            return int(self.ids[0])
        cumulative = np.cumsum(self.probs)
        i = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        return int(self.ids[min(i, len(self.ids) - 1)])


def certain(token: int) -> Distribution:
    """All of the mass on one token."""
    return Distribution(np.array([token]), np.ones(1))


RANDOM_SEED = -1  # what people write for "another one each time"; None in `Sampling`


class BadSampling(EdgellmError, ValueError):
    """A sampling setting out of its range."""

    exit_code = USAGE


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The default is greedy."""

    temperature: float = 0.0  # 0: greedy
    top_k: int = 40  # 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0  # > 1 makes what occurred lately less likely (Keskar et al. 2019, arXiv:1909.05858)
    repeat_last_n: int = 64  # tokens that the penalty looks back
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_k", 0, 10**9),
            ("top_p", 1e-9, 1.0),
            ("min_p", 0.0, 1.0),
            ("repeat_penalty", 1e-9, 100.0),
            ("repeat_last_n", 0, 10**9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise BadSampling(f"{name} {value} is out of range: {low:g} to {high:g}")
        if self.seed is not None and self.seed < 0:
            raise BadSampling(f"seed {self.seed} is negative: leave it out for a random one")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def distribution(self, logits: NDArray[np.float32], history: Sequence[int]) -> Distribution:
        """The distribution of the token that follows `history`.

        Args:
            logits: (n_vocab,), not changed.
            history: the tokens so far, for the repetition penalty.
        """
        if self.repeat_penalty != 1.0 and self.repeat_last_n:
            seen = np.unique(np.asarray(history[-self.repeat_last_n :], np.int64))
            logits = logits.copy()
            logits[seen] = np.where(
                logits[seen] > 0, logits[seen] / self.repeat_penalty, logits[seen] * self.repeat_penalty
            )
        if self.greedy:
            return certain(int(logits.argmax()))
        if 0 < self.top_k < len(logits):
            ids = np.argpartition(logits, -self.top_k)[-self.top_k :].astype(np.int64)
        else:
            ids = np.arange(len(logits))
        kept = logits[ids].astype(np.float64)
        if self.top_p < 1.0 or self.min_p > 0.0:
            probs = _softmax(kept, 1.0)
            keep = probs >= self.min_p * probs.max()
            if self.top_p < 1.0:
                order = np.argsort(-probs, kind="stable")
                before = np.cumsum(probs[order]) - probs[order]  # mass of the likelier ones
                keep[order[before >= self.top_p]] = False
            ids, kept = ids[keep], kept[keep]
        return Distribution(ids, _softmax(kept, self.temperature))


GREEDY = Sampling()


def _softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the likeliest to -inf, which is right
        weights: NDArray[np.float64] = np.exp((logits - logits.max()) / temperature)
    weights /= weights.sum()
    return weights
