"""A constraint on the answers of a model that thinks: it begins behind the thought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgellm.runtime.constraint import ConstraintState, Mask
from edgellm.runtime.text.markers import Markers, marker_ids, split_markers
from edgellm.runtime.text.reasoning import ThoughtStream
from edgellm.runtime.text.vocabulary import Vocabulary


@dataclass(slots=True)
class _Head:
    """What was written before the text."""

    stream: ThoughtStream
    opening: tuple[int, ...] = ()  # of a marker that is being written
    is_open: bool = False  # the thought was begun
    n_newlines: int = 0  # behind it

    def fork(self) -> _Head:
        return replace(self, stream=self.stream.fork())


class BehindThought:
    """A constraint's state, asked from where the text begins. Before that any token may come but those that end.

    A model that is free to think may begin with its marker in the place of the text. New lines right behind a thought
    are no part of the text.
    """

    def __init__(
        self, constraint: ConstraintState, markers: Markers, vocabulary: Vocabulary, *, in_thought: bool
    ) -> None:
        """`in_thought`: the prompt opened it."""
        self._constraint, self._markers, self._vocabulary = constraint, markers, vocabulary
        self._head = _Head(ThoughtStream(markers, vocabulary, in_thought=in_thought), is_open=in_thought)
        self._is_text = False  # the text began
        self._openings = _openings(markers, vocabulary)
        pieces = map(vocabulary.piece, range(vocabulary.n_tokens))
        self._newlines = np.array([bool(piece) and not piece.strip(b"\r\n") for piece in pieces])
        self._goes_on = np.ones(vocabulary.n_tokens, bool)
        self._goes_on[list(vocabulary.end_tokens)] = False

    def allowed(self, ahead: Sequence[int] = ()) -> Mask:
        head, n = self._split(ahead)
        if self._is_text or n < len(ahead):
            return self._constraint.allowed(ahead[n:])
        if self._is_over(head):
            allowed = self._constraint.allowed()
            return allowed if head.n_newlines else allowed | self._newlines
        if head.is_open:
            return self._goes_on
        allowed = np.zeros(len(self._goes_on), bool) if head.opening else self._constraint.allowed().copy()
        allowed[list(self._next_of_opening(head))] = True
        return allowed

    def n_legal(self, tokens: Sequence[int]) -> int:
        head, n = self._split(tokens)
        if n < len(tokens) and not self._is_text and not self._may_begin(head):
            return n
        return n + self._constraint.n_legal(tokens[n:])

    def forced(self, ahead: Sequence[int] = ()) -> bytes:
        head, n = self._split(ahead)
        is_sure = self._is_text or n < len(ahead) or (self._is_over(head) and head.n_newlines)
        return self._constraint.forced(ahead[n:]) if is_sure else b""

    def advance(self, tokens: Sequence[int]) -> None:
        self._head, n = self._split(tokens)
        self._is_text = self._is_text or n < len(tokens)
        self._constraint.advance(tokens[n:])

    @property
    def ending(self) -> list[int]:
        return self._constraint.ending if self._is_text else []

    def _split(self, tokens: Sequence[int]) -> tuple[_Head, int]:
        """What stands before the text with these tokens, and how many of them belong to it."""
        if self._is_text:
            return self._head, 0
        head = self._head.fork()
        for n, token in enumerate(tokens):
            if not self._take(head, token):
                return head, n
        return head, len(tokens)

    def _take(self, head: _Head, token: int) -> bool:
        """Add a token that stands before the text; False for one that does not."""
        if self._is_over(head):
            head.n_newlines += int(self._newlines[token])
            return bool(self._newlines[token])
        if not self._goes_on[token]:
            return False
        if not head.is_open:
            if token not in self._next_of_opening(head):
                return False
            head.opening = (*head.opening, token)
            head.is_open = head.opening in self._openings
        head.stream.feed(token)
        return True

    def _may_begin(self, head: _Head) -> bool:
        """Whether the text may begin here."""
        return self._is_over(head) or not (head.is_open or head.opening)

    def _is_over(self, head: _Head) -> bool:
        """Whether the thought is over, or an answer was begun without one."""
        last = (self._markers.answers or (self._markers.closing,)) if head.is_open else ()
        return head.stream.last_marker in last and not head.stream.is_pending

    def _next_of_opening(self, head: _Head) -> set[int]:
        n = len(head.opening)
        return {ids[n] for ids in self._openings if ids[:n] == head.opening and len(ids) > n}


def _openings(markers: Markers, vocabulary: Vocabulary) -> set[tuple[int, ...]]:
    """How a part may begin, where no text begins like that: with a token of its own."""
    known = (markers.opening, *markers.answers)
    begun = (text for text in known if next(split_markers(text, vocabulary))[1] is not None)
    return {tuple(marker_ids(text, vocabulary)) for text in begun}
