"""What followed last time: candidates from the conversation and from earlier answers, with what speaks for them.

Prompt lookup (Saxena 2023; vLLM's NgramProposer) and a datastore (REST, arXiv:2311.08252) at once, token by token:
each place votes for the token behind it with the square of its match length.

`5 6 7` was said three times, followed once by 1 and twice by 2; one match is a token longer:

>>> index = NgramIndex(256)
>>> index.extend([9, 5, 6, 7, 1, 8, 5, 6, 7, 2, 4, 5, 6, 7, 2])
>>> lookup = Lookup({"copy": index})
>>> lookup.start([4, 5, 6, 7])  # 2 has 4^2 + 3^2 = 25 votes, 1 has 3^2 = 9
>>> candidate = lookup.candidate()
>>> candidate.token, candidate.source
(2, 'copy')
>>> [round(feature, 2) for feature in candidate.features[:4]]  # bias, log2(4), log(25.5 / 9.5) / 2, log2(2 places)
[1.0, 2.0, 0.49, 1.0]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgellm.runtime.learning.edit_alignment import EditAlignment, Kind
from edgellm.runtime.learning.ngram_index import GAP, MAX_MATCH, NgramIndex, Place, hashes

# Of a candidate's features, in their order (`benchmarks/fit_acceptance.py` fits them). They only begin the learning.
WEIGHTS = (-1.64, 0.49, 0.77, 0.59, -0.94, -0.45, 0.44, 3.13, -1.49)
KINDS: tuple[Kind, ...] = ("same", "edit", "new edit")
STORE_VOTE = 0.6  # weight of a place in a further index against one in the first, which knows best
VOTE_AS_MATCH = {"same": 8, "new edit": 2}  # tokens: the alignment's place votes like a match of at least that length


class Candidate(NamedTuple):
    """A token that followed before; `features` are for an acceptance head, see `Lookup._find`."""

    token: int
    source: str
    features: tuple[float, ...]


class Lookup:
    """Walks along the places where the end of the text was said before, as long as they agree with what is proposed."""

    def __init__(
        self,
        indexes: dict[str, NgramIndex],
        alignment: EditAlignment | None = None,
        *,
        store_vote: float = STORE_VOTE,
    ) -> None:
        """
        Args:
            indexes: source -> where it is looked up, the one that knows best first.
            alignment: with a text in the first index that is repeated with edits.
            store_vote: weight of a place in a further index against one in the first.
        """
        self._alignment = self._walker = alignment
        self._store_vote = store_vote
        self._sources = list(indexes)
        self._indexes = list(indexes.values())
        self._tail: list[int] = []
        self._places: list[tuple[int, int, int]] = []  # (index, position, match)
        self._candidate: Candidate | None = None
        self._is_found = False

    def start(self, tokens: Sequence[int], ahead: Sequence[int] = ()) -> None:
        """Candidates will follow `tokens`, which were said, and `ahead`, which is proposed."""
        self._tail = [*tokens[-MAX_MATCH:], *ahead][-MAX_MATCH:]
        self._is_found = False
        self._look()
        if self._alignment is not None:
            if not ahead:
                self._alignment.find(Place(position, match) for i, position, match in self._places if i == 0)
            self._walker = self._alignment.copy()
            for token in ahead:
                self._walker.follow(token, learn=False)

    def _look(self) -> None:
        hashed = hashes(self._tail)
        self._places = [
            (i, place.position, place.match)
            for i, index in enumerate(self._indexes)
            for place in index.places(self._tail, hashed)
        ]

    def candidate(self) -> Candidate | None:
        """The likeliest token that follows; None where nothing like it was said."""
        if not self._is_found:
            self._candidate, self._is_found = self._find(), True
        return self._candidate

    def _find(self) -> Candidate | None:
        weights: dict[int, float] = {}
        best: dict[int, tuple[int, int]] = {}  # token -> (longest match, its index)
        counts: dict[int, int] = {}
        total = 0.0
        for i, position, match in self._places:
            token = self._indexes[i].token(position)
            if token == GAP:
                continue
            weight = float(match * match) * (1.0 if i == 0 else self._store_vote)
            total += weight
            weights[token] = weights.get(token, 0.0) + weight
            counts[token] = counts.get(token, 0) + 1
            if token not in best or match > best[token][0]:
                best[token] = (match, i)
        walker, step = self._walker, None
        if walker is not None and (step := walker.expected()) is not None:
            # One place more. Where an edit is made again, all others remember how it was.
            match = min(max(walker.n_same, 1), MAX_MATCH) if step.kind != "new edit" else 1
            weight = total + 1.0 if step.kind == "edit" else float(max(match, VOTE_AS_MATCH[step.kind]) ** 2)
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
        return Candidate(token, self._sources[i], features)

    def take(self, token: int) -> None:
        """`token` is proposed: go on behind it."""
        self._tail.append(token)
        self._is_found = False
        if self._walker is not None:
            self._walker.follow(token, learn=False)
        self._places = [
            (i, position + 1, min(match + 1, MAX_MATCH))
            for i, position, match in self._places
            if self._indexes[i].token(position) == token
        ]
        if not self._places:
            self._look()
