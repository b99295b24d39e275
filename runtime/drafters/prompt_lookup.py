"""Prompt lookup: tokens that followed the same words earlier in the conversation, or in earlier answers.

Costs no pass of a model. The controller proposes these first and lets a draft model go on behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.drafters.base import COPY, STORE
from edgellm.runtime.learning.edit_alignment import EditAlignment
from edgellm.runtime.learning.lookup import STORE_VOTE, Candidate, Lookup
from edgellm.runtime.learning.ngram_index import GAP, NgramIndex

N_PROMPT_END = 4  # tokens of a prompt's end that the store keeps, so that an answer's beginning has a context


class PromptLookup:
    """The places where the end of the text was said before, in up to two indexes, and the edits made since."""

    def __init__(
        self, conversation: NgramIndex | None, store: NgramIndex | None, *, store_vote: float = STORE_VOTE
    ) -> None:
        """What the target says is added to both. See `Lookup` for `store_vote`."""
        self.conversation, self.store = conversation, store
        self._alignment = EditAlignment(conversation) if conversation is not None else None
        sources = {COPY: conversation, STORE: store}
        indexes = {name: index for name, index in sources.items() if index is not None}
        self._lookup = Lookup(indexes, self._alignment, store_vote=store_vote)

    def begin(self, prompt: Sequence[int]) -> None:
        """A turn starts. Of the conversation, what the prompt repeats is kept."""
        if (said := self.conversation) is not None:
            known = said.tokens()
            if len(known) > len(prompt) or list(prompt[: len(known)]) != known.tolist():
                said.clear()
                known = known[:0]
            said.extend(prompt[len(known) :])
        if self._alignment is not None:
            self._alignment.begin()
        if self.store is not None:
            self.store.extend([GAP, *prompt[-N_PROMPT_END:]])

    def start(self, tokens: Sequence[int], proposed: Sequence[int] = ()) -> None:
        """Candidates will follow `tokens` and what is `proposed` behind them."""
        self._lookup.start(tokens, proposed)

    def candidate(self) -> Candidate | None:
        """What would come next; None where nothing like it was said."""
        return self._lookup.candidate()

    def take(self, token: int) -> None:
        """`token` is proposed: go on behind it."""
        self._lookup.take(token)

    def observe(self, new: Sequence[int]) -> None:
        """These were said."""
        for index in (self.conversation, self.store):
            if index is not None:
                index.extend(new)
        if self._alignment is not None:
            for token in new:
                self._alignment.follow(token)
