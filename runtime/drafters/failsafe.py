"""A draft model that may fail without taking the answer along."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from edgellm.runtime.backends.base import Backend, EngineError, Interrupted
from edgellm.runtime.drafters.base import Guess, Proposer
from edgellm.runtime.sampling import GREEDY, Sampling


class FailsafeProposer:
    """The draft model, until its engine fails: from then on it drafts nothing, which costs speed alone."""

    def __init__(self, model: Proposer, warn: Callable[[str], None]) -> None:
        """`warn`: told once, in a sentence, why nothing is drafted any more."""
        self.model, self._warn = model, warn
        self.failed = False

    @property
    def backend(self) -> Backend:
        return self.model.backend

    @property
    def engine_s(self) -> float:
        return self.model.engine_s

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        if not self.failed:
            with self._guarded():
                self.model.begin(prompt, own_prompt=own_prompt, sampling=sampling)

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        if not self.failed:
            with self._guarded():
                self.model.observe(tokens, n_new)

    def n_unread(self) -> int:
        return 0 if self.failed else self.model.n_unread()

    def prefill(self) -> None:
        if not self.failed:
            with self._guarded():
                self.model.prefill()

    def drafting(self, tokens: Sequence[int], prefix: Sequence[int]) -> Iterator[list[Guess]]:
        if not self.failed:
            with self._guarded():
                yield from self.model.drafting(tokens, prefix)

    def close(self) -> None:
        self.model.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            raise
        except EngineError as error:
            self._fail(error)

    def _fail(self, error: EngineError) -> None:
        self.failed = True
        self._warn(f"the drafter drafts no more: {error}")
