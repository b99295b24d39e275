"""Keep a draft model's cache true to a token sequence that is settled by somebody else."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.backends.base import Backend, CannotTruncate, Logits


class Follower:
    """A backend that follows a sequence: what it holds of it stays, what differs is cut, what is missing is read late.

    Nothing here grows with the context in a round: callers say from where on the sequence may have changed.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._held: list[int] = []  # tokens whose keys and values the backend has: settled ones, then drafted ones

    def settle(self, tokens: Sequence[int], changed_from: int) -> None:
        """The sequence is now `tokens`; below `changed_from` it is what it was."""
        n = min(changed_from, len(self._held))
        n_max = min(len(tokens), len(self._held))
        while n < n_max and self._held[n] == tokens[n]:
            n += 1
        # One token is always left to read: its logits are where drafting starts.
        n = min(n, len(tokens) - 1)
        if n < len(self._held):
            try:
                self.backend.truncate(n)
            except CannotTruncate:  # recurrent state: read the sequence again
                self.backend.truncate(0)
                n = 0
            del self._held[n:]

    def read(self, tokens: Sequence[int]) -> Logits:
        """Read what is missing of the settled `tokens`; the logits after the last, (n_vocab,)."""
        return self.extend(tokens[len(self._held) :])

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Read further tokens behind what is held; the logits after the last, (n_vocab,)."""
        row: Logits = self.backend.forward(tokens, keep=1)[0]
        self._held += tokens
        return row

    @property
    def n_held(self) -> int:
        return len(self._held)

    def room(self, tokens: Sequence[int], n_more: int) -> bool:
        """Whether the context takes `tokens` and that many more."""
        return len(tokens) + n_more <= self.backend.n_ctx
