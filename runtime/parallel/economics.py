"""What a conversation's tokens cost in a pass that it shares: for its controller, which thinks of one conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgellm.runtime.learning.costs import CostCurve
from edgellm.runtime.parallel.passes import PassQueue

LONGEST = 1.8  # times a pass without it, that a pass with a slice may take: nobody waits for twice a round


class SharedCurve:
    """The target's passes: a share of what the pass costs anyway, and all of what further tokens add to it.

    With S conversations and W tokens of the others a pass over n of one's own takes t(W + n). Drafting so that
    t(W + 1) / S + t(W + n) - t(W + 1) pays for one conversation makes most tokens a second for all of them: the rate
    that its tokens must beat is then that of all, S / t(W + 1). Alone it is t(n).
    """

    def __init__(self, curve: CostCurve, queue: PassQueue) -> None:
        self._curve, self._queue = curve, queue

    def __call__(self, n: int, context: int = 0) -> float:
        return self.table(n, context)[-1]

    def table(self, n_most: int, context: int) -> list[float]:
        n_sharing, n_others = max(1.0, self._queue.n_decoding), 0
        if n_sharing > 1.0:
            n_others = round(self._queue.n_decoded * (n_sharing - 1.0) / n_sharing)
        values = self._curve.table(n_others + n_most, context)[n_others:]
        return [values[0] / n_sharing + value - values[0] for value in values]

    def observe(self, n: int, context: int, seconds: float) -> None:
        """The curve learns from whole passes, where they are run."""


class SharedDraftCurve:
    """The draft model's passes: all wait for one, and those that draft at the same time share it."""

    def __init__(self, curve: CostCurve, queue: PassQueue) -> None:
        self._curve, self._queue = curve, queue

    def __call__(self, n: int, context: int = 0) -> float:
        n_sharing = max(1.0, self._queue.n_decoding) if n == 1 else 1.0
        return self._curve(max(n, round(n_sharing)), context) / n_sharing

    def table(self, n_most: int, context: int) -> list[float]:
        return [self(n, context) for n in range(1, n_most + 1)]

    def observe(self, n: int, context: int, seconds: float) -> None:
        """As of `SharedCurve`."""


def slices_by(curve: CostCurve) -> Callable[[int, int], int]:
    """How many tokens of a prompt go with a pass over `n` others behind a context, so that it stays short."""

    def slice_for(n: int, context: int) -> int:
        values: Sequence[float] = curve.table(n + 64, context)
        longest_s = LONGEST * values[n - 1]
        return sum(value <= longest_s for value in values[n:])

    return slice_for
