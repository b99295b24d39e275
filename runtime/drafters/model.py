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
        self._tokens: list[int] = []  # what it follows
        self._sampling = GREEDY
        self._different = np.array(sorted(different), np.int64)
        self._rng = np.random.default_rng()

    @property
    def busy_s(self) -> float:
        return self._follower.backend.busy_s

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        self._sampling = sampling
        # Another stream than the verifier's: the rule is exact for draws that do not depend on each other.
        self._rng = np.random.default_rng(None if sampling.seed is None else (sampling.seed, 1))
        self._tokens = self._known(prompt)
        self._follower.settle(self._tokens, 0)
        if self._follower.room(self._tokens, 0):
            self._follower.prefill(self._tokens)

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        self._tokens += self._known(tokens[len(tokens) - n_new :])
        self._follower.settle(self._tokens, len(self._tokens) - n_new)

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        if limit <= 0 or not self._follower.room(self._tokens, limit):
            return Draft()
        drafted: list[int] = []
        probs: list[Distribution] = []
        logits = self._follower.read(self._tokens)
        while True:
            q = self._sampling.distribution(logits, (*self._tokens[-self._sampling.repeat_last_n :], *drafted))
            shared = self._shared(q)
            if shared is None:
                break
            q = shared
            token = q.draw(self._rng)
            drafted.append(token)
            probs.append(q)
            if len(drafted) == limit:
                break
            logits = self._follower.extend([token])
        return Draft(drafted, None if self._sampling.greedy else probs, "model")

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Target ids as the drafter may read them: those behind the end of its vocabulary become its first token."""
        n_vocab = self._follower.backend.n_vocab
        return [token if token < n_vocab else 0 for token in tokens]

    def _shared(self, q: Distribution) -> Distribution | None:
        """`q` over the shared ids alone, before anything is drawn: dropping a draw afterwards would bend the output."""
        if not self._different.size:
            return q
        keep = ~np.isin(q.ids, self._different)
        mass = q.probs[keep].sum()
        return Distribution(q.ids[keep], q.probs[keep] / mass) if mass > 0.0 else None

    def close(self) -> None:
        self._follower.backend.close()
