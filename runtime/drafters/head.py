"""Draft with a head that ships with the target: a layer that is given the target's own states (MTP, NextN).

Gloeckle et al. 2024, arXiv:2404.19737, and DeepSeek-V3, arXiv:2412.19437, train it; the head reads token p together
with the target's state of token p - 1, and guesses token p + 1. Further guesses go on from its own states, which are
not the target's: what was read with them is cut again, and what was accepted is read once more with the true ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgellm.memory.context import HEAD_REACH
from edgellm.runtime.backends.llama_nextn import LlamaHead
from edgellm.runtime.drafters.base import Guess
from edgellm.runtime.drafters.kv_sync import SPARE
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.sampling import GREEDY, Sampling

MAX_BEHIND = 4  # copied tokens that it goes on behind: it reads each in a pass of its own, since it lacks the states


class HeadDrafter(ModelDrafter):
    """Speaks the target's ids, draws as `ModelDrafter` does, and reads late: the states of the latest tokens are kept.

    Positions are those of the target's text; the head may begin to read in the middle of it.
    """

    def __init__(self, head: LlamaHead) -> None:
        super().__init__(head)
        self.head = head
        self._n_true = 0  # of the tokens that the head holds, those that were read with the target's states
        self._reaches = min(HEAD_REACH, head.n_ctx // 2)

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        super().begin(prompt, own_prompt=own_prompt, sampling=sampling)
        self.head.truncate(self._n_true)

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        super().observe(tokens, n_new)
        self.head.truncate(self._n_true)

    def n_unread(self) -> int:
        if self.head.shares:
            return 1
        return max(1, min(len(self._tokens) - self.head.start - self._n_shared(), self._reaches))

    def prefill(self) -> None:
        """The target has not read it yet, so its states are not there."""

    def drafting(self, tokens: Sequence[int], prefix: Sequence[int]) -> Iterator[list[Guess]]:
        if len(prefix) > MAX_BEHIND or not self._settle():
            return
        head, end = self.head, len(self._tokens)
        held_to = head.start + len(head.tokens)
        if end - head.start + len(prefix) + 1 > head.n_ctx:
            return
        logits = head.read(self._tokens[held_to:])
        self._n_true = len(head.tokens)
        extra: list[int] = []
        for token in prefix:
            logits = head.extend(token)
            extra.append(token)
        yield from self._guesses(logits, extra, head, head.extend)

    def _slide(self) -> None:
        """The target's own text never outgrows its context; the head begins anew where its own is full."""

    def _n_shared(self) -> int:
        """Tokens that the head holds of the text and need not read again; one is always left to read."""
        head, held = self.head, self.head.tokens
        n_most = max(0, min(self._n_true, len(held), len(self._tokens) - 1 - head.start))
        n = min(self._n_known, n_most)
        while n < n_most and held[n] == self._tokens[head.start + n]:
            n += 1
        return n

    def _settle(self) -> bool:
        """Cut the head back to what it shares with the text, so that what is missing can be read; False: it cannot."""
        n, head, end = self._n_shared(), self.head, len(self._tokens)
        if head.shares:
            head.begin_at(end - 1)
            self._n_true = self._n_known = 0
            return head.rows.first_readable < end <= min(head.rows.end + 1, head.n_ctx)
        reaches_to = head.start + n
        is_full = end - head.start + SPARE > head.n_ctx
        if is_full or end - reaches_to > self._reaches or reaches_to < self.head.rows.first_readable:
            head.begin_at(max(end - self._reaches, self.head.rows.first_readable))
        else:
            head.truncate(n)
        self._n_true = len(head.tokens)
        self._n_known = self._n_true
        return head.start < end and self.head.rows.end >= end - 1
