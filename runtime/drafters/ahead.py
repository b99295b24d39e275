"""A draft model that goes on while the target verifies, where the two compute on different devices.

It assumes that the target accepts all of the draft and then says what the drafter itself would: if so, the next draft
is there when the pass ends, at no time of its own. Otherwise the work is lost, which costs energy and no time. What is
verified are drafts like any other, so the output stays as it is (PEARL, arXiv:2408.11850, calls it post-verify).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from edgellm.runtime.backends.base import Backend, Interrupted
from edgellm.runtime.drafters.base import Guess, Proposer
from edgellm.runtime.sampling import GREEDY, Sampling

MAX_UNREAD = 64  # tokens that are read in one pass: who waits for it waits no longer
_USEFUL = 0.02  # of what is drafted ahead, that has to be right, else it does not pay
_N_REST = 32  # rounds, in one of which it is tried where it does not pay
_N_REST_ANSWERS = 8  # likewise, of prompts that are read beside the target
_DECAY = 0.98  # a round, of what counts as late


class AheadProposer:
    """A proposer that also drafts behind its own drafts, in a thread, until it is asked for anything."""

    def __init__(self, model: Proposer) -> None:
        self.model = model
        self.n_ahead = self.n_used = 0  # tokens drafted ahead, and of these in time for a proposal
        self._pool = ThreadPoolExecutor(1, "edgellm-ahead")
        self._work: Future[list[Guess]] | None = None
        self._enough = threading.Event()
        self._base: list[int] = []  # that `_guesses` follow
        self._guesses: list[Guess] = []
        self._hidden_s = self._mark_s = 0.0  # of the model's time: spent beside the target's; and at the work's begin
        self._n_ahead_lately = self._n_right_lately = 1.0
        self._waited_s_lately = 0.0  # for a pass that was running when the target's was over
        self._n_rounds = self._n_answers = 0
        self._pays = True

    @property
    def backend(self) -> Backend:
        return self.model.backend

    @property
    def engine_s(self) -> float:
        """Of the model's time, what the loop waited for."""
        return (self._mark_s if self._work is not None else self.model.engine_s) - self._hidden_s

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        self._settle()
        self._guesses = []
        self.model.begin(prompt, own_prompt=own_prompt, sampling=sampling)

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        self._n_right_lately += len(self._ready(tokens))
        self.model.observe(tokens, n_new)

    def n_unread(self) -> int:
        self._settle()
        return self.model.n_unread()

    def prefill(self) -> None:
        """Read what was missed, beside what the target reads: its first token waits where this takes longer."""
        self._settle()
        self._n_answers += 1
        if self._pays or not self._n_answers % _N_REST_ANSWERS:
            self._start([], self._prefilled)

    def go_ahead(self, tokens: Sequence[int], drafted: Sequence[int], limit: int, worth_s: float = math.inf) -> None:
        """The target is about to verify `drafted` behind `tokens`: draft on behind them.

        Args:
            limit: tokens at most.
            worth_s: that a token saves which is there in time, on the average. A pass that still runs when the target
                is done has to be waited for, and costs more than that where the drafter is hardly faster.
        """
        self._settle()
        self._n_rounds += 1
        self._n_ahead_lately *= _DECAY
        self._n_right_lately *= _DECAY
        self._waited_s_lately *= _DECAY
        is_of_use = self._n_right_lately >= _USEFUL * self._n_ahead_lately
        self._pays = is_of_use and self._n_right_lately * worth_s >= self._waited_s_lately
        rests = not self._pays and self._n_rounds % _N_REST
        self._guesses = []
        if limit > 0 and not rests and self.model.n_unread() <= MAX_UNREAD:
            held, proposed = list(tokens), list(drafted)
            self._start([*held, *proposed], lambda: self._drafted(held, proposed, limit))

    def n_ready(self, tokens: Sequence[int]) -> int:
        """Guesses to follow `tokens` that are there already."""
        return len(self._ready(tokens))

    def drafting(self, tokens: Sequence[int], prefix: Sequence[int]) -> Iterator[list[Guess]]:
        ready = self._ready(tokens) if not prefix else []
        if not ready:
            yield from self.model.drafting(tokens, prefix)
            return
        self.n_used += len(ready)
        yield list(ready)
        for guesses in self.model.drafting(tokens, [guess.token for guess in ready]):
            yield [*ready, *guesses]

    def explain(self) -> str:
        return f"{self.n_used} of {self.n_ahead} tokens drafted ahead were used"

    def close(self) -> None:
        self._settle()
        self._pool.shutdown()
        self.model.close()

    def _start(self, base: list[int], work: Callable[[], list[Guess]]) -> None:
        self._base, self._mark_s = base, self.model.engine_s
        self._enough.clear()
        self._work = self._pool.submit(work)

    def _prefilled(self) -> list[Guess]:
        self.model.prefill()
        return []

    def _drafted(self, tokens: list[int], drafted: list[int], limit: int) -> list[Guess]:
        settled: list[Guess] = []
        for guesses in self.model.drafting(tokens, drafted):
            # Provisional ones may be spelt otherwise by what comes; they are the last.
            settled = [guess for guess in guesses if not guess.provisional]
            if self._enough.is_set() or len(settled) >= limit:
                break
        return settled

    def _settle(self) -> None:
        """Wait for the pass that is running, and take over what the work brought."""
        work, self._work = self._work, None
        if work is None:
            return
        self._enough.set()
        asked_s = time.perf_counter()
        try:
            self._guesses = work.result()
        except Interrupted:  # whoever asked to stop finds it in the target
            self._guesses = []
        if self._base:  # not for a prompt
            self._waited_s_lately += time.perf_counter() - asked_s
        self._hidden_s += self.model.engine_s - self._mark_s
        self.n_ahead += len(self._guesses)
        self._n_ahead_lately += len(self._guesses)

    def _ready(self, tokens: Sequence[int]) -> list[Guess]:
        self._settle()
        n_base, new = len(self._base), list(tokens[len(self._base) :])
        said = [guess.token for guess in self._guesses[: len(new)]]
        if not self._guesses or not new or said != new or list(tokens[:n_base]) != self._base:
            return []
        return self._guesses[len(new) :]
