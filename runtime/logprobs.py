"""What the target's own probabilities of an answer's tokens were, before sampling changed anything."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.backends.base import Backend, Interrupted, Logits, StopSignal

MAX_TOP = 20  # alternatives that may be asked for; OpenAI's bound


@dataclass(frozen=True, slots=True)
class Logprob:
    """Of one token; natural logarithms."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens, the likeliest first
    begin: int = 0  # characters of the answer's text before this token's


def logprobs_of(logits: Logits, tokens: Sequence[int], n_top: int) -> list[Logprob]:
    """Of tokens under the rows that they were chosen from, (n >= len(tokens), n_vocab)."""
    return [_logprob(row, token, n_top) for row, token in zip(logits, tokens, strict=False)]


def _logprob(row: NDArray[np.float32], token: int, n_top: int) -> Logprob:
    exact = row.astype(np.float64)
    exact -= exact.max()
    exact -= np.log(np.exp(exact).sum())
    top: tuple[tuple[int, float], ...] = ()
    if n_top:
        n_top = min(n_top, len(exact))
        ids = np.argpartition(-exact, n_top - 1)[:n_top]
        top = tuple((int(i), float(exact[i])) for i in sorted(ids, key=lambda i: (-exact[i], i)))
    return Logprob(token, float(exact[token]), top)


def score(backend: Backend, tokens: Sequence[int], n_top: int, stop: StopSignal | None = None) -> list[Logprob]:
    """Of every token but the first, which nothing precedes; the backend then holds all but the last.

    It reads everything anew, in passes as narrow as those that draft: nobody keeps logits of what was read.

    Raises:
        ContextFull: they do not fit.
        Interrupted: `stop` was set.
    """
    backend.truncate(0)
    found: list[Logprob] = []
    while len(found) < len(tokens) - 1:
        if stop is not None and stop.is_set():
            raise Interrupted("stopped while reading")
        n_done = len(found)
        chunk = tokens[n_done : min(n_done + backend.max_outputs, len(tokens) - 1)]
        logits = backend.forward(chunk, n_outputs=len(chunk))
        found += logprobs_of(logits, tokens[n_done + 1 : n_done + 1 + len(chunk)], n_top)
    return found


class ShownLogprobs:
    """Those whose text was shown; what is held back may be cut off by a stop text."""

    def __init__(self) -> None:
        self._waiting: deque[Logprob] = deque()
        self.shown: list[Logprob] = []

    def add(self, found: Logprob, begin: int) -> None:
        self._waiting.append(Logprob(found.token, found.logprob, found.top, begin))

    def show(self, n_shown: int, *, final: bool = False, stopped: bool = False) -> tuple[Logprob, ...]:
        """What goes with the text up to `n_shown` characters.

        Args:
            final: nothing follows, so tokens without a text of their own go too, unless the text was `stopped`.
        """
        new = tuple(self._take(n_shown, final and not stopped))
        self.shown += new
        return new

    def _take(self, n_shown: int, everything: bool) -> Iterator[Logprob]:
        while self._waiting and (everything or self._waiting[0].begin < n_shown):
            yield self._waiting.popleft()
