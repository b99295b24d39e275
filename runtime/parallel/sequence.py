"""One conversation's part of a shared context, as the loop and the drafters see it: a backend like any other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.base import ContextFull, EngineError, Logits, StopSignal
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_sequences import MIN_PARKED
from edgellm.runtime.backends.parked import n_common
from edgellm.runtime.parallel.passes import Job, Meeting, PassQueue
from edgellm.runtime.parallel.saved_prefixes import SavedPrefixes

MIN_ADOPTED = 32  # tokens that another sequence must share beyond one's own before its cells are taken over


class SequenceBackend:
    """One sequence of a shared context; used by a member of the meeting alone."""

    can_shift = False

    def __init__(
        self,
        meeting: Meeting,
        queue: PassQueue,
        sequence: int,
        *,
        max_outputs: int,
        stop: StopSignal,
        saved: SavedPrefixes | None = None,
    ) -> None:
        """`saved`: beginnings that are kept on the disk."""
        context = queue.context
        self._meeting, self._queue, self._sequence, self._stop = meeting, queue, sequence, stop
        self._saved = saved
        self.model: LlamaModel = context.model
        self.settings: ContextSettings = context.settings
        self.n_vocab, self.n_ctx, self.n_threads = context.n_vocab, context.n_ctx, context.n_threads
        self.max_outputs = min(max_outputs, context.n_outputs)
        self.engine_s = 0.0
        self.n_embd = context.n_embd
        self._wants_states, self._states = False, np.empty((0, context.n_embd), np.float32)

    @property
    def tokens(self) -> list[int]:
        return self._queue.context.held[self._sequence]

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        if n_outputs > min(self.max_outputs, len(tokens)):
            raise EngineError(
                f"{n_outputs} rows of logits asked for, {min(self.max_outputs, len(tokens))} are to be had"
            )
        if len(self.tokens) + len(tokens) > self.n_ctx:
            raise ContextFull(f"the context of {self.n_ctx:,} tokens is full: raise --ctx or /clear the conversation")
        if not tokens:
            return np.empty((0, self.n_vocab), np.float32)
        job = Job(self._sequence, tokens, n_outputs, self._wants_states and n_outputs == len(tokens))
        logits = self._meeting.wait(self._queue, job, self._stop)
        self.engine_s += job.took_s
        self._states = job.states if job.states is not None else self._states[:0]
        return logits

    def want_hidden_states(self, wanted: bool = True) -> bool:
        before, self._wants_states = self._wants_states, wanted
        return before

    def hidden_states(self) -> NDArray[np.float32]:
        if not len(self._states):
            raise EngineError(f"{self.model.path.name}: the last pass kept no hidden states")
        return self._states

    def truncate(self, length: int) -> None:
        if length < len(self.tokens):
            self._meeting.settle()
            if len(self.tokens) - length > MIN_PARKED:  # no draft that was rejected
                self._queue.context.park(self._sequence)
            self._queue.context.truncate(self._sequence, length)

    def adopt(self, tokens: Sequence[int]) -> None:
        self._meeting.settle()
        context, best = self._queue.context, (n_common(self.tokens, tokens) + MIN_ADOPTED, -1)
        for sequence, held in enumerate(context.held):
            if sequence != self._sequence and (n := n_common(held, tokens)) > best[0]:
                best = n, sequence
        if best[1] >= 0 and context.can_share:
            context.park(self._sequence, keep=best[1])
            context.copy(best[1], self._sequence, best[0])
        if self._saved is not None:
            n = n_common(self.tokens, tokens)
            if self._saved.n_kept(tokens) >= n + MIN_ADOPTED:
                self.truncate(n)
                self._saved.restore(self._sequence, tokens, self._stop)

    def forget(self) -> None:
        self._meeting.settle()
        self._queue.context.truncate(self._sequence, 0)

    def forget_oldest(self, n: int) -> None:
        raise EngineError(f"{self.model.path.name}: a sequence that shares its cells with others is not moved")

    def close(self) -> None:
        """Leave the sequence to the next conversation, which may begin like it."""
