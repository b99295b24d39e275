"""AdaEDL (arXiv:2410.18351): stop where the drafter's entropy says that the next token will be rejected."""

from __future__ import annotations

import math

from edgellm.runtime.drafters.tuning import TUNING, Tuning


class EntropyRule:
    """A draft model's token is accepted with at least 1 - sqrt(gamma H); a draft ends where that is below a threshold.

    The threshold is steered so that acceptance stays near what is wanted.
    """

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self._threshold, self._acceptance = tuning.entropy_threshold, tuning.entropy_wanted

    def stops(self, entropy: float) -> bool:
        """`entropy`: in nats."""
        return 1.0 - math.sqrt(self._tuning.entropy_gamma * entropy) < self._threshold

    def observe(self, n_accepted: int, n_drafted: int, was_longest: bool) -> None:
        """A round is over; `was_longest`: nothing stopped it."""
        if n_drafted:
            self._acceptance = 0.5 * self._acceptance + 0.5 * n_accepted / n_drafted
            step = self._tuning.entropy_step
            change = step if self._acceptance < self._tuning.entropy_wanted else 0.0 if was_longest else -step
            self._threshold = min(max(0.9 * self._threshold + 0.1 * (self._threshold + change), 0.0), 1.0)
