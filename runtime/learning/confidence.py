"""How likely the target is to accept a drafted token, learnt while drafting.

OmniDraft (arXiv:2507.02659, section 3.3) puts an acceptance head on the drafter's hidden state; this one reads what is
free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LEARNING_RATE = 0.3  # log odds; AdaGrad divides it by the root of the squared gradients so far
CLIP = 1e-3  # no probability nearer to 0 or 1


class LogisticHead:
    """Logistic regression with AdaGrad (Duchi et al. 2011), begun from weights that were fitted elsewhere."""

    def __init__(self, weights: Sequence[float], strength: float = 10.0) -> None:
        """`strength`: how hard the first observations find it to move the weights."""
        self.weights = list(weights)
        self._squares = [strength] * len(self.weights)

    def predict(self, features: Sequence[float]) -> float:
        total = sum([weight * feature for weight, feature in zip(self.weights, features, strict=True)])
        p = 1.0 / (1.0 + math.exp(-total)) if total > -30.0 else 0.0
        return min(max(p, CLIP), 1.0 - CLIP)

    def learn(self, features: Sequence[float], accepted: bool) -> None:
        error = self.predict(features) - accepted
        weights, squares = self.weights, self._squares
        for i, feature in enumerate(features):
            gradient = error * feature
            squares[i] += gradient * gradient
            weights[i] -= LEARNING_RATE * gradient / math.sqrt(squares[i])

    def to_json(self) -> dict[str, Any]:
        return {"weights": self.weights, "squares": self._squares}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave. Raises ValueError where it is not that."""
        weights, squares = (_finite(data.get(name), len(self.weights)) for name in ("weights", "squares"))
        if min(squares) <= 0.0:
            raise ValueError("squares must be positive")
        self.weights, self._squares = weights, squares


class MovingAverage:
    """A share of successes: what was seen lately, leaning on a mean over all that was ever seen."""

    def __init__(
        self, prior: float, *, n_prior: float = 8.0, half_life: float = 40.0, mean_step: float = 0.005
    ) -> None:
        """
        Args:
            prior: the long mean to begin with.
            n_prior: observations that the long mean counts for beside the recent ones.
            half_life: observations after which one counts half.
            mean_step: share of each observation in the long mean.
        """
        self._mean, self._n_prior, self._mean_step = prior, n_prior, mean_step
        self._decay = 0.5 ** (1.0 / half_life)
        self._hits = self._n = 0.0
        self.n_ever = 0  # observations that the mean stands on

    @property
    def value(self) -> float:
        return (self._mean * self._n_prior + self._hits) / (self._n_prior + self._n)

    @property
    def mean(self) -> float:
        return self._mean

    def add(self, success: bool) -> None:
        self._hits = self._hits * self._decay + success
        self._n = self._n * self._decay + 1.0
        self.n_ever += 1
        self._mean += (success - self._mean) * self._mean_step

    def restore(self, mean: Any, n_ever: Any) -> None:
        """Raises ValueError where they are no share and no number."""
        self._mean, n = _finite([mean, n_ever], 2)
        self._mean, self.n_ever = min(max(self._mean, 0.02), 0.98), max(int(n), 0)


def logit(p: float) -> float:
    """log(p / (1 - p)), within reason."""
    p = min(max(p, CLIP), 1.0 - CLIP)
    return math.log(p / (1.0 - p))


def _finite(values: Any, n: int) -> list[float]:
    if not isinstance(values, list) or len(values) != n:
        raise ValueError(f"{n} numbers were expected")
    numbers = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    if len(numbers) != n:
        raise ValueError("not every number is one")
    return numbers
