"""The rule that keeps speculative output the target's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm.runtime.drafters.base import Draft
from edgellm.runtime.sampling import Distribution, certain


def verify(target: Callable[[int], Distribution], draft: Draft, rng: np.random.Generator) -> tuple[int, int]:
    """Return (n_accepted, next_token), distributed exactly as sampling from the target one token at a time.

    Accept a drafted token x with probability min(1, p(x) / q(x)); at the first rejection draw from the normalised
    max(p - q, 0) (Leviathan et al. 2023, arXiv:2211.17192). Greedy decoding and given tokens need no case of their own:
    there p, or q, is one-hot.

    Args:
        target: position i -> the target's distribution after i drafted tokens; asked in order, no further than needed.
        draft: with `probs` if its tokens were drawn from them, without for tokens that are given.
    """
    for i, token in enumerate(draft.tokens):
        p = target(i)
        q = (draft.probs[i] if draft.probs is not None else None) or certain(token)
        if rng.random() * q.of(token) < p.of(token):
            continue
        rest = np.maximum(p.probs - q.at(p.ids), 0.0)
        # Rounding can leave nothing of p - q when the two agree; then a draw from p is right.
        return i, (Distribution(p.ids, rest) if rest.any() else p).draw(rng)
    return len(draft.tokens), target(len(draft.tokens)).draw(rng)
