"""Draft with a small model of any other vocabulary: draft text, and say it in the target's tokens.

After Timor et al. 2025 (arXiv:2502.05202) and OmniDraft (arXiv:2507.02659), with what implementations lack: an
incremental drafter context that is never rebuilt, token borders taken from context, no half word proposed as a whole
one, and a text that is read only when drafting is about to happen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from edgellm.runtime.backends.base import Backend
from edgellm.runtime.drafters.base import Guess
from edgellm.runtime.drafters.kv_sync import KvSync
from edgellm.runtime.drafters.model import top_of
from edgellm.runtime.drafters.own_draft import OwnDraft, guesses_of
from edgellm.runtime.drafters.retokenizers import (
    MapRetokenizer,
    Retokenized,
    Retokenizer,
    TextRetokenizer,
    learn_mappings,
)
from edgellm.runtime.learning.ngrams import NgramCache
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.translate import WINDOW, GrowingText
from edgellm.runtime.text.vocabulary import Vocabulary

MAX_PASSES = 64  # of one round
N_WAIT = 12  # tokens of the target that may wait to be tokenised while nobody asks for drafts
NEVER = np.float32(-1e4)  # a logit that is never the largest, and no infinity


class TranslatingDrafter:
    """Keeps its model's context true to the target's text, in the drafter's own tokens and chat template."""

    def __init__(
        self,
        backend: Backend,
        own: Vocabulary,
        target: Vocabulary,
        turn_end: int | None,
        *,
        retokenizer: Retokenizer | None = None,
        cache: NgramCache | None = None,
        shared_only: bool = False,
        reach: int | None = None,
        merged_probs: bool = False,
    ) -> None:
        """
        Args:
            turn_end: what the target writes where the drafter would end its turn.
            retokenizer: how drafts are said in the target's vocabulary; tokenising the text again if None.
            cache: learns which own tokens the target's are.
            shared_only: never draft a token that the target's vocabulary lacks (token-level intersection); needs a
                `MapRetokenizer`.
            reach: own tokens that are read when it must read many; None: all.
            merged_probs: where the target samples, draw drafts and hand on OmniDraft's merged probabilities; needs a
                `MapRetokenizer`. More is accepted, and the output follows the target's distribution only approximately
                where several entries of the cache begin with the same token.
        """
        self.backend = backend
        self._kv = KvSync(backend)
        self._turn_end = turn_end
        self._own, self._target = own, target
        self._retokenizer = retokenizer or TextRetokenizer(own, target)
        self._cache, self._reach = cache, reach
        self._mask = None
        if shared_only and isinstance(self._retokenizer, MapRetokenizer):
            lacking = np.array(self._retokenizer.direct) < 0
            lacking[list(own.end_tokens)] = False
            self._mask = np.where(lacking, NEVER, np.float32(0.0))
        self._direct = (
            np.array(self._retokenizer.direct)
            if merged_probs and isinstance(self._retokenizer, MapRetokenizer)
            else None
        )
        self._sampling = GREEDY
        self._rng = np.random.default_rng()
        self._context = GrowingText(own, [])
        self._n_known = 0  # tokens of the context below which the backend is known to hold the same
        self._n_unlearnt = 0  # target tokens whose own tokens what follows may still change
        self._waiting: list[int] = []  # of the target, not in the context yet
        self._said: list[int] = []  # by the target last, those included

    @property
    def engine_s(self) -> float:
        return self.backend.engine_s

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        self._take_in()
        self._sampling = sampling
        self._rng = np.random.default_rng(None if sampling.seed is None else (sampling.seed, 1))
        if own_prompt is None:
            bos = [self._own.bos] if self._own.adds_bos and self._own.bos is not None else []
            own_prompt = bos + self._own.encode_leniently(self._target.decode(prompt))
        self._context = GrowingText(self._own, own_prompt)
        self._n_known = self._n_unlearnt = 0
        self._slide()

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        if len(self._waiting) + n_new > WINDOW:
            self._take_in()
        self._waiting += tokens[len(tokens) - n_new :]
        self._said = list(tokens[-WINDOW:])
        if len(self._waiting) >= N_WAIT:
            self._take_in()

    def _take_in(self) -> None:
        """Tokenise what waits, and learn from it."""
        if not self._waiting:
            return
        n_new, changed_from = len(self._waiting), self._context.append(self._target.decode(self._waiting))
        self._waiting = []
        self._n_known = min(self._n_known, changed_from)
        self._learn(n_new)
        self._slide()

    def _learn(self, n_new: int) -> None:
        self._n_unlearnt += n_new
        if self._cache is None or self._n_unlearnt < 2 or self._context.unfinished:
            return
        n = min(self._n_unlearnt, WINDOW)
        recent = self._said[len(self._said) - n :]
        learn_mappings(self._cache, self._own, self._target, self._context.tokens[-4 * WINDOW :], recent, n)
        self._n_unlearnt = 1

    def n_unread(self) -> int:
        n = self._kv.n_unread(self._context.tokens, self._n_known) + len(self._waiting)
        return n if self._reach is None else min(n, self._reach)

    def prefill(self) -> None:
        self._take_in()
        self._leave_out()
        self._kv.sync(self._context.tokens, self._n_known)
        self._n_known = len(self._context.tokens)
        self._kv.prefill(self._context.tokens)

    def _leave_out(self) -> None:
        """What lies before the reach of a text that is mostly unread is left out for good."""
        tokens = self._context.tokens
        if self._reach is not None and self._kv.n_to_drop(tokens, self._n_known, self._reach):
            self._context.drop_oldest(self._reach)
            self._n_known = 0

    def drafting(self, tokens: Sequence[int], prefix: Sequence[int]) -> Iterator[list[Guess]]:
        self._take_in()
        context = self._context
        if not context.tokens:
            return
        self._leave_out()
        n_known = self._n_known
        if prefix:
            context = context.copy()
            n_known = min(n_known, context.append(self._target.decode(prefix)))
        self._kv.sync(context.tokens, n_known)
        self._n_known = min(len(self._context.tokens), n_known) if prefix else len(context.tokens)
        backend, own = self.backend, self._own
        tail = (*tokens[-WINDOW:], *prefix)[-WINDOW:]
        unfinished = context.unfinished  # the draft must begin with these bytes: the target has them already
        draft = OwnDraft()
        draws = self._direct is not None and not self._sampling.greedy
        text = b""
        if len(backend.tokens) >= backend.n_ctx - 1:
            return
        logits = self._kv.read(context.tokens)
        for _ in range(MAX_PASSES):
            row = logits if self._mask is None else logits + self._mask
            token, top, entropy = top_of(row)
            if draws:
                draft.drawn.append(self._sampling.distribution(row, [*context.tokens[-64:], *draft.tokens]))
                token = draft.drawn[-1].draw(self._rng)
            if token in own.end_tokens:
                yield self._ended(tail, draft, len(unfinished), text, Guess(self._turn_end or 0, top, entropy))
                return
            piece = own.piece(token)
            text += piece
            if not piece or not text.startswith(unfinished[: len(text)]):
                return
            draft.append(token, top, entropy)
            retokenized = self._retokenizer.retokenize(tail, draft.tokens, len(unfinished))
            yield guesses_of(retokenized, draft, own, self._target, self._direct)
            if not retokenized.goes_on or len(backend.tokens) >= backend.n_ctx:
                return
            logits = self._kv.extend([token])

    def _ended(self, tail: Sequence[int], draft: OwnDraft, n_skip: int, text: bytes, end: Guess) -> list[Guess]:
        """All that was drafted before the model ended its turn, and that end where the target's tokens say it whole."""
        retokenized = self._retokenizer.retokenize(tail, draft.tokens, n_skip) if draft.tokens else Retokenized([], 0)
        settled = retokenized._replace(n_settled=len(retokenized.tokens))
        guesses = guesses_of(settled, replace(draft, drawn=[]), self._own, self._target)
        if self._turn_end is not None and text[n_skip:] == self._target.decode(retokenized.tokens):
            guesses.append(end)
        return guesses

    def _slide(self) -> None:
        """Keep the newer part when the context fills up; the drafter sees less, and the output stays the target's."""
        n_held = len(self._context.tokens)
        if n := self._kv.n_to_slide(n_held):
            self._context.drop_oldest(n_held - n)
            self._n_known = self._kv.slide(n, self._n_known)

    def close(self) -> None:
        self.backend.close()
