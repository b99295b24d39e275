"""Who drafts, and how much: chosen every round so that tokens come as fast as they can.

Each drafted token has a probability of being accepted (learnt, `learning.confidence`) and a cost (measured,
`learning.costs`). A round that spends T seconds and brings N tokens is worth N - r T, where r is the rate at which
tokens come anyway: in the long run no other rule brings more (the renewal argument behind SpecDec++, arXiv:2405.19715,
with measured costs in the place of its threshold). So a source is asked, a draft continued, and a tail kept, while that
pays.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgellm.runtime.backends.base import Backend
from edgellm.runtime.drafters.base import Draft, Guess, SteppedDrafter
from edgellm.runtime.learning import lookup
from edgellm.runtime.learning.confidence import AcceptanceHead, LogisticHead, MovingAverage, logit
from edgellm.runtime.learning.costs import Costs
from edgellm.runtime.learning.edit_alignment import EditAlignment
from edgellm.runtime.learning.lookup import Candidate, Lookup
from edgellm.runtime.learning.ngram_index import GAP, NgramIndex
from edgellm.runtime.sampling import GREEDY, Distribution, Sampling

Stop = Literal["cost", "entropy", "never"]

MODEL_WEIGHTS = (0.69, 1.15, -0.31, 0.06, -0.25, 0.72, 0.56, -0.42)  # fitted to drafts for 40 prompts of our own
PRIOR, HOPE = 0.6, 0.2  # acceptance of a draft model that nothing is known of; and how much better it may be than that
LEAST = 0.02  # a token whose chance of being reached and right is less is not worth a look, however cheap
HORIZON = 40  # rounds over which the reading of a long text must pay
PASSES_A_TOKEN = 1.3  # of a draft model, for a token of a target with another vocabulary
N_READ_ALONG = 4  # unread tokens that belong to a round and are no investment
PROBE_SHARE = 0.005  # of the time, for asking a draft model that does not pay whether it would by now
HALF_LIFE = 6  # rounds, of the rate at which tokens come: a copy's pace is worth nothing to the prose behind it
AT_STAKE, STAKE_A_TOKEN = 0.5, 0.01  # tokens that an answer may fall behind plain decoding, and for each of its tokens
WON_AT_FIRST = 0.15  # tokens a round ahead of plain decoding, while nothing is known
WON_LEAST, CARRY = 0.12, 20.0  # where more than this is won a round, so much of the rest may be staked as well
WON_HALF_LIFE = 70  # rounds
EPSILON, GAMMA = 0.01, 0.2  # AdaEDL's


@dataclass(slots=True)
class _Item:
    """One drafted token."""

    token: int
    p: float  # of being accepted, if those before it are
    source: str
    features: tuple[float, ...] | None = None
    probs: Distribution | None = None


@dataclass(slots=True)
class Choices:
    """What was chosen and what it cost, for whoever wants to know why."""

    n_rounds: int = 0
    n_drafted: int = 0
    n_passes: int = 0  # of the draft model
    rounds_by: Counter[str] = field(default_factory=Counter)  # sources of the proposal, joined by +
    n_probes: int = 0
    overhead_s: float = 0.0  # of recalling, choosing and learning, without the models and the translation


class EntropyRule:
    """AdaEDL (arXiv:2410.18351): stop where the drafter's entropy says that the next token will be rejected."""

    def __init__(self, threshold: float = 0.6, wanted: float = 0.9) -> None:
        self._threshold, self._wanted, self._acceptance = threshold, wanted, wanted

    def stops(self, entropy: float) -> bool:
        return 1.0 - math.sqrt(GAMMA * entropy) < self._threshold

    def observe(self, n_accepted: int, n_drafted: int, was_longest: bool) -> None:
        if n_drafted:
            self._acceptance = 0.5 * self._acceptance + 0.5 * n_accepted / n_drafted
            change = EPSILON if self._acceptance < self._wanted else 0.0 if was_longest else -EPSILON
            self._threshold = min(max(0.9 * self._threshold + 0.1 * (self._threshold + change), 0.0), 1.0)


class AdaptiveDrafter:
    """Copies, recalls, and asks a draft model, mixed in one proposal as long as each token pays for itself."""

    def __init__(
        self,
        target: Backend,
        costs: Costs | None,
        *,
        model: SteppedDrafter | None = None,
        conversation: NgramIndex | None = None,
        store: NgramIndex | None = None,
        fixed: int | None = None,
        stop: Stop = "cost",
        free_head: AcceptanceHead | None = None,
        model_head: AcceptanceHead | None = None,
        passes_a_token: float = PASSES_A_TOKEN,
    ) -> None:
        """
        Args:
            target: whose passes are timed.
            costs: None is allowed with `fixed` alone.
            conversation, store: where copies come from; what the target says is added to both.
            fixed: draft so many tokens whatever they cost.
            stop: what ends a draft; `cost` with `fixed` means never.
            passes_a_token: of the model, for a token of the target's vocabulary, until it is known better.
        """
        if costs is None and fixed is None:
            raise ValueError("lengths can be chosen by costs alone")
        self._target, self._costs, self.model = target, costs, model
        self._fixed, self._stop = fixed, stop
        self._conversation, self._store = conversation, store
        sources = {"copy": conversation, "store": store}
        self._alignment = EditAlignment(conversation) if conversation is not None else None
        self._lookup = Lookup(
            {name: history for name, history in sources.items() if history is not None}, self._alignment
        )
        self.free_head = free_head or LogisticHead(lookup.WEIGHTS)
        self.model_head = model_head or LogisticHead(MODEL_WEIGHTS, strength=40.0)
        self.acceptance = MovingAverage(PRIOR)
        self.passes_a_token = passes_a_token
        self.choices = Choices()
        self._entropy_rule = EntropyRule()
        self._sampling = GREEDY
        self._free: list[_Item] = []
        self._items: list[_Item] = []
        self._n_proposed = 0
        self._n_lost = 0.0  # tokens that plain decoding would be ahead by now, in this answer
        self._n_answered = 0
        self.won = WON_AT_FIRST  # tokens a round ahead of plain decoding, over all answers, the older the less
        self._gained, self._spent = 0.0, 0.0  # tokens and modelled seconds, the older the less
        self._probe_s = 0.0
        self._probed = False
        self._round_s = 0.0
        self._n_rounds_answer = 0
        self._n_passes = 0
        self._mark_s = self._asked_s = 0.0
        self._table: list[float] = []
        self._table_for = (-1, -1)
        self._least = LEAST
        self._judged_last: tuple[Candidate | None, float] = (None, 0.0)

    @property
    def engine_s(self) -> float:
        return self.model.engine_s if self.model is not None else 0.0

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        self._sampling = sampling
        if (talk := self._conversation) is not None:
            known = talk.tokens()
            if len(known) > len(prompt) or list(prompt[: len(known)]) != known.tolist():
                talk.clear()
                known = known[:0]
            talk.extend(prompt[len(known) :])
        if self._alignment is not None:
            self._alignment.begin()
        if self._store is not None:
            self._store.extend([GAP, *prompt[-4:]])
        self._free, self._items, self._n_proposed = [], [], 0
        self._gained = self._spent = self._n_lost = 0.0
        self._n_answered = 0
        if self.model is not None:
            self.model.begin(prompt, own_prompt=own_prompt, sampling=sampling)
            if self._fixed is not None or self._model_pays(len(prompt), 0, 1.0, self.model.n_unread(), reads=True):
                self.model.prefill()

    # --- choosing

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        started, self._asked_s = time.perf_counter(), 0.0
        limit = min(limit, self._fixed) if self._fixed is not None else limit
        self._items, self._free, self._n_passes, self._probed = [], [], 0, False
        self._round_s = 0.0
        if limit > 0:
            self._renew_table(limit, len(tokens))
            self._lookup.start(tokens)
            if self._fixed is None:
                limit = min(limit, self._n_affordable())
            self._compose(tokens, limit)
        n = self._n_proposed = self._n_worth()
        items = self._items[:n]
        probs = [item.probs for item in items]
        sources = [item.source for item in items]
        self.choices.overhead_s += time.perf_counter() - started - self._asked_s
        self.choices.n_passes += self._n_passes
        self._mark_s = self._target.engine_s
        joined = "+".join(dict.fromkeys(sources)) or "none"
        self.choices.rounds_by[joined] += 1
        return Draft([item.token for item in items], probs if any(probs) else None, joined, sources)

    def _compose(self, tokens: Sequence[int], limit: int) -> None:
        reach = 1.0  # the probability that everything so far is accepted
        n_starts = 0
        while len(self._items) < limit and reach > self._least:
            chain = self._chain(limit - len(self._items), reach)
            if not self._items:
                self._free = chain.copy()
            n_free = self._n_before_model(chain, reach)
            for item in chain[:n_free]:
                reach *= item.p
            self._items += chain[:n_free]
            room = limit - len(self._items)
            if self.model is None or room <= 0 or n_starts > 3 or reach <= self._least:
                self._items += chain[n_free:]
                return
            n_unread = (self.model.n_unread() if not n_starts else 1) + n_free
            pays = self._model_pays(len(tokens), len(self._items), reach, n_unread)
            if not pays and not self._probe_is_due(len(tokens), n_unread):
                self._items += chain[n_free:]
                return
            n_starts += 1
            before = len(self._items)
            if n_free < len(chain):
                self._lookup.start(tokens, [item.token for item in self._items])
            reach = self._ask_model(tokens, limit, reach, n_free, pays)
            if len(self._items) == before:
                self._items += chain[n_free:]
                return

    def _chain(self, n_most: int, reach: float) -> list[_Item]:
        """What the histories would go on with."""
        chain: list[_Item] = []
        while len(chain) < n_most and reach > self._least:
            found, p = self._recalled()
            if found is None:
                break
            reach *= p
            chain.append(_Item(found.token, p, found.source, found.features))
            self._lookup.take(found.token)
        return chain

    def _n_before_model(self, chain: Sequence[_Item], reach: float) -> int:
        """How many of the recalled tokens are better than asking the model, which costs time."""
        if self.model is None:
            return len(chain)
        price = 0.0
        if self._fixed is None and self._costs is not None and self._costs.draft is not None:
            price = self._rate * self._costs.draft(1, 0) * self.passes_a_token / 2.0
        for i, item in enumerate(chain):
            if item.p < self.acceptance.value - price / max(reach, LEAST):
                return i
            reach *= item.p
        return len(chain)

    def _model_pays(self, context: int, n_before: int, reach: float, n_unread: int, *, reads: bool = False) -> bool:
        """Whether some number of further tokens by the model is expected to bring more than it costs.

        `reads`: the prompt is being read, which no answer waits for in the middle.
        """
        if self._fixed is not None:
            return True
        costs = self._costs
        assert costs is not None
        if costs.draft is None or len(self._table) < 2:
            if not self._table:
                self._renew_table(self._target.max_outputs - 1, context)
            if costs.draft is None or len(self._table) < 2:
                return False
        if not reads and n_unread > N_READ_ALONG and costs.draft(n_unread, context) > self._purse_s:
            return False
        n_now = min(n_unread, N_READ_ALONG)
        first_s = costs.draft(max(1, n_now), context)
        first_s += (
            (costs.draft(n_unread, context) - costs.draft(n_now or 1, context)) / HORIZON if n_unread > n_now else 0.0
        )
        return self._gain(context, n_before, reach, first_s) > 0.0

    def _gain(self, context: int, n_before: int, reach: float, first_s: float) -> float:
        """The best expected gain, in tokens, over numbers of further tokens by the model."""
        assert self._costs is not None
        assert self._costs.draft is not None
        table, rate, a = self._table, self._rate, self._hoped
        pass_s = self._costs.draft(1, context) * self.passes_a_token
        base_s = table[min(n_before, len(table) - 1)]
        gain, best, spent_s = 0.0, -1.0, first_s - pass_s / self.passes_a_token
        for n in range(n_before + 1, len(table)):
            reach *= a
            gain += reach
            spent_s += pass_s
            best = max(best, gain - rate * (spent_s + table[n] - base_s))
            if reach < LEAST:
                break
        return best

    @property
    def _hoped(self) -> float:
        """Acceptance of the draft model, at best by what is known: one that is never asked would never be known."""
        return min(self.acceptance.value + HOPE / (1.0 + self.acceptance.n_ever / 8.0), 0.95)

    def _probe_is_due(self, context: int, n_unread: int) -> bool:
        costs = self._costs
        if costs is None or costs.draft is None or self._items:
            return False
        price_s = costs.draft(max(1, n_unread), context)
        if price_s > min(self._probe_s, self._purse_s):
            return False
        self._probe_s -= price_s
        self._probed = True
        self.choices.n_probes += 1
        return True

    def _ask_model(self, tokens: Sequence[int], limit: int, reach: float, n_free: int, pays: bool) -> float:
        """Let the model draft behind what is proposed, pass by pass; returns the new reach."""
        assert self.model is not None
        before = len(self._items)
        prefix = [item.token for item in self._items]
        n_settled = n_passes = 0
        guesses: list[Guess] = []
        draft_cost = self._costs.draft if self._costs is not None else None
        model_mark, n_first = self.model.engine_s, self.model.n_unread() + n_free
        is_provisional = False
        passes = iter(self.model.drafting(tokens, prefix))
        while True:
            asked = time.perf_counter()
            drafted = next(passes, None)
            self._asked_s += time.perf_counter() - asked
            if drafted is None:
                break
            guesses = drafted
            n_passes += 1
            if draft_cost is not None:
                n_read = n_first if n_passes == 1 else 1
                self._round_s += draft_cost(n_read, len(tokens))
                draft_cost.observe(n_read, len(tokens), self.model.engine_s - model_mark)
                model_mark = self.model.engine_s
            is_provisional = bool(guesses) and guesses[-1].provisional
            n_known = len(guesses) - is_provisional
            entropy = 0.0
            while n_settled < n_known:
                guess = guesses[n_settled]
                item = self._judged(guess)
                entropy = max(entropy, guess.entropy)
                reach *= item.p
                self._items.append(item)
                self._lookup.take(item.token)
                n_settled += 1
            if len(self._items) >= limit or not pays:
                break
            if self._fixed is not None:
                open_entropy = guesses[-1].entropy if guesses else 0.0
                if self._stop == "entropy" and self._entropy_rule.stops(max(entropy, open_entropy)):
                    break
            else:
                # A token that is not whole yet becomes so by going on.
                ahead = reach * self._judged(replace(guesses[-1], provisional=False)).p if is_provisional else reach
                n_ahead = len(self._items) + is_provisional
                if ahead < self._least or n_ahead >= limit:
                    break
                assert draft_cost is not None
                if self._gain(len(tokens), n_ahead, ahead, draft_cost(1, len(tokens))) <= 0.0:
                    break
            if n_settled and not is_provisional and self._recalls_better(reach):
                break
        del self._items[limit:]
        if is_provisional and len(self._items) < limit:
            self._items.append(self._judged(guesses[-1]))
            self._lookup.take(guesses[-1].token)
            reach *= self._items[-1].p
        n = len(self._items) - before
        if n:
            self.passes_a_token += 0.02 * (n_passes / n - self.passes_a_token)
        self._n_passes += n_passes
        return reach

    def _recalled(self) -> tuple[Candidate | None, float]:
        """What the histories would go on with, and its chance of being accepted."""
        found = self._lookup.candidate()
        if found is not self._judged_last[0]:
            self._judged_last = (found, self.free_head.predict(found.features) if found is not None else 0.0)
        return self._judged_last

    def _recalls_better(self, reach: float) -> bool:
        """Whether the histories know the next token better than the model would, its price considered."""
        found, p = self._recalled()
        if found is None:
            return False
        item = _Item(found.token, p, found.source)
        return bool(self._n_before_model([item], reach)) and p > 0.5

    def _judged(self, guess: Guess) -> _Item:
        """A guess of the model with its chance of being accepted."""
        # Nothing may depend on how a draw fell out.
        found, p = self._recalled() if guess.probs is None else (None, 0.0)
        agrees = differs = 0.0
        if found is not None:
            agrees, differs = (p, 0.0) if found.token == guess.token else (0.0, p)
        features = (
            1.0,
            logit(guess.top) / 2.0,
            guess.entropy,
            float(guess.provisional and guess.p_final is None),
            float(guess.provisional and guess.p_final is not None),
            logit(guess.p_final) / 2.0 if guess.provisional and guess.p_final is not None else 0.0,
            agrees * 2.0,
            differs * 2.0,
        )
        return _Item(guess.token, self.model_head.predict(features), "model", features, guess.probs)

    def _n_worth(self) -> int:
        """How many of the drafted tokens are worth the wider pass. Drawn ones stay: dropping one bends the output."""
        items = self._items
        if self._fixed is not None or not items:
            return len(items)
        floor = max((i for i, item in enumerate(items, 1) if item.probs is not None), default=0)
        rate, table = self._rate, self._table
        reach, gain, best, n_best = 1.0, 0.0, -math.inf, floor
        for n in range(len(items) + 1):
            if n:
                reach *= items[n - 1].p
                gain += reach
            value = gain - rate * table[n]
            if n >= floor and value > best + 1e-9:
                best, n_best = value, n
        return n_best

    @property
    def _rate(self) -> float:
        """Tokens a second: what time is worth."""
        plain = 1.0 / self._table[0] if self._table else 1.0
        if self._spent <= 0.0:
            return plain
        # A few rounds of plain speed stand at the beginning, so that one lucky round makes nobody greedy.
        n_prior = 4.0
        return max(plain, (self._gained + n_prior) / (self._spent + n_prior / plain))

    @property
    def _purse_s(self) -> float:
        """Seconds that may be lost by now.

        The best bet on average still loses some answers, where wide passes are dear: a copy of 15 tokens that is wrong
        costs seven tokens of plain decoding on stock kernels. So an answer may fall behind by a little alone; what it
        won can be staked again, and where drafting wins in general nothing is held back.
        """
        stake = AT_STAKE + STAKE_A_TOKEN * self._n_answered - self._n_lost + CARRY * max(self.won - WON_LEAST, 0.0)
        return self._table[0] * stake

    def _n_affordable(self) -> int:
        """How many tokens may all be wrong in this round."""
        table, purse_s = self._table, self._purse_s
        return next((n for n in range(1, len(table)) if table[n] - table[0] > purse_s), len(table)) - 1

    def _renew_table(self, limit: int, context: int) -> None:
        if self._costs is None:
            return
        n_most = max(limit, self._target.max_outputs - 1) + 1
        wanted = (context // 64, self.choices.n_rounds // 16)
        if self._table_for != wanted or len(self._table) < limit + 1:
            self._table = self._costs.target.table(n_most, context)
            self._table_for = wanted
            slope = (self._table[-1] - self._table[0]) / max(1, len(self._table) - 1)
            self._least = LEAST if self._fixed is not None else max(LEAST, 0.3 * slope * self._rate)

    # --- learning

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        target_s = self._target.engine_s - self._mark_s
        started = time.perf_counter()
        new = tokens[len(tokens) - n_new :]
        choices, n = self.choices, self._n_proposed
        if self._costs is not None:
            self._costs.target.observe(n + 1, len(tokens) - n_new, target_s)
        choices.n_rounds += 1
        choices.n_drafted += n
        n_right = self._learn(new)
        self._entropy_rule.observe(min(n_right, n), n, n == (self._fixed or n))
        if self._table:
            keep = 0.5 ** (1.0 / HALF_LIFE)
            took_s = self._round_s + self._table[min(n, len(self._table) - 1)]
            self._n_lost += took_s / self._table[0] - n_new
            if self._probed:
                took_s -= self._round_s
            self.won += (1.0 - 0.5 ** (1.0 / WON_HALF_LIFE)) * (n_new - took_s / self._table[0] - self.won)
            self._n_answered += n_new
            self._gained, self._spent = self._gained * keep + n_new, self._spent * keep + took_s
            self._probe_s = min(self._probe_s + PROBE_SHARE * took_s, 100 * self._table[0])
        for history in (self._conversation, self._store):
            if history is not None:
                history.extend(new)
        if self._alignment is not None:
            for token in new:
                self._alignment.follow(token)
        self.choices.overhead_s += time.perf_counter() - started
        if self.model is not None:
            self.model.observe(tokens, n_new)

    def _learn(self, new: Sequence[int]) -> int:
        """Each drafted token whose predecessors were right says something; returns how many were right."""
        n_right = 0
        for item, token in zip(self._items, new, strict=False):
            right = item.token == token
            self._credit(item, right)
            if not right:
                break
            n_right += 1
        if self._free and (not self._items or self._items[0] is not self._free[0]):
            for item, token in zip(
                self._free, new, strict=False
            ):  # what would have been recalled costs nothing to check
                self._credit(item, item.token == token)
                if item.token != token:
                    break
        return n_right

    def _credit(self, item: _Item, right: bool) -> None:
        if item.features is None:
            return
        if item.source == "model":
            self.model_head.learn(item.features, right)
            self.acceptance.add(right)
        else:
            self.free_head.learn(item.features, right)

    # --- knowledge

    def knowledge(self) -> dict[str, Any]:
        """What was learnt of whom to believe, as plain values."""
        heads = {"recalled": self.free_head, "model": self.model_head}
        return {
            "heads": {name: head.to_json() for name, head in heads.items() if isinstance(head, LogisticHead)},
            "acceptance": self.acceptance.mean,
            "n_seen": self.acceptance.n_ever,
            "passes_a_token": self.passes_a_token,
            "won": self.won,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Begin with what `knowledge` gave. Raises ValueError, KeyError or TypeError where it is not that."""
        for name, head in (("recalled", self.free_head), ("model", self.model_head)):
            if isinstance(head, LogisticHead) and name in data["heads"]:
                head.restore(data["heads"][name])
        self.acceptance.restore(data["acceptance"], data.get("n_seen", 0))
        self.passes_a_token = min(max(float(data["passes_a_token"]), 1.0), 4.0)
        self.won = min(max(float(data.get("won", WON_AT_FIRST)), -1.0), 2.0)

    def snapshot(self) -> Any:
        """What is learnt by now, for `rewind`; the conversation is left out, `begin` sets it."""
        store = self._store.tokens() if self._store is not None else None
        return store, deepcopy((self.free_head, self.model_head, self.acceptance)), (self.passes_a_token, self.won)

    def rewind(self, snapshot: Any) -> None:
        """Know what was known then: so that a repeated measurement is one of the same thing."""
        store, learnt, (self.passes_a_token, self.won) = snapshot
        self.free_head, self.model_head, self.acceptance = deepcopy(learnt)
        if self._store is not None:
            self._store.fill(store)

    def explain(self) -> str:
        """What it does and why, in a sentence."""
        choices = self.choices
        if not choices.n_rounds:
            return "nothing was drafted yet"
        share = {name: n / choices.n_rounds for name, n in choices.rounds_by.most_common(3)}
        who = ", ".join(f"{name} in {part:.0%} of rounds" for name, part in share.items())
        text = f"drafts of {choices.n_drafted / choices.n_rounds:.1f} tokens on average ({who})"
        if self._costs is None or not self._table:
            return text
        table = self._table
        wide = min(4, len(table) - 1)
        text += (
            f": a pass of the target takes {1e3 * table[0]:.0f} ms, over {wide + 1} tokens {1e3 * table[wide]:.0f} ms"
        )
        if self._costs.draft is not None:
            text += f", one of the draft model {1e3 * self._costs.draft(1):.0f} ms, and "
            asked = self.acceptance.n_ever > 0
            text += f"{self.acceptance.value:.0%} of its tokens are accepted" if asked else "it was not asked yet"
            n_unread = self.model.n_unread() if self.model is not None else 1
            if self._model_pays(0, 0, 1.0, n_unread):
                text += ", so it pays"
            elif self._model_pays(0, 0, 1.0, 1):
                text += ": it would pay, but not for what it has to read first"
            else:
                text += ", so it does not pay" if asked else ": it is too slow to pay"
        return text

    def close(self) -> None:
        if self.model is not None:
            self.model.close()
