"""What a pass costs on this machine, by its width and by what the context holds.

Measured once for a model file, device, thread count and build, kept on disk, and corrected by every pass that is run
anyway. All that is decided follows from these curves, so a machine where wide passes are dear gets short drafts and one
where they are nearly free gets long ones.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgellm.runtime.backends.base import Backend, keep_common_prefix

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)  # tokens a pass that are measured; between them lines are drawn
DRAFT_WIDTHS = (1, 2, 4, 8, 16, 64)
CONTEXTS = (32, 512)  # tokens held at the time; beyond, the line goes on
N_REPEATS = 4
BUDGET_S = 8.0  # that measuring one model may take
DRIFT = 0.05  # weight of a new pass in the machine's pace; of its width's correction 0.4 times that
N_MEASURED = 16  # later passes of a width that its measurement counts as much as
REFRESH = 0.15  # a curve is written to disk again once a width has drifted by this share


class Curve(Protocol):
    """What passes cost, as a controller asks."""

    def __call__(self, n: int, context: int = 0) -> float:
        """Seconds of a pass over `n` tokens with `context` tokens held before."""
        ...

    def table(self, n_most: int, context: int) -> list[float]:
        """Seconds of a pass over 1, 2 .. n_most tokens; never falling."""
        ...

    def observe(self, n: int, context: int, seconds: float) -> None:
        """A pass took so long."""
        ...


@dataclass(slots=True)
class CostCurve:
    """Seconds of a pass over n tokens behind a context, (contexts x widths) and what later passes say of it."""

    widths: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: list[list[float]]  # [context][width]
    fixed: bool = False  # assumed, not measured: nothing corrects it
    factors: list[float] = field(default_factory=list)  # by width: what passes took over what they should take
    pace: float = 1.0  # of the machine as a whole, which no choice depends on but comparisons of two models' costs do
    _n_seen: list[int] = field(default_factory=list, repr=False, compare=False)  # passes, by width
    _at_width: dict[int, list[float]] = field(default_factory=dict, repr=False, compare=False)  # asked for before

    def __post_init__(self) -> None:
        self.factors = self.factors or [1.0] * len(self.widths)
        self._n_seen = [0] * len(self.widths)

    def __call__(self, n: int, context: int = 0) -> float:
        """Seconds of a pass over `n` tokens with `context` tokens held before."""
        return self._base(n, context) * self._factor(n) * self.pace

    def table(self, n_most: int, context: int) -> list[float]:
        """Seconds of a pass over 1, 2 .. n_most tokens; never falling, since a wider pass can stand for a narrower."""
        values = [self(n, context) for n in range(1, n_most + 1)]
        for i in range(len(values) - 1, 0, -1):
            values[i - 1] = min(values[i - 1], values[i])
        return values

    def observe(self, n: int, context: int, seconds: float) -> None:
        """A pass took so long."""
        if self.fixed or n > self.widths[-1] or seconds <= 0.0:
            return
        ratio = seconds / (self._base(n, context) * self._factor(n))
        # One pass that the system interrupted says little; a machine that is busy for long says much.
        ratio = min(max(ratio, 0.5 * self.pace), 2.0 * self.pace)
        self.pace += DRIFT * (ratio - self.pace)
        i = self._slot(n)
        self.factors[i] = self._factor(n)
        # The least of a few times flatters the widths that were lucky, so the first passes of each count for much.
        weight = max(0.4 * DRIFT, 1.0 / (self._n_seen[i] + N_MEASURED))
        self._n_seen[i] += 1
        self.factors[i] *= 1.0 + weight * min(max(ratio / self.pace - 1.0, -0.3), 0.3)

    @property
    def has_drifted(self) -> bool:
        return not self.fixed and any(abs(math.log(factor)) > math.log1p(REFRESH) for factor in self.factors)

    def _slot(self, n: int) -> int:
        return min(bisect_left(self.widths, n), len(self.widths) - 1)

    def _factor(self, n: int) -> float:
        # A width that was never run takes the correction of the next narrower one that was: measured while the machine
        # was busy, it would else look too dear for ever, and never be tried.
        i = self._slot(n)
        while i and not self._n_seen[i]:
            i -= 1
        return self.factors[i]

    def _base(self, n: int, context: int) -> float:
        rows = self._at_width.get(n)
        if rows is None:
            rows = self._at_width[n] = [_between(self.widths, row, n) for row in self.seconds]
        if len(rows) == 1:
            return rows[0]
        return max(_between(self.contexts, rows, context), 0.5 * rows[0])

    def to_json(self) -> dict[str, Any]:
        factors = [self._factor(n) for n in self.widths]
        seconds = [[s * f for s, f in zip(row, factors, strict=True)] for row in self.seconds]
        return {"widths": list(self.widths), "contexts": list(self.contexts), "seconds": seconds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostCurve:
        """Raises ValueError, KeyError or TypeError where it is no curve."""
        widths, contexts = tuple(int(n) for n in data["widths"]), tuple(int(n) for n in data["contexts"])
        seconds = [[float(s) for s in row] for row in data["seconds"]]
        shapes = {len(row) for row in seconds}
        if shapes != {len(widths)} or len(seconds) != len(contexts) or widths[0] != 1 or len(widths) > 64:
            raise ValueError("a curve of another shape")
        if sorted(set(widths)) != list(widths) or sorted(set(contexts)) != list(contexts):
            raise ValueError("a curve that does not go up")
        if not all(0.0 < s < 3600.0 for row in seconds for s in row):
            raise ValueError("times that no pass takes")
        return cls(widths, contexts, seconds)


def assumed(one_s: float, per_token: float) -> CostCurve:
    """t(n) = t(1) (1 + per_token (n - 1)): for asking what would be on another machine."""
    return CostCurve((1, 16), (0,), [[one_s, one_s * (1 + 15 * per_token)]], fixed=True)


@dataclass(slots=True)
class Costs:
    """Of a target and, where there is one, its draft model."""

    target: Curve
    draft: Curve | None = None
    n_rounds_kept: int = 16  # for which what was read off the target's curve holds


def measure(
    backend: Backend, widths: Sequence[int] = WIDTHS, repeats: int = N_REPEATS, budget_s: float = BUDGET_S
) -> CostCurve:
    """Time passes of a backend, and leave it empty.

    Widths take turns, so that a disturbance hits all alike, and the least time of each counts: what else runs on a
    machine only ever makes a pass slower. On a machine that is too busy for the budget fewer widths are measured.
    """
    widths = measurable(backend, widths)
    contexts = [n for n in CONTEXTS if n + max(widths) <= backend.n_ctx] or [0]
    # The ends first, then the middle: whatever is left out lies between two that are known.
    order = sorted(widths, key=lambda n: (n not in (widths[0], widths[-1]), widths.index(n) % 2))
    # All is judged against single tokens, so they have three turns where the others have one.
    order[len(order) // 2 : len(order) // 2] = [widths[0]]
    order.append(widths[0])
    deadline = time.perf_counter() + budget_s
    rows: list[dict[int, float]] = []
    for context in contexts:
        if rows and time.perf_counter() > deadline:
            break
        backend.truncate(0)
        backend.forward(_filler(backend, context), n_outputs=0)
        row: dict[int, float] = {}
        for _ in range(repeats):
            for n in order:
                if time.perf_counter() > deadline and len(row) >= min(2, len(widths)):
                    break
                started = time.perf_counter()
                backend.forward(_filler(backend, n), n_outputs=min(n, backend.max_outputs))
                row[n] = min(row.get(n, math.inf), time.perf_counter() - started)
                _return_to(backend, context)
        rows.append(row)
    backend.truncate(0)
    if len(rows) > 1 and rows[1].keys() != rows[0].keys():
        del rows[1]
    measured = sorted(rows[0])
    return CostCurve(tuple(measured), tuple(contexts[: len(rows)]), [[row[n] for n in measured] for row in rows])


def measurable(backend: Backend, widths: Sequence[int]) -> list[int]:
    """Those of `widths` that the backend can run: as verifications, or, where it gives one row, as reading."""
    n_most = backend.max_outputs if backend.max_outputs > 1 else backend.n_ctx
    return [n for n in widths if n <= n_most]


def _return_to(backend: Backend, context: int) -> None:
    """Hold the context alone again; a state that cannot be cut back so far is made anew."""
    filler = _filler(backend, context)
    kept = keep_common_prefix(backend, filler, context)
    if kept < context:
        backend.forward(filler[kept:], n_outputs=0)


def _filler(backend: Backend, n: int) -> list[int]:
    return [(i * 7919 + 13) % min(backend.n_vocab, 20_000) for i in range(n)]


def _between(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """A line through the two nearest points, continued at both ends."""
    if len(xs) == 1:
        return ys[0]
    i = bisect_left(xs, x, 1, len(xs) - 1)
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])
