"""What a round costs, what it brings, and what may be lost: arithmetic on numbers, no models.

A round that spends T seconds and brings N tokens is worth N - r T, where r is the rate at which tokens come anyway: in
the long run no other rule brings more (the renewal argument behind SpecDec++, arXiv:2405.19715, with measured costs in
the place of its threshold). Example: plain decoding takes 50 ms a token, so r = 20 tokens/s; a pass over two tokens
takes 60 ms. A drafted token with a chance of 0.5 brings 0.5 tokens for 10 ms more: 0.5 - 20 x 0.01 = 0.3 > 0, it pays.
One with a chance of 0.1 brings 0.1 - 0.2 < 0: it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgellm.runtime.drafters.tuning import TUNING, Tuning
from edgellm.runtime.learning.costs import Costs

CHEAP = 0.1  # of a target's pass: a draft model's that is waited for although it could draft while the target verifies


def n_worth(probabilities: Sequence[float], table: Sequence[float], rate: float, floor: int = 0) -> int:
    """How many drafted tokens are worth the wider pass, at least `floor`.

    Args:
        probabilities: of each token being accepted, if those before it are.
        table: seconds of a pass over 1, 2 .. tokens; one more entry than there are tokens, or more.
        rate: tokens a second.
    """
    reach, gain, best, n_best = 1.0, 0.0, -math.inf, floor
    for n in range(len(probabilities) + 1):
        if n:
            reach *= probabilities[n - 1]
            gain += reach
        value = gain - rate * table[n]
        if n >= floor and value > best + 1e-9:
            best, n_best = value, n
    return n_best


def n_affordable(table: Sequence[float], budget_s: float) -> int:
    """How many tokens may all be wrong in one round without losing more than `budget_s` seconds."""
    return next((n for n in range(1, len(table)) if table[n] - table[0] > budget_s), len(table)) - 1


def best_gain(
    table: Sequence[float],
    rate: float,
    acceptance: float,
    *,
    n_before: int,
    reach: float,
    first_s: float,
    token_s: float,
    min_reach: float,
) -> float:
    """The best expected gain, in tokens, over numbers of further tokens by a draft model; -1 where none is possible.

    Args:
        table: seconds of the target's pass over 1, 2 .. tokens.
        acceptance: probability of each further token, if those before it are accepted.
        n_before: tokens proposed already, which are all accepted with probability `reach`.
        first_s: seconds before the first further token, beyond what a token takes.
        token_s: seconds of the draft model for each further token.
    """
    base_s = table[min(n_before, len(table) - 1)]
    gain, best, spent_s = 0.0, -1.0, first_s
    for n in range(n_before + 1, len(table)):
        reach *= acceptance
        gain += reach
        spent_s += token_s
        best = max(best, gain - rate * (spent_s + table[n] - base_s))
        if reach < min_reach:
            break
    return best


class TokenRate:
    """Tokens a second lately, never below plain decoding's: what time is worth."""

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._n_prior = tuning.rate_prior_rounds
        self._decay = 0.5 ** (1.0 / tuning.rate_half_life)
        self.clear()

    def clear(self) -> None:
        self._n_tokens = self._seconds = 0.0  # of all rounds, the older the less

    def add(self, n_tokens: int, seconds: float) -> None:
        self._n_tokens = self._n_tokens * self._decay + n_tokens
        self._seconds = self._seconds * self._decay + seconds

    def value(self, plain_s: float | None) -> float:
        """`plain_s`: seconds of a plain pass; None where it is not known."""
        plain = 1.0 / plain_s if plain_s is not None else 1.0
        if self._seconds <= 0.0:
            return plain
        return max(plain, (self._n_tokens + self._n_prior) / (self._seconds + self._n_prior / plain))


class LossBudget:
    """How far an answer may fall behind plain decoding, in tokens.

    The best bet on average still loses some answers, where wide passes are expensive: a copy of 15 tokens that is wrong
    costs seven tokens of plain decoding on stock kernels. So an answer may fall behind by a little alone; what it won
    can be lost again, and where drafting wins in general (`lead`) nothing is held back.
    """

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self._lead_weight = 1.0 - 0.5 ** (1.0 / tuning.lead_half_life)
        self.lead = tuning.lead_at_first  # tokens a round ahead of plain decoding, over all answers
        self.begin()

    def begin(self) -> None:
        """Another answer."""
        self._n_behind = 0.0  # tokens that plain decoding would be ahead by now
        self._n_answered = 0

    @property
    def n_tokens(self) -> float:
        """That may be lost by now."""
        tuning = self._tuning
        allowed = tuning.max_loss_base + tuning.max_loss_per_token * self._n_answered - self._n_behind
        return allowed + tuning.lead_rounds * max(self.lead - tuning.lead_to_stake, 0.0)

    def add(self, n_tokens: int, cost: float, cost_without_probe: float) -> None:
        """A round brought tokens and cost as much as so many passes of plain decoding."""
        self._n_behind += cost - n_tokens
        self.lead += self._lead_weight * (n_tokens - cost_without_probe - self.lead)
        self._n_answered += n_tokens

    def restore(self, lead: float) -> None:
        self.lead = min(max(lead, -1.0), 2.0)


class Economics:
    """Prices of this machine and the state of this answer, for the controller's questions. Seconds and tokens."""

    def __init__(
        self, costs: Costs | None, max_outputs: int, tuning: Tuning = TUNING, *, fixed: int | None = None
    ) -> None:
        """
        Args:
            costs: None is allowed with `fixed` alone.
            max_outputs: rows of logits that a pass of the target can return.
            fixed: draft so many tokens whatever they cost.
        """
        if costs is None and fixed is None:
            raise ValueError("lengths can be chosen by costs alone")
        self.costs, self._max_outputs, self._tuning, self._fixed = costs, max_outputs, tuning, fixed
        self.table: list[float] = []  # seconds of the target's pass over 1, 2 .. tokens
        self.table_for = (-1, -1)  # (context, rounds) in blocks that the table was made for
        self.min_reach = tuning.min_reach
        self.loss = LossBudget(tuning)
        self._rate = TokenRate(tuning)
        self._probe_s = 0.0  # saved up for asking a model that does not pay
        self._n_rounds = 0

    def begin(self) -> None:
        """Another answer."""
        self._rate.clear()
        self.loss.begin()

    @property
    def rate(self) -> float:
        return self._rate.value(self.table[0] if self.table else None)

    @property
    def loss_budget_s(self) -> float:
        """Seconds that may be lost by now."""
        return self.table[0] * self.loss.n_tokens

    def n_affordable(self) -> int:
        return n_affordable(self.table, self.loss_budget_s) if self.table else 0

    def renew_table(self, limit: int, context: int) -> None:
        """Read the target's curve anew where the context has grown or passes were observed."""
        if self.costs is None:
            return
        n_most = max(limit, self._max_outputs - 1) + 1
        wanted = (context // 64, self._n_rounds // self.costs.n_rounds_kept)
        if self.table_for != wanted or len(self.table) < limit + 1:
            self.table = self.costs.target.table(n_most, context)
            self.table_for = wanted
            slope = (self.table[-1] - self.table[0]) / max(1, len(self.table) - 1)
            least = self._tuning.min_reach
            by_slope = self._tuning.min_reach_slope * slope * self.rate
            self.min_reach = least if self._fixed is not None else max(least, by_slope)

    def model_price(self, passes_per_token: float) -> float:
        """What a looked-up token may be less likely than the model's, for costing no pass: tokens."""
        if self._fixed is not None or self.costs is None or self.costs.draft is None:
            return 0.0
        return self.rate * self.costs.draft(1, 0) * passes_per_token * self._tuning.model_price_share

    def model_pays(
        self,
        context: int,
        n_unread: int,
        acceptance: float,
        passes_per_token: float,
        *,
        n_before: int = 0,
        reach: float = 1.0,
        reads: bool = False,
    ) -> bool:
        """Whether some number of further tokens by the model is expected to bring more than it costs.

        Args:
            n_unread: tokens that the model must read first.
            acceptance: expected of each of its tokens.
            n_before, reach: tokens proposed already, and the probability that all are accepted.
            reads: the prompt is being read, which no answer waits for in the middle.
        """
        if self._fixed is not None:
            return True
        assert self.costs is not None
        draft, n_now = self.costs.draft, min(n_unread, self._tuning.catch_up_tokens)
        if not self.table:
            self.renew_table(self._max_outputs - 1, context)
        if draft is None or len(self.table) < 2:
            return False
        if not reads and n_unread > n_now and draft(n_unread, context) > self.loss_budget_s:
            return False
        first_s = draft(max(1, n_now), context)
        if n_unread > n_now:
            first_s += (draft(n_unread, context) - draft(n_now or 1, context)) / self._tuning.horizon
        return self.model_gain(context, first_s, acceptance, passes_per_token, n_before, reach) > 0.0

    def model_gain(
        self, context: int, first_s: float, acceptance: float, passes_per_token: float, n_before: int, reach: float
    ) -> float:
        """The best expected gain in tokens of further ones by the model, whose first pass takes `first_s`."""
        assert self.costs is not None
        assert self.costs.draft is not None
        token_s = self.costs.draft(1, context) * passes_per_token
        return best_gain(
            self.table,
            self.rate,
            acceptance,
            n_before=n_before,
            reach=reach,
            first_s=first_s - token_s / passes_per_token,
            token_s=token_s,
            min_reach=self._tuning.min_reach,
        )

    def is_cheap(self, context: int) -> bool:
        """Whether a pass of the draft model is hardly felt beside one of the target."""
        if self.costs is None or self.costs.draft is None or not self.table:
            return False
        return self.costs.draft(1, context) <= CHEAP * self.table[0]

    def worth_s(self, acceptance: float) -> float:
        """Seconds that a token saves which is drafted at no cost; without end where lengths are fixed."""
        if self._fixed is not None or len(self.table) < 2:
            return math.inf
        return max(0.0, acceptance / self.rate - (self.table[1] - self.table[0]))

    def goes_on(self, context: int, acceptance: float, passes_per_token: float, n_before: int, reach: float) -> bool:
        """Whether a model that is drafting is expected to bring more than its next passes cost."""
        assert self.costs is not None
        assert self.costs.draft is not None
        first_s = self.costs.draft(1, context)
        return self.model_gain(context, first_s, acceptance, passes_per_token, n_before, reach) > 0.0

    def pay_for_probe(self, context: int, n_unread: int) -> bool:
        """Whether a pass of a model that does not pay may be run to see whether it would by now."""
        if self.costs is None or self.costs.draft is None:
            return False
        price_s = self.costs.draft(max(1, n_unread), context)
        if price_s > min(self._probe_s, self.loss_budget_s):
            return False
        self._probe_s -= price_s
        return True

    def n_worth(self, probabilities: Sequence[float], floor: int) -> int:
        """How many drafted tokens are worth the wider pass."""
        if self._fixed is not None or not probabilities:
            return len(probabilities)
        return n_worth(probabilities, self.table, self.rate, floor)

    def observe(self, n_drafted: int, n_new: int, draft_s: float, *, probed: bool) -> None:
        """A round is over: so many tokens were drafted in so many modelled seconds of the draft model, and came."""
        self._n_rounds += 1
        if not self.table:
            return
        one_s = self.table[0]
        took_s = draft_s + self.table[min(n_drafted, len(self.table) - 1)]
        cost = took_s / one_s
        if probed:  # a probe is no round of the policy that is judged
            took_s -= draft_s
        self.loss.add(n_new, cost, took_s / one_s)
        self._rate.add(n_new, took_s)
        self._probe_s = min(self._probe_s + self._tuning.probe_share * took_s, self._tuning.max_probe_passes * one_s)
