"""How likely each drafted token is to be accepted: its features, the heads that judge them, and what they learn.

Two logistic heads, one for looked-up tokens (features in `learning.lookup`) and one for a draft model's, and the draft
model's mean acceptance, for decisions that are made before it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from edgellm.runtime.drafters.base import FORCED, MODEL, Guess
from edgellm.runtime.drafters.tuning import TUNING, Tuning
from edgellm.runtime.learning.confidence import LogisticHead, MovingAverage, logit
from edgellm.runtime.learning.lookup import Candidate
from edgellm.runtime.sampling import Distribution


@dataclass(slots=True)
class DraftedToken:
    """One token of a proposal, and what speaks for it."""

    token: int
    p: float  # of being accepted, if those before it are
    source: str
    features: tuple[float, ...]
    probs: Distribution | None = None  # that it was drawn from; None for a token that is given


class Acceptance:
    """What is known of whom to believe; learns from every token whose predecessors were accepted."""

    def __init__(self, tuning: Tuning = TUNING, *, passes_per_token: float | None = None) -> None:
        """`passes_per_token`: of the draft model for a token of the target, until it is known better."""
        self._tuning = tuning
        self.lookup_head = LogisticHead(tuning.lookup_weights, strength=tuning.lookup_strength)
        self.model_head = LogisticHead(tuning.model_weights, strength=tuning.model_strength)
        self.of_model = MovingAverage(
            tuning.acceptance_prior,
            n_prior=tuning.acceptance_prior_n,
            half_life=tuning.acceptance_half_life,
            mean_step=tuning.acceptance_mean_step,
        )
        self.passes_per_token = tuning.passes_per_token if passes_per_token is None else passes_per_token

    @property
    def hoped(self) -> float:
        """Acceptance of the draft model, at best by what is known: one that is never asked would never be known."""
        tuning = self._tuning
        optimism = tuning.optimism / (1.0 + self.of_model.n_ever / tuning.optimism_n)
        return min(self.of_model.value + optimism, tuning.max_acceptance)

    def p_of(self, candidate: Candidate) -> float:
        """Of a looked-up token being accepted."""
        return self.lookup_head.predict(candidate.features)

    def judge(self, guess: Guess, looked_up: Candidate | None, p_looked_up: float) -> DraftedToken:
        """A draft model's token with its chance, where the lookup has a candidate for the same place or None."""
        agrees = differs = 0.0
        if looked_up is not None:
            agrees, differs = (p_looked_up, 0.0) if looked_up.token == guess.token else (0.0, p_looked_up)
        p_final = guess.p_final if guess.provisional else None
        features = (
            1.0,
            logit(guess.top) / 2.0,
            guess.entropy,
            float(guess.provisional and p_final is None),
            float(p_final is not None),
            logit(p_final) / 2.0 if p_final is not None else 0.0,
            agrees * 2.0,
            differs * 2.0,
        )
        return DraftedToken(guess.token, self.model_head.predict(features), MODEL, features, guess.probs)

    def learn(self, drafted: Sequence[DraftedToken], said: Sequence[int]) -> int:
        """`said` came where `drafted` was expected, whose first wrong token ends it; returns how many were right."""
        n_right = 0
        for item, token in zip(drafted, said, strict=False):
            right = item.token == token
            self._learn_one(item, right)
            if not right:
                break
            n_right += 1
        return n_right

    def _learn_one(self, item: DraftedToken, right: bool) -> None:
        if item.source == MODEL:
            self.model_head.learn(item.features, right)
            self.of_model.add(right)
        elif item.source != FORCED:
            self.lookup_head.learn(item.features, right)

    def learn_passes(self, n_passes: int, n_tokens: int) -> None:
        """A draft of so many tokens took so many passes of the model."""
        self.passes_per_token += self._tuning.passes_per_token_step * (n_passes / n_tokens - self.passes_per_token)

    def to_json(self) -> dict[str, Any]:
        """What was learnt, as plain values, under the names that files have for them."""
        return {
            "heads": {"recalled": self.lookup_head.to_json(), "model": self.model_head.to_json()},
            "acceptance": self.of_model.mean,
            "n_seen": self.of_model.n_ever,
            "passes_a_token": self.passes_per_token,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave. Raises ValueError, KeyError or TypeError where it is not that."""
        for name, head in (("recalled", self.lookup_head), ("model", self.model_head)):
            if name in data["heads"]:
                head.restore(data["heads"][name])
        self.of_model.restore(data["acceptance"], data.get("n_seen", 0))
        self.passes_per_token = min(max(float(data["passes_a_token"]), 1.0), 4.0)

    def snapshot(self) -> Any:
        """For `rewind`."""
        return deepcopy((self.lookup_head, self.model_head, self.of_model)), self.passes_per_token

    def rewind(self, snapshot: Any) -> None:
        """Know what was known then."""
        learnt, self.passes_per_token = snapshot
        self.lookup_head, self.model_head, self.of_model = deepcopy(learnt)
