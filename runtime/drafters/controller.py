"""Who drafts, and how much: chosen every round so that tokens come as fast as they can.

Each drafted token has a probability of being accepted (learnt, `acceptance.py`) and a cost (measured,
`learning/costs.py`); `economics.py` says what is worth it. So a source is asked, a draft continued, and a tail kept,
while that pays.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.runtime.backends.base import Backend
from edgellm.runtime.drafters.acceptance import Acceptance, DraftedToken
from edgellm.runtime.drafters.base import FORCED, NONE, Draft, GoesAhead, Proposer, Stop
from edgellm.runtime.drafters.composer import Composer, Round
from edgellm.runtime.drafters.economics import Economics
from edgellm.runtime.drafters.explain import Choices, explain
from edgellm.runtime.drafters.prompt_lookup import PromptLookup
from edgellm.runtime.drafters.resting import Resting
from edgellm.runtime.drafters.tuning import TUNING, Tuning
from edgellm.runtime.learning.costs import Costs
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.sampling import GREEDY, Sampling

LEAST_AHEAD = 2  # tokens that are drafted while the target verifies, at least


class AdaptiveDrafter:
    """Copies, looks up, and asks a draft model, mixed in one proposal as long as each token pays for itself."""

    def __init__(
        self,
        target: Backend,
        costs: Costs | None,
        *,
        model: Proposer | None = None,
        conversation: NgramIndex | None = None,
        store: NgramIndex | None = None,
        fixed: int | None = None,
        stop: Stop = "cost",
        passes_per_token: float | None = None,
        acceptance: Acceptance | None = None,
        tuning: Tuning = TUNING,
    ) -> None:
        """
        Args:
            target: whose passes are timed.
            costs: None is allowed with `fixed` alone.
            conversation, store: where copies come from; what the target says is added to both.
            fixed: draft so many tokens whatever they cost.
            stop: what ends a draft; `cost` with `fixed` means that nothing does.
            passes_per_token: of the model, for a token of the target's vocabulary, until it is known better.
            acceptance: what is known of whom to believe, where others learn it too.
        """
        self.target, self.model, self._tuning = target, model, tuning
        self._ahead = model if isinstance(model, GoesAhead) else None
        self._fixed, self._stop = fixed, stop
        self.economics = Economics(costs, target.max_outputs, tuning, fixed=fixed)
        self.acceptance = acceptance or Acceptance(tuning, passes_per_token=passes_per_token)
        self.choices = Choices()
        self._resting, self._is_resting = Resting(), False
        self._overhead_mark_s = 0.0
        self._unseen: list[int] = []  # said in rounds that rested, of which the lookup does not know yet
        self._lookup = PromptLookup(conversation, store, store_vote=tuning.store_vote)
        self._composer = Composer(self._lookup, model, self.economics, self.acceptance, tuning, fixed=fixed, stop=stop)
        self._round = Round((), 0)

    def with_model(self, model: Proposer) -> AdaptiveDrafter:
        """The same target, costs and copies with another draft model, of which nothing is known yet but its words."""
        return AdaptiveDrafter(
            self.target,
            self.economics.costs,
            model=model,
            conversation=self._lookup.conversation,
            store=self._lookup.store,
            fixed=self._fixed,
            stop=self._stop,
            passes_per_token=self.acceptance.passes_per_token,
            tuning=self._tuning,
        )

    @property
    def engine_s(self) -> float:
        return self.model.engine_s if self.model is not None else 0.0

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        self._catch_up()
        self._lookup.begin(prompt)
        self._round = Round((), 0)
        self.economics.begin()
        if self.model is not None:
            self.model.begin(prompt, own_prompt=own_prompt, sampling=sampling)
            if self._ahead is not None or self._composer.model_pays(len(prompt), self.model.n_unread(), reads=True):
                self.model.prefill()

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        return self.propose_behind(tokens, (), limit)

    def propose_behind(self, tokens: Sequence[int], given: Sequence[int], limit: int) -> Draft:
        started = time.perf_counter()
        self._overhead_mark_s = self.choices.overhead_s
        self._is_resting = self._fixed is None and not given and self._resting.rests()
        if self._is_resting:
            self._round = Round(tokens, 0, target_mark_s=self.target.engine_s)
            self.choices.rounds_by[NONE] += 1
            return Draft([], None, NONE, [])
        self._catch_up()
        limit = min(limit, self._fixed) if self._fixed is not None else limit
        now = self._round = Round(tokens, limit, [DraftedToken(token, 1.0, FORCED, ()) for token in given])
        now.n_given = len(given)
        if limit > 0:
            self.economics.renew_table(limit, len(tokens))
        if now.room > 0:
            self._lookup.start(tokens)
            for token in given:
                self._lookup.take(token)
            if self._fixed is None:
                now.limit = min(limit, now.n_given + self.economics.n_affordable())
            self._composer.compose(now)
        # Drawn tokens stay: dropping one because of what it is would bend the output's distribution.
        floor = max((i for i, item in enumerate(now.drafted, 1) if item.probs is not None), default=now.n_given)
        now.n_proposed = self.economics.n_worth([item.p for item in now.drafted], floor)
        items = now.drafted[: now.n_proposed]
        probs = [item.probs for item in items]
        sources = [item.source for item in items]
        joined = "+".join(dict.fromkeys(sources)) or NONE
        self.choices.n_passes += now.n_passes
        self.choices.n_probes += now.n_probes
        self.choices.rounds_by[joined] += 1
        self.choices.overhead_s += time.perf_counter() - started - now.in_model_s
        now.target_mark_s = self.target.engine_s
        return Draft([item.token for item in items], probs if any(probs) else None, joined, sources)

    def verifies(self, n_tokens: int) -> None:
        self._round.n_proposed = n_tokens

    def verifying(self, tokens: Sequence[int], drafted: Sequence[int], limit: int) -> None:
        if self._ahead is not None:
            # It goes on where drafts are not affordable just now; one more, for the target's own.
            n_next = self._fixed if self._fixed is not None else max(self.economics.n_affordable(), LEAST_AHEAD)
            worth_s = self.economics.worth_s(self.acceptance.hoped)
            self._ahead.go_ahead(tokens, drafted, min(limit, n_next) + 1 if limit > 0 else 0, worth_s)

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        now, new = self._round, tokens[len(tokens) - n_new :]
        started, n = time.perf_counter(), now.n_proposed
        if self.economics.costs is not None:
            target_s = self.target.engine_s - now.target_mark_s
            self.economics.costs.target.observe(n + 1, len(tokens) - n_new, target_s)
        self.choices.n_rounds += 1
        self.choices.n_drafted += n
        if self._is_resting:
            self._unseen += new
            self.economics.observe(0, n_new, 0.0, probed=False)
        else:
            self._learn(new, n)
        self.choices.overhead_s += time.perf_counter() - started
        if now.limit > 0 and (table := self.economics.table):
            took_s = table[min(n, len(table) - 1)] + now.draft_s
            looking_s = self.choices.overhead_s - self._overhead_mark_s
            self._resting.observe(n_new * table[0] - took_s, looking_s, table[0])
        if self.model is not None:
            self.model.observe(tokens, n_new)

    def _learn(self, new: Sequence[int], n: int) -> None:
        """From a round in which `n` tokens were proposed and `new` ones said."""
        now = self._round
        n_right = self.acceptance.learn(now.drafted, new)
        own = now.drafted[now.n_given :]
        if now.looked_up and (not own or own[0] is not now.looked_up[0]) and n_right >= now.n_given:
            self.acceptance.learn(now.looked_up, new[now.n_given :])  # what was not proposed costs nothing to check
        self._composer.entropy_rule.observe(min(n_right, n), n, n == (self._fixed or n))
        self.economics.observe(n, len(new), now.draft_s, probed=now.n_probes > 0)
        self._lookup.observe(new)

    def _catch_up(self) -> None:
        """Let the lookup know what was said while it rested."""
        if self._unseen:
            self._lookup.observe(self._unseen)
            self._unseen = []

    @property
    def has_learnt(self) -> bool:
        return self.choices.n_rounds > 0

    def to_json(self) -> dict[str, Any]:
        """What was learnt of whom to believe, as plain values."""
        return {**self.acceptance.to_json(), "won": self.economics.loss.lead}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Begin with what `to_json` gave. Raises ValueError, KeyError or TypeError where it is not that."""
        self.acceptance.restore(data)
        self.economics.loss.restore(float(data.get("won", self._tuning.lead_at_first)))

    def snapshot(self) -> Any:
        """What is learnt by now, for `rewind`; the conversation is left out, `begin` sets it."""
        self._catch_up()
        store = self._lookup.store.tokens() if self._lookup.store is not None else None
        return store, self.acceptance.snapshot(), self.economics.loss.lead

    def rewind(self, snapshot: Any) -> None:
        """Know what was known then: so that a repeated measurement is one of the same thing."""
        store, learnt, self.economics.loss.lead = snapshot
        self.acceptance.rewind(learnt)
        if self._lookup.store is not None:
            self._lookup.store.fill(store)

    def explain(self) -> str:
        """What it does and why, in a sentence."""
        return explain(self.choices, self.economics, self.acceptance, self.model)

    def close(self) -> None:
        self._catch_up()
        if self.model is not None:
            self.model.close()
