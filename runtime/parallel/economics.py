"""What a conversation's tokens cost in a pass that it shares: for its controller, which thinks of one conversation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from edgellm.runtime.learning.costs import CostCurve
from edgellm.runtime.parallel.passes import PassQueue

LONGEST = 1.8  # times a pass without it, that a pass with a slice may take: nobody waits for twice a round


class SharedCurve:
    """The target's passes: one conversation's share of a pass in which all draft as much.

    With S conversations and a slice of R tokens beside them, n tokens of each take t(S n + R), a share of it 1 / S.
    That all draft alike is assumed, though they do not: what others draft now would make further tokens cheap (t rises
    in steps, of tiles of columns), so that each would draft because the others do, and all be slower for it. The mean
    over the last passes; alone it is t(n).
    """

    def __init__(self, curve: CostCurve, queue: PassQueue) -> None:
        self._curve, self._queue = curve, queue

    def __call__(self, n: int, context: int = 0) -> float:
        return self.table(n, context)[-1]

    def table(self, n_most: int, context: int) -> list[float]:
        shapes = Counter((one.n_decoding, one.n_read) for one in self._queue.lately) or Counter([(1, 0)])
        values = self._curve.table(max(n_sharing * n_most + n_read for n_sharing, n_read in shapes), context)
        n_passes, found = shapes.total(), [0.0] * n_most
        for (n_sharing, n_read), times in shapes.items():
            for n in range(1, n_most + 1):
                found[n - 1] += times / n_passes / n_sharing * values[n_sharing * n + n_read - 1]
        return found

    def observe(self, n: int, context: int, seconds: float) -> None:
        """The curve learns from whole passes, where they are run."""


class SharedDraftCurve:
    """The draft model's passes: all wait for one and for what leads to it, and those that draft together share it."""

    def __init__(self, curve: CostCurve, queue: PassQueue) -> None:
        self._curve, self._queue = curve, queue

    def __call__(self, n: int, context: int = 0) -> float:
        lately = self._queue.lately
        if n > 1 or not lately:
            return self._curve(n, context)
        n_sharing = sum(one.n_decoding for one in lately) / len(lately)
        idle_s = sum(one.idle_s for one in lately) / len(lately)
        return (self._curve(round(n_sharing), context) + idle_s) / n_sharing

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
