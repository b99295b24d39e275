"""What a draft model wrote in its own tokens, and what that says of the target's tokens that it becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.drafters.base import Guess
from edgellm.runtime.drafters.retokenizers import Retokenized
from edgellm.runtime.sampling import Distribution
from edgellm.runtime.text.vocabulary import Vocabulary


@dataclass(slots=True)
class OwnDraft:
    """Tokens of a draft model, with what it knew of each."""

    tokens: list[int] = field(default_factory=list)
    tops: list[float] = field(default_factory=list)  # probability of the likeliest token
    entropies: list[float] = field(default_factory=list)  # nats
    drawn: list[Distribution] = field(default_factory=list)  # that each was drawn from; empty where none was drawn

    def append(self, token: int, top: float, entropy: float) -> None:
        self.tokens.append(token)
        self.tops.append(top)
        self.entropies.append(entropy)


def guesses_of(
    retokenized: Retokenized,
    draft: OwnDraft,
    own: Vocabulary,
    target: Vocabulary,
    direct: NDArray[np.int64] | None = None,
) -> list[Guess]:
    """Each target token with the confidence of the draft tokens that begin in it.

    `direct`: draft id -> target id of the same bytes or -1, where tokens were drawn.
    """
    guesses: list[Guess] = []
    n_target = n_own = at = 0  # bytes so far, and own tokens
    for i, token in enumerate(retokenized.tokens):
        n_target += len(target.piece(token))
        top, entropy, first = 1.0, 0.0, at
        while at < len(draft.tokens) and n_own < n_target:
            top *= draft.tops[at]
            entropy = max(entropy, draft.entropies[at])
            n_own += len(own.piece(draft.tokens[at]))
            at += 1
        probs = None
        if draft.drawn and direct is not None:
            probs = merged_probs(direct, token, draft.tokens[first:at], draft.drawn[first:at])
        guesses.append(Guess(token, top, entropy, i >= retokenized.n_settled, retokenized.p_final, probs))
    return guesses


def merged_probs(
    direct: NDArray[np.int64], token: int, drafted: Sequence[int], drawn: Sequence[Distribution]
) -> Distribution:
    """The proposal's distribution over target ids (OmniDraft, arXiv:2507.02659, equations 1 and 2).

    A token that was merged of several gets the product of their probabilities, which the first of them loses; what has
    no counterpart has none, so that the sum may stay below 1.
    """
    ids = direct[drawn[0].ids]
    shared = ids >= 0
    ids, probs = ids[shared], drawn[0].probs[shared].copy()
    if len(drafted) > 1:
        product = math.prod(q.of(piece) for q, piece in zip(drawn, drafted, strict=True))
        probs[ids == direct[drafted[0]]] -= product
        others = ids != token
        ids, probs = np.append(ids[others], token), np.append(np.maximum(probs[others], 0.0), product)
    return Distribution(ids, probs)
