"""The rule that keeps speculative output the target's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.runtime.drafters.base import Draft
from edgellm.runtime.sampling import Distribution


def verify(target: Callable[[int], Distribution], draft: Draft, rng: np.random.Generator) -> tuple[int, int]:
    """Return (n_accepted, next_token), distributed exactly as sampling from the target one token at a time.

    A token that is simply given is accepted if it is what the target draws, with one draw a position: so the answer of
    a seed is the same whatever is proposed. One that was drawn from q is accepted with probability min(1, p(x) / q(x)),
    and at its rejection the normalised max(p - q, 0) is drawn from (Leviathan et al. 2023, arXiv:2211.17192).

    Args:
        target: position i -> the target's distribution after i drafted tokens; asked in order, no further than needed.
        draft: with `probs` if its tokens were drawn from them, without for tokens that are given.
    """
    for i, token in enumerate(draft.tokens):
        p = target(i)
        q = draft.probs[i] if draft.probs is not None else None
        if q is None:
            if (drawn := p.draw(rng)) != token:
                return i, drawn
            continue
        if rng.random() * q.of(token) < p.of(token):
            continue
        rest = np.maximum(p.probs - q.at(p.ids), 0.0)
        # Rounding can leave nothing of p - q when the two agree; then a draw from p is right.
        return i, (Distribution(p.ids, rest) if rest.any() else p).draw(rng)
    return len(draft.tokens), target(len(draft.tokens)).draw(rng)
