"""Keep a draft model's cache true to a token sequence that is settled by somebody else."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.backends.base import Backend, Logits, keep_common_prefix

SPARE = 32  # tokens of its context that a draft has room in


class KvSync:
    """A backend that follows a sequence: what it holds of it stays, what differs is cut, what is missing is read late.

    Nothing here grows with the context in a round: callers say from where on the sequence may have changed.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def sync(self, tokens: Sequence[int], changed_from: int) -> None:
        """The sequence is now `tokens`; below `changed_from` it is what it was."""
        # One token is always left to read: its logits are where drafting starts.
        keep_common_prefix(self.backend, tokens, len(tokens) - 1, n_known=changed_from)

    def n_unread(self, tokens: Sequence[int], changed_from: int) -> int:
        """How many of `tokens` are to be read; nothing is cut yet."""
        held = self.backend.tokens
        n_max = max(0, min(len(tokens) - 1, len(held)))
        n = min(changed_from, n_max)
        while n < n_max and held[n] == tokens[n]:
            n += 1
        return len(tokens) - n

    def n_to_drop(self, tokens: Sequence[int], changed_from: int, reach: int) -> int:
        """How many of the oldest tokens are better forgotten than read: all before `reach`, if most are unread."""
        if len(tokens) <= reach or self.n_unread(tokens, changed_from) <= reach:
            return 0
        return len(tokens) - reach

    def read(self, tokens: Sequence[int]) -> Logits:
        """Read what is missing of the settled `tokens`; the logits after the last, (n_vocab,)."""
        return self.extend(tokens[len(self.backend.tokens) :])

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Read further tokens behind what is held; the logits after the last, (n_vocab,)."""
        row: Logits = self.backend.forward(tokens, n_outputs=1)[0]
        return row

    def prefill(self, tokens: Sequence[int]) -> None:
        """Read the settled `tokens` but for the last."""
        self.backend.forward(tokens[len(self.backend.tokens) : -1], n_outputs=0)

    def n_to_slide(self, n_tokens: int) -> int:
        """How many of the oldest of `n_tokens` must go so that a draft has room; 0 while it has.

        Where what stays must be read again, half of the context goes, so that this is rare.
        """
        backend = self.backend
        n_spare = min(SPARE, backend.n_ctx // 2)
        if n_tokens + n_spare <= backend.n_ctx:
            return 0
        n_kept = backend.n_ctx - backend.n_ctx // 8 - n_spare if backend.can_shift else backend.n_ctx // 2
        return n_tokens - max(1, n_kept)

    def slide(self, n: int, n_known: int) -> int:
        """The sequence has lost its first `n` tokens; below `n_known` it was what is held. Returns that number anew."""
        held = len(self.backend.tokens)
        if not self.backend.can_shift or not n < min(n_known, held):
            return 0
        self.backend.forget_oldest(n)
        return min(n_known, held) - n

    def room(self, tokens: Sequence[int], n_more: int) -> bool:
        """Whether the context takes `tokens` and that many more."""
        return len(tokens) + n_more <= self.backend.n_ctx
