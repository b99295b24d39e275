"""Draft with a small model of any other vocabulary: draft text, tokenise it again for the target.

String-level matching after Timor et al. 2025 (arXiv:2502.05202, SLEM), with what its implementations lack: an
incremental drafter context that is never rebuilt, token borders taken from context, and no half word proposed as a
whole one.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.memory.context import DRAFT_TOKENS_MOST
from edgellm.runtime.backends.base import Backend
from edgellm.runtime.drafters.base import Draft
from edgellm.runtime.drafters.follow import Follower
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.translate import WINDOW, GrowingText, continuation
from edgellm.runtime.vocabulary import CannotEncode, Vocabulary


class TranslatingDrafter:
    """Keeps its model's context true to the target's text, in the drafter's own tokens and chat template."""

    def __init__(self, backend: Backend, own: Vocabulary, target: Vocabulary, turn_end: int | None) -> None:
        """`turn_end`: what the target writes where the drafter would end its turn."""
        self._follower = Follower(backend)
        self._turn_end = turn_end
        self._own, self._target = own, target
        self._context = GrowingText(own, [])

    @property
    def busy_s(self) -> float:
        return self._follower.backend.busy_s

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        if own_prompt is None:
            bos = [self._own.bos] if self._own.adds_bos and self._own.bos is not None else []
            own_prompt = bos + self._own.encode_leniently(self._target.decode(prompt))
        self._context = GrowingText(self._own, own_prompt)
        self._slide()
        self._follower.settle(self._context.tokens, 0)
        self._follower.prefill(self._context.tokens)

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        changed_from = self._context.append(self._target.decode(tokens[len(tokens) - n_new :]))
        if self._slide():
            changed_from = 0
        self._follower.settle(self._context.tokens, changed_from)

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        if limit <= 0 or not self._context.tokens:
            return Draft()
        tail = tokens[-WINDOW:]
        unfinished = self._context.unfinished  # the draft must spell these bytes first: the target has them already
        text = b""
        translated: list[int] = []
        n_most = min(limit * DRAFT_TOKENS_MOST, self._follower.backend.n_ctx - len(self._context.tokens))
        logits = self._follower.read(self._context.tokens)
        for n_drafted in range(1, n_most + 1):
            token = int(logits.argmax())
            if token in self._own.end_tokens:
                if self._turn_end is not None and text[len(unfinished) :] == self._target.decode(translated):
                    translated.append(self._turn_end)
                return Draft(translated[:limit], source="model")
            piece = self._own.piece(token)
            text += piece
            if not piece or not text.startswith(unfinished[: len(text)]):
                break
            try:
                translated = continuation(self._target, tail, text[len(unfinished) :])
            except CannotEncode:
                break
            # One token more than wanted shows that the last one wanted is no half word.
            if len(translated) > limit or n_drafted == n_most:
                break
            logits = self._follower.extend([token])
        return Draft(translated[: min(limit, len(translated) - 1)] if translated else [], source="model")

    def _slide(self) -> bool:
        """Keep the newer half when the context fills up; the drafter sees less, and the output stays the target's."""
        n_ctx = self._follower.backend.n_ctx
        if len(self._context.tokens) + 8 * DRAFT_TOKENS_MOST <= n_ctx:
            return False
        self._context.drop_oldest(n_ctx // 2)
        return True

    def close(self) -> None:
        self._follower.backend.close()
