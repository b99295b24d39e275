"""What followed last time: guesses from the conversation and from earlier answers, with what speaks for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgellm.runtime.learning.history import GAP, MAX_MATCH, History, Place, hashes
from edgellm.runtime.learning.revision import Kind, Revision

# Fitted to answers to prompts of our own; they only begin the learning.
WEIGHTS = (-1.64, 0.49, 0.77, 0.59, -0.94, -0.45, 0.44, 3.13, -1.49)
KINDS: tuple[Kind, ...] = ("same", "changed", "beyond")
VOTE = {"same": 8, "beyond": 2}  # tokens in common that a revision's place counts for at least, when places disagree


class Recollection(NamedTuple):
    """A token that followed before; `features` are for an acceptance head."""

    token: int
    source: str
    features: tuple[float, ...]


class Recall:
    """Walks along the places where the end of the text was said before, as long as they agree with what is proposed."""

    def __init__(self, histories: dict[str, History], revision: Revision | None = None) -> None:
        """
        Args:
            histories: source -> where it is looked up, the one that knows best first.
            revision: of a text in the first history, where it is said again with changes.
        """
        self._revision = self._walker = revision
        self._sources = list(histories)
        self._histories = list(histories.values())
        self._tail: list[int] = []
        self._places: list[tuple[int, int, int]] = []  # (history, position, match)
        self._guess: Recollection | None = None
        self._is_guessed = False

    def start(self, tokens: Sequence[int], ahead: Sequence[int] = ()) -> None:
        """Guesses will follow `tokens`, which were said, and `ahead`, which is proposed."""
        self._tail = [*tokens[-MAX_MATCH:], *ahead][-MAX_MATCH:]
        self._is_guessed = False
        self._look()
        if self._revision is not None:
            if not ahead:
                self._revision.find(Place(position, match) for i, position, match in self._places if i == 0)
            self._walker = self._revision.copy()
            for token in ahead:
                self._walker.follow(token, learn=False)

    def _look(self) -> None:
        hashed = hashes(self._tail)
        self._places = [
            (i, place.position, place.match)
            for i, history in enumerate(self._histories)
            for place in history.places(self._tail, hashed)
        ]

    def guess(self) -> Recollection | None:
        """The likeliest token that follows; None where nothing like it was said."""
        if not self._is_guessed:
            self._guess, self._is_guessed = self._find(), True
        return self._guess

    def _find(self) -> Recollection | None:
        weights: dict[int, float] = {}
        best: dict[int, tuple[int, int]] = {}  # token -> (longest match, its history)
        counts: dict[int, int] = {}
        total = 0.0
        for i, position, match in self._places:
            token = self._histories[i].token(position)
            if token == GAP:
                continue
            weight = float(match * match) * (1.0 if i == 0 else 0.6)
            total += weight
            weights[token] = weights.get(token, 0.0) + weight
            counts[token] = counts.get(token, 0) + 1
            if token not in best or match > best[token][0]:
                best[token] = (match, i)
        walker, step = self._walker, None
        if walker is not None and (step := walker.guess()) is not None:
            # One place more. Where a change is made again, all others remember how it was.
            match = min(max(walker.n_same, 1), MAX_MATCH) if step.kind != "beyond" else 1
            weight = total + 1.0 if step.kind == "changed" else float(max(match, VOTE[step.kind]) ** 2)
            total += weight
            weights[step.token] = weights.get(step.token, 0.0) + weight
            counts[step.token] = counts.get(step.token, 0) or 1
            if step.token not in best or match > best[step.token][0]:
                best[step.token] = (match, 0)
        if not weights:
            return None
        token = max(weights, key=weights.__getitem__)
        match, i = best[token]
        share = math.log((weights[token] + 0.5) / (total - weights[token] + 0.5))
        features = (
            1.0,
            math.log2(match),
            min(share, 6.0) / 2.0,
            math.log2(counts[token]),
            float(i > 0),
            float(match >= 8),
            *(float(step == (token, kind)) for kind in KINDS),
        )
        return Recollection(token, self._sources[i], features)

    def take(self, token: int) -> None:
        """`token` is proposed: go on behind it."""
        self._tail.append(token)
        self._is_guessed = False
        if self._walker is not None:
            self._walker.follow(token, learn=False)
        self._places = [
            (i, position + 1, min(match + 1, MAX_MATCH))
            for i, position, match in self._places
            if self._histories[i].token(position) == token
        ]
        if not self._places:
            self._look()
