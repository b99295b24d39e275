"""Draft with a small model of the target's own vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.runtime.backends.base import Backend
from edgellm.runtime.drafters.base import Draft
from edgellm.runtime.drafters.follow import Follower
from edgellm.runtime.sampling import GREEDY, Distribution, Sampling


class ModelDrafter:
    """Speaks the target's ids directly. It drafts greedily, or, when the target samples, by the same sampling settings,
    which raises acceptance (the tokens then come with the distributions that they were drawn from).
    """

    def __init__(self, backend: Backend, different: frozenset[int] = frozenset()) -> None:
        """`different`: ids that the two vocabularies do not share, never proposed."""
        self._follower = Follower(backend)
        self._sampling, self._different = GREEDY, different
        self._rng = np.random.default_rng()

    @property
    def busy_s(self) -> float:
        return self._follower.backend.busy_s

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        self._sampling, self._rng = sampling, np.random.default_rng(sampling.seed)
        self._follower.settle(prompt, 0)
        self._follower.prefill(prompt)

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        self._follower.settle(tokens, len(tokens) - n_new)

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        if limit <= 0 or not self._follower.room(tokens, limit):
            return Draft()
        drafted: list[int] = []
        probs: list[Distribution] = []
        logits = self._follower.read(tokens)
        while True:
            q = self._sampling.distribution(logits, (*tokens[-self._sampling.repeat_last_n :], *drafted))
            token = q.draw(self._rng)
            if token in self._different:
                break
            drafted.append(token)
            probs.append(q)
            if len(drafted) == limit:
                break
            logits = self._follower.extend([token])
        return Draft(drafted, None if self._sampling.greedy else probs, "model")

    def close(self) -> None:
        self._follower.backend.close()
