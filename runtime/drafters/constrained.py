"""Drafts of an answer that is held to a constraint: only legal tokens, and what the constraint forces for nothing."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.constraint import ConstraintState
from edgellm.runtime.drafters.base import FORCED, Draft, Drafter, DraftsBehind, WeighsPasses, WorksAhead
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.vocabulary import CannotEncode, Vocabulary

MAX_BYTES_PER_TOKEN = 32  # of forced text that is tokenised, for each token that there is room for


class ConstrainedDrafter:
    """Another drafter's proposals, cut at their first illegal token; and forced text, in front of them and behind.

    Forced text is verified like any draft, since the target may write the same text in other tokens.
    """

    def __init__(self, drafter: Drafter, constraint: ConstraintState, vocabulary: Vocabulary) -> None:
        """`constraint`: the loop's own, which advances it."""
        self._drafter, self._constraint, self._vocabulary = drafter, constraint, vocabulary

    @property
    def engine_s(self) -> float:
        return self._drafter.engine_s

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        self._drafter.begin(prompt, own_prompt=own_prompt, sampling=sampling)

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        proposed = self._proposed(tokens, self._forced((), limit), limit)
        n_legal = self._constraint.n_legal(proposed.tokens)
        if n_legal < len(proposed.tokens) and proposed.probs is not None and proposed.probs[n_legal] is not None:
            # A drawn token that is dropped for what it is would bend the distribution: the target has to reject it.
            draft = _first(proposed, n_legal + 1)
        else:
            draft = _first(proposed, n_legal)
            draft = _followed(draft, self._forced(draft.tokens, limit - n_legal))
        if isinstance(self._drafter, WeighsPasses):
            self._drafter.verifies(len(draft.tokens))
        return draft

    def verifying(self, tokens: Sequence[int], drafted: Sequence[int], limit: int) -> None:
        if isinstance(self._drafter, WorksAhead):
            self._drafter.verifying(tokens, drafted, limit)

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        self._drafter.observe(tokens, n_new)

    def close(self) -> None:
        self._drafter.close()

    def _proposed(self, tokens: Sequence[int], forced: list[int], limit: int) -> Draft:
        if not forced:
            return self._drafter.propose(tokens, limit)
        if isinstance(self._drafter, DraftsBehind):
            return self._drafter.propose_behind(tokens, forced, limit)
        self._drafter.propose(tokens, 0)  # so that it knows of the round
        return Draft(forced, source=FORCED, sources=[FORCED] * len(forced))

    def _forced(self, drafted: Sequence[int], limit: int) -> list[int]:
        """Tokens of the text that must follow `drafted`, at most `limit`."""
        text = self._constraint.forced(drafted)[: limit * MAX_BYTES_PER_TOKEN] if limit > 0 else b""
        if not text:
            return []
        try:
            tokens = self._vocabulary.encode(text)[:limit]
        except CannotEncode:
            return []
        return tokens[: self._constraint.n_legal([*drafted, *tokens]) - len(drafted)]


def _first(draft: Draft, n: int) -> Draft:
    """The first `n` tokens."""
    if n == len(draft.tokens):
        return draft
    probs = draft.probs[:n] if draft.probs is not None else None
    return Draft(draft.tokens[:n], probs, draft.source, draft.sources[:n])


def _followed(draft: Draft, forced: Sequence[int]) -> Draft:
    """The same with forced tokens behind it."""
    if not forced:
        return draft
    sources = [*(draft.sources or [draft.source] * len(draft.tokens)), *[FORCED] * len(forced)]
    probs = [*draft.probs, *[None] * len(forced)] if draft.probs is not None else None
    return Draft([*draft.tokens, *forced], probs, "+".join(dict.fromkeys(sources)), sources)
