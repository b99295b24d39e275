"""Logits to the distribution that the next token is drawn from.

Stages narrow the candidates down, in llama.cpp's order: bias, penalties, top-n-sigma, top-k, top-p, min-p, temperature.
A distribution is kept sparse (the ids that survive, and their probabilities), so greedy decoding is the distribution
with one id and costs one argmax. What can be set is the table of `memory/sampling_parameters.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.sampling_parameters import BadSampling as BadSampling
from edgellm.memory.sampling_parameters import SamplingParameters

MAX_BIAS = 100  # of a logit, either way; OpenAI's bound


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


@dataclass(slots=True)
class Candidates:
    """The tokens that are still in, which the stages narrow down."""

    logits: NDArray[np.float32]  # (n,)
    history: Sequence[int]
    ids: NDArray[np.int64] | None = None  # (n,); None: all, in order
    _probs: NDArray[np.float64] | None = None  # (n,)

    @property
    def probs(self) -> NDArray[np.float64]:
        """Before temperature, of those that were in when they were first asked for: later ones are not scaled up."""
        if self._probs is None:
            self._probs = _softmax(self.logits, 1.0)
        return self._probs

    def keep(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> None:
        """Leave out all others: `which` is a mask, or places, in whose order they are from now on."""
        if self.ids is not None:
            self.ids = self.ids[which]
        else:
            self.ids = np.flatnonzero(which) if which.dtype == np.bool_ else which.astype(np.int64, copy=False)
        self.logits = self.logits[which]
        if self._probs is not None:
            self._probs = self._probs[which]


def add_bias(candidates: Candidates, sampling: Sampling) -> None:
    """What the caller wants more or less of; -100 bans a token and 100 all others, as far as logits reach."""
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias, strict=True)
        logits = candidates.logits.copy()  # the engine's own buffer stays as it is
        logits[list(ids)] += np.asarray(biases, np.float32)
        candidates.logits = logits


def penalise_repeats(candidates: Candidates, sampling: Sampling) -> None:
    """What occurred lately is less likely (Keskar et al. 2019, arXiv:1909.05858)."""
    penalty, last_n = sampling.repeat_penalty, sampling.repeat_last_n
    if penalty == 1.0 or not last_n:
        return
    seen = np.unique(np.asarray(candidates.history[-last_n:], np.int64))
    logits = candidates.logits.copy()  # the engine's own buffer stays as it is
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    candidates.logits = logits


def penalise_occurrences(candidates: Candidates, sampling: Sampling) -> None:
    """What occurred lately loses `presence_penalty`, and `frequency_penalty` for each time, as OpenAI has it."""
    presence, frequency, last_n = sampling.presence_penalty, sampling.frequency_penalty, sampling.repeat_last_n
    if not (presence or frequency) or not last_n:
        return
    seen, counts = np.unique(np.asarray(candidates.history[-last_n:], np.int64), return_counts=True)
    logits = candidates.logits.copy()
    logits[seen] -= (counts * frequency + presence).astype(np.float32)
    candidates.logits = logits


def keep_top_n_sigma(candidates: Candidates, sampling: Sampling) -> None:
    """Those within n standard deviations of the largest logit (Tang et al. 2024, arXiv:2411.07641).

    Of logits 5, 4, 1, 0, 0 the deviation is 2.1: with n = 1 the first two stay, whatever the temperature.
    """
    if sampling.top_n_sigma > 0.0:
        logits = candidates.logits.astype(np.float64)
        candidates.keep(logits >= logits.max() - sampling.top_n_sigma * logits.std())


def keep_top_k(candidates: Candidates, sampling: Sampling) -> None:
    """The k likeliest."""
    if 0 < sampling.top_k < len(candidates.logits):
        # A copy, so that the places of the whole vocabulary are not held in memory.
        candidates.keep(np.argpartition(candidates.logits, -sampling.top_k)[-sampling.top_k :].copy())


def keep_top_p(candidates: Candidates, sampling: Sampling) -> None:
    """The fewest that together have a mass of `top_p` (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751)."""
    if sampling.top_p >= 1.0:
        return
    probs = candidates.probs
    order = np.argsort(-probs, kind="stable")
    before = np.cumsum(probs[order]) - probs[order]  # mass of the likelier ones
    inside = np.empty(len(probs), bool)
    inside[order] = before < sampling.top_p
    candidates.keep(inside)


def keep_min_p(candidates: Candidates, sampling: Sampling) -> None:
    """Those at least `min_p` times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""
    if sampling.min_p > 0.0:
        probs = candidates.probs
        candidates.keep(probs >= sampling.min_p * probs.max())


Stage = Callable[[Candidates, "Sampling"], None]

# In llama.cpp's order; temperature comes last. A stage looks at its own parameters and does nothing where they are off.
# These change logits, so they count for greedy decoding too.
PENALTIES: tuple[Stage, ...] = (add_bias, penalise_repeats, penalise_occurrences)
# The likeliest token always stays, so greedy decoding skips these.
FILTERS: tuple[Stage, ...] = (keep_top_n_sigma, keep_top_k, keep_top_p, keep_min_p)


@dataclass(frozen=True, slots=True)
class Sampling(SamplingParameters):
    """How the next token is chosen: the parameters, and the distribution that they make of logits."""

    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit), each token once

    def __post_init__(self) -> None:
        SamplingParameters.__post_init__(self)
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            raise BadSampling("logit_bias names a token twice")
        if not all(token >= 0 and -MAX_BIAS <= bias <= MAX_BIAS for token, bias in self.logit_bias):
            raise BadSampling(f"logit_bias must be from -{MAX_BIAS} to {MAX_BIAS}, of tokens from 0 on")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def changes_logits(self) -> bool:
        """Whether the likeliest token may be another than the largest logit's."""
        penalises = self.repeat_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        return bool(self.logit_bias or penalises)

    @property
    def imitated(self) -> Sampling:
        """For a drafter, whose ids may be others."""
        return dataclasses.replace(self, logit_bias=()) if self.logit_bias else self

    def distribution(
        self, logits: NDArray[np.float32], history: Sequence[int], allowed: NDArray[np.bool_] | None = None
    ) -> Distribution:
        """The distribution of the token that follows `history`.

        Args:
            logits: (n_vocab,), not changed.
            history: the tokens so far, for the penalties.
            allowed: (n_vocab,), which there are to choose from, at least one; None: all.
        """
        candidates = Candidates(logits, history)
        for stage in PENALTIES:
            stage(candidates, self)
        if self.greedy:
            return certain(_likeliest(candidates.logits, allowed))
        if allowed is not None:
            candidates.keep(allowed)
        for stage in FILTERS:
            stage(candidates, self)
        ids = np.arange(len(candidates.logits)) if candidates.ids is None else candidates.ids
        return Distribution(ids, _softmax(candidates.logits, self.temperature))


GREEDY = Sampling()


def _likeliest(logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> int:
    token = int(logits.argmax())
    if allowed is None or allowed[token]:
        return token
    ids = np.flatnonzero(allowed)
    return int(ids[logits[ids].argmax()])


def _softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    exact = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the likeliest to -inf, which is right
        weights: NDArray[np.float64] = np.exp((exact - exact.max()) / temperature)
    weights /= weights.sum()
    return weights
