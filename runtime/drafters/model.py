"""Draft with a small model of the target's own vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgellm.runtime.backends.base import Backend, Logits
from edgellm.runtime.drafters.base import Guess
from edgellm.runtime.drafters.kv_sync import KvSync
from edgellm.runtime.sampling import GREEDY, Distribution, Sampling

NEAR = np.float32(16.0)  # nats below the likeliest token; a whole vocabulary that lies lower adds 2 % at most
REACH = 512  # own tokens that are read at most when drafting begins late; what lies before adds little


def top_of(logits: Logits) -> tuple[int, float, float]:
    """The likeliest token, its probability, and the entropy of the whole row in nats."""
    token = int(logits.argmax())
    # Exponentials of a whole vocabulary would take some 2 % of the pass that computed it.
    shifted = logits[np.flatnonzero(logits > logits[token] - NEAR)] - logits[token]
    weights = np.exp(shifted)
    total = float(weights.sum())
    return token, 1.0 / total, float(np.log(total)) - float(weights @ shifted) / total


class ModelDrafter:
    """Speaks the target's ids directly. It drafts greedily, or, when the target samples, by the same sampling settings,
    which raises acceptance (the tokens then come with the distributions that they were drawn from).
    """

    def __init__(self, backend: Backend, different: frozenset[int] = frozenset(), reach: int | None = None) -> None:
        """`different`: ids that the two vocabularies do not share, never proposed.

        `reach`: own tokens that are read when it must read many; None: all.
        """
        self.backend = backend
        self._kv = KvSync(backend)
        self._tokens: list[int] = []  # what it follows
        self._n_known = 0  # below which the backend is known to hold the same
        self._sampling = GREEDY
        self._different = np.array(sorted(different), np.int64)
        self._rng = np.random.default_rng()
        self._reach = reach

    @property
    def engine_s(self) -> float:
        return self.backend.engine_s

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        self._sampling = sampling
        # Another stream than the verifier's: the rule is exact for draws that do not depend on each other.
        self._rng = np.random.default_rng(None if sampling.seed is None else (sampling.seed, 1))
        self._tokens = self._known(prompt)
        self._n_known = 0
        self._slide()

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        self._tokens += self._known(tokens[len(tokens) - n_new :])
        self._slide()

    def n_unread(self) -> int:
        n = self._kv.n_unread(self._tokens, self._n_known)
        return n if self._reach is None else min(n, self._reach)

    def prefill(self) -> None:
        self._sync(())
        self._kv.prefill(self._tokens)

    def _slide(self) -> None:
        """Keep the newer part when the context fills up; the drafter sees less, and the output stays the target's."""
        if n := self._kv.n_to_slide(len(self._tokens)):
            del self._tokens[:n]
            self._n_known = self._kv.slide(n, self._n_known)

    def _sync(self, extra: Sequence[int]) -> None:
        reach = self._reach if self._reach is not None else len(self._tokens)
        if n_dropped := self._kv.n_to_drop(self._tokens, self._n_known, reach):
            del self._tokens[:n_dropped]
            self._n_known = 0
        self._kv.sync([*self._tokens, *extra] if extra else self._tokens, self._n_known)
        self._n_known = len(self._tokens)

    def drafting(self, tokens: Sequence[int], prefix: Sequence[int]) -> Iterator[list[Guess]]:
        backend, extra = self.backend, self._known(prefix)
        self._sync(extra)
        if not self._kv.room(self._tokens, len(extra) + 1):
            return
        logits = self._kv.read([*self._tokens, *extra])
        yield from self._guesses(logits, extra, backend, lambda token: self._kv.extend([token]))

    def _guesses(
        self, logits: Logits, extra: list[int], backend: Backend, extend: Callable[[int], Logits]
    ) -> Iterator[list[Guess]]:
        """Guess behind `extra`, whose next row is `logits`, and go on behind each guess while there is room."""
        guesses: list[Guess] = []
        while True:
            guess = self._guess(logits, (*self._tokens[-self._sampling.repeat_last_n :], *extra))
            if guess is None:
                return
            guesses.append(guess)
            extra.append(guess.token)
            yield guesses
            if len(backend.tokens) >= backend.n_ctx:
                return
            logits = extend(guess.token)

    def _guess(self, logits: Logits, history: Sequence[int]) -> Guess | None:
        if self._sampling.greedy and not self._sampling.changes_logits and not self._different.size:
            return Guess(*top_of(logits))
        q = self._shared(self._sampling.distribution(logits, history))
        if q is None:
            return None
        if self._sampling.greedy:
            return Guess(q.draw(self._rng), *top_of(logits)[1:])
        spread = float(-(q.probs * np.log(np.maximum(q.probs, 1e-12))).sum())
        return Guess(q.draw(self._rng), float(q.probs.max()), spread, probs=q)

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Target ids as the drafter may read them: those behind the end of its vocabulary become its first token."""
        n_vocab = self.backend.n_vocab
        return [token if token < n_vocab else 0 for token in tokens]

    def _shared(self, q: Distribution) -> Distribution | None:
        """`q` over the shared ids alone, before anything is drawn: dropping a draw afterwards would bend the output."""
        if not self._different.size:
            return q
        shared = ~np.isin(q.ids, self._different)
        mass = q.probs[shared].sum()
        return Distribution(q.ids[shared], q.probs[shared] / mass) if mass > 0.0 else None

    def close(self) -> None:
        self.backend.close()
