"""How many threads a model's passes take: all, until another program has the cores that they would wait for.

Beside one busy program on two cores a pass on both waits at each of its barriers for the core that is taken, and is
slower than a pass on one. What passes took says so later on; in the beginning the system is asked who computes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

import psutil

WIDEST = 32  # tokens of a pass for which the number is chosen; wider ones take all threads
_TRIED = 2  # passes that a look at another number takes
_BEFORE = 4  # passes of a width before the first look
_SLOW = 1.3  # times what passes took when the present number was last found to be best: something may be in the way
_BETTER = 0.9  # of the present number's time, which another must stay below
_NEWEST = 0.3  # weight of a pass in a running mean
_SOONEST, _LATEST = 16, 256  # passes between two looks while fewer threads than all are taken; twice as many each time


class Crowd:
    """Whether other programs compute: asked once, for the time since this was made."""

    _CORES = 0.3  # that they took on the average

    def __init__(self) -> None:
        self._began_s, self._others_s = time.monotonic(), self._of_others()

    def __call__(self) -> bool:
        return self._of_others() - self._others_s > self._CORES * (time.monotonic() - self._began_s)

    @staticmethod
    def _of_others() -> float:
        """Seconds that all cores have worked for them."""
        everybody, own = psutil.cpu_times(), psutil.Process().cpu_times()
        return float(everybody.user + everybody.system - own.user - own.system)


class ThreadChoice:
    """Between 1, 2, 4, … and `n_most` threads; told what each pass took. Widths are told apart roughly."""

    def __init__(self, n_most: int, is_crowded: Callable[[], bool] | None = None) -> None:
        """`is_crowded`: asked once, after the first passes."""
        self._is_crowded = is_crowded or Crowd()
        self.choices = sorted({n_most, *(1 << i for i in range(10) if 1 << i < n_most)})
        self.best = n_most
        self._mean_s: dict[int, float] = {}  # of a width, with `best` threads
        self._usual_s: dict[int, float] = {}  # likewise, when that was found to be best
        self._n_seen: dict[int, int] = defaultdict(int)
        self._untried = [n for n in self.choices if n != n_most]  # where others compute, the fewest last
        self._trial: tuple[int, int, list[float]] | None = None  # width, threads, seconds
        self._n_passes, self._next_look, self._wait = 0, 0, _SOONEST

    def next(self, n_tokens: int) -> int:
        """The threads of the next pass, which is of so many tokens."""
        if len(self.choices) == 1:
            return self.best
        self._n_passes += 1
        width = n_tokens.bit_length()
        if self._trial is None and (other := self._due(width)) is not None:
            self._trial = width, other, []
        if self._trial is not None and self._trial[0] == width:
            return self._trial[1]
        return self.best

    def _due(self, width: int) -> int | None:
        """A number that should be looked at in passes of this width; None mostly."""
        if self._n_seen[width] < _BEFORE:
            return None
        if self._untried:
            if self._is_crowded():
                return self._untried.pop()
            self._untried = []
        *fewer, most = self.choices
        if self.best != most:
            return most if self._n_passes >= self._next_look else None
        is_slow = self._mean_s[width] > _SLOW * self._usual_s[width]
        return fewer[self._n_passes % len(fewer)] if is_slow else None

    def took(self, n_tokens: int, n_threads: int, seconds: float) -> None:
        """A pass of so many tokens took so long."""
        width = n_tokens.bit_length()
        if self._trial is not None and self._trial[:2] == (width, n_threads):
            self._trial[2].append(seconds)
            if len(self._trial[2]) == _TRIED:
                self._judge(width, n_threads, sum(self._trial[2]) / _TRIED)
            return
        known = self._mean_s.get(width, seconds)
        # A pass that was held up once counts as twice as long at most.
        self._mean_s[width] = known + _NEWEST * (min(seconds, 2 * known) - known)
        self._usual_s[width] = min(self._usual_s.get(width, seconds), self._mean_s[width])
        self._n_seen[width] += 1

    def _judge(self, width: int, n_threads: int, seconds: float) -> None:
        self._trial = None
        if seconds < _BETTER * self._mean_s[width]:
            self.best, self._wait = n_threads, _SOONEST
            self._mean_s, self._usual_s = {width: seconds}, {width: seconds}
            self._n_seen.clear()
        else:  # it is slow for another reason: a longer context, a slower clock
            self._usual_s[width] = self._mean_s[width]
            self._wait = min(2 * self._wait, _LATEST)
        self._next_look = self._n_passes + self._wait
