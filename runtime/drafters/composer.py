"""One round's proposal: looked-up tokens, a draft model's, and in which order, as long as each pays for itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edgellm.runtime.drafters.acceptance import Acceptance, DraftedToken
from edgellm.runtime.drafters.base import GoesAhead, Guess, Proposer, Stop
from edgellm.runtime.drafters.economics import Economics
from edgellm.runtime.drafters.entropy import EntropyRule
from edgellm.runtime.drafters.prompt_lookup import PromptLookup
from edgellm.runtime.drafters.tuning import Tuning
from edgellm.runtime.learning.lookup import Candidate

Ask = Literal["pays", "probe"]  # why a draft model is asked


@dataclass(slots=True)
class Round:
    """A proposal in the making."""

    tokens: Sequence[int]  # the whole sequence that it follows
    limit: int  # tokens at most
    drafted: list[DraftedToken] = field(default_factory=list)
    looked_up: list[DraftedToken] = field(default_factory=list)  # what lookup alone would have proposed
    n_given: int = 0  # of the drafted, proposed whatever they cost
    reach: float = 1.0  # the probability that everything so far is accepted
    n_proposed: int = 0  # of the drafted
    n_passes: int = 0  # of the draft model
    draft_s: float = 0.0  # of these, by their curve
    n_probes: int = 0  # times that the model was asked although that did not pay
    in_model_s: float = 0.0  # by the clock
    target_mark_s: float = 0.0  # of the target's engine time, at the end of drafting

    @property
    def room(self) -> int:
        return self.limit - len(self.drafted)

    def take(self, items: Sequence[DraftedToken]) -> None:
        for item in items:
            self.reach *= item.p
        self.drafted += items


class Composer:
    """Fills rounds from a lookup and a draft model, by what their tokens cost and how likely they are accepted."""

    def __init__(
        self,
        lookup: PromptLookup,
        model: Proposer | None,
        economics: Economics,
        acceptance: Acceptance,
        tuning: Tuning,
        *,
        fixed: int | None = None,
        stop: Stop = "cost",
    ) -> None:
        """`fixed`, `stop`: see `AdaptiveDrafter`."""
        self._lookup, self._model, self._tuning = lookup, model, tuning
        self._ahead = model if isinstance(model, GoesAhead) else None
        self._economics, self._acceptance = economics, acceptance
        self._is_fixed, self._stop = fixed is not None, stop
        self.entropy_rule = EntropyRule(tuning)
        self._last_judged: tuple[Candidate | None, float] = (None, 0.0)

    def compose(self, now: Round) -> None:
        """Looked-up tokens while they are better than asking the model, then the model's, and again."""
        n_starts = 0
        while now.room > 0 and now.reach > self._economics.min_reach:
            chain = self._chain(now)
            if len(now.drafted) == now.n_given:
                now.looked_up = chain
            n_free = self._n_before_model(chain, now.reach)
            now.take(chain[:n_free])
            rest, n_before = chain[n_free:], len(now.drafted)
            n_free += now.n_given if not n_starts else 0
            if (why := self._asks_model(now, n_free, n_starts)) is not None:
                if rest:
                    self._lookup.start(now.tokens, [item.token for item in now.drafted])
                self._ask_model(now, n_free, why)
            if len(now.drafted) == n_before:
                now.drafted += rest
                return
            n_starts += 1

    def _chain(self, now: Round) -> list[DraftedToken]:
        """What the lookup would go on with."""
        chain: list[DraftedToken] = []
        reach = now.reach
        while len(chain) < now.room and reach > self._economics.min_reach:
            found, p = self._looked_up()
            if found is None:
                break
            reach *= p
            chain.append(DraftedToken(found.token, p, found.source, found.features))
            self._lookup.take(found.token)
        return chain

    def _looked_up(self) -> tuple[Candidate | None, float]:
        """What the lookup would go on with, and its chance of being accepted."""
        found = self._lookup.candidate()
        if found is not self._last_judged[0]:
            self._last_judged = (found, self._acceptance.p_of(found) if found is not None else 0.0)
        return self._last_judged

    def _n_before_model(self, chain: Sequence[DraftedToken], reach: float) -> int:
        """How many of the looked-up tokens are better than asking the model, which costs time."""
        if self._model is None:
            return len(chain)
        price = self._economics.model_price(self._acceptance.passes_per_token)
        for i, item in enumerate(chain):
            if item.p < self._acceptance.of_model.value - price / max(reach, self._tuning.min_reach):
                return i
            reach *= item.p
        return len(chain)

    def _asks_model(self, now: Round, n_free: int, n_starts: int) -> Ask | None:
        """Why the model is asked to go on; None where it is not."""
        if self._model is None or now.room <= 0 or now.reach <= self._economics.min_reach:
            return None
        if n_starts >= self._tuning.max_model_starts:
            return None
        if self._n_ready(now):
            return "pays"
        if self._is_left_to_later(len(now.tokens)):
            return None
        n_unread = (self._model.n_unread() if not n_starts else 1) + n_free
        if self.model_pays(len(now.tokens), n_unread, n_before=len(now.drafted), reach=now.reach):
            return "pays"
        if now.drafted or not self._economics.pay_for_probe(len(now.tokens), n_unread):
            return None
        now.n_probes += 1
        return "probe"

    def model_pays(
        self, context: int, n_unread: int, *, n_before: int = 0, reach: float = 1.0, reads: bool = False
    ) -> bool:
        """See `Economics.model_pays`, with what is known of the model."""
        acceptance = self._acceptance
        return self._economics.model_pays(
            context,
            n_unread,
            acceptance.hoped,
            acceptance.passes_per_token,
            n_before=n_before,
            reach=reach,
            reads=reads,
        )

    def _n_ready(self, now: Round) -> int:
        """Guesses of the model that are there before it is asked."""
        return self._ahead.n_ready(now.tokens) if self._ahead is not None and not now.drafted else 0

    def _is_left_to_later(self, context: int) -> bool:
        """Whether no pass of the model is waited for: it drafts for the next round while the target verifies."""
        return self._ahead is not None and not self._is_fixed and not self._economics.is_cheap(context)

    def _ask_model(self, now: Round, n_free: int, why: Ask) -> None:
        """Let the model draft behind what is proposed, pass by pass; a probe is one pass."""
        n_before, n_settled, n_passes, n_ready = len(now.drafted), 0, 0, self._n_ready(now)
        last: Guess | None = None  # the draft's end, where it is provisional
        for guesses in self._passes(now, n_free, is_ready=n_ready > 0):
            n_passes += len(guesses) > n_ready or not n_ready
            last = guesses[-1] if guesses and guesses[-1].provisional else None
            new = guesses[n_settled : len(guesses) - (last is not None)]
            n_settled += len(new)
            for guess in new:
                now.take([self._judged(guess)])
                self._lookup.take(guess.token)
            if n_ready and n_settled == n_ready and self._is_left_to_later(len(now.tokens)):
                break
            if why == "probe" or self._is_enough(now, guesses, last, max([0.0, *(guess.entropy for guess in new)])):
                break
            if n_settled and last is None and self._lookup_is_better(now.reach):
                break
        del now.drafted[now.limit :]
        if last is not None and now.room > 0:
            now.take([self._judged(last)])
            self._lookup.take(last.token)
        if n_passes and (n_new := len(now.drafted) - n_before - n_ready) > 0:
            self._acceptance.learn_passes(n_passes, n_new)
        now.n_passes += n_passes

    def _passes(self, now: Round, n_free: int, *, is_ready: bool) -> Iterator[list[Guess]]:
        """The model's guesses after each pass, which is timed on the way; `is_ready`: the first are there already."""
        assert self._model is not None
        curve = self._economics.costs.draft if self._economics.costs is not None else None
        mark_s, n_read = self._model.engine_s, self._model.n_unread() + n_free
        passes = iter(self._model.drafting(now.tokens, [item.token for item in now.drafted]))
        while True:
            asked = time.perf_counter()
            guesses = next(passes, None)
            now.in_model_s += time.perf_counter() - asked
            if guesses is None:
                return
            if is_ready:
                is_ready, n_read = False, 1
                yield guesses
                continue
            if curve is not None:
                now.draft_s += curve(n_read, len(now.tokens))
                curve.observe(n_read, len(now.tokens), self._model.engine_s - mark_s)
                mark_s = self._model.engine_s
            n_read = 1
            yield guesses

    def _is_enough(self, now: Round, guesses: Sequence[Guess], last: Guess | None, entropy: float) -> bool:
        """Whether the next pass is not worth it. `last`: the provisional guess; `entropy`: of the other new ones."""
        if now.room <= 0:
            return True
        if self._is_fixed:
            if self._stop != "entropy":
                return False
            return self.entropy_rule.stops(max(entropy, guesses[-1].entropy if guesses else 0.0))
        # A token that is not whole yet becomes so by going on.
        reach = now.reach * self._judged(replace(last, provisional=False)).p if last is not None else now.reach
        n_ahead, context = len(now.drafted) + (last is not None), len(now.tokens)
        if reach < self._economics.min_reach or n_ahead >= now.limit:
            return True
        acceptance = self._acceptance
        return not self._economics.goes_on(context, acceptance.hoped, acceptance.passes_per_token, n_ahead, reach)

    def _lookup_is_better(self, reach: float) -> bool:
        """Whether the lookup knows the next token better than the model would, its price considered."""
        found, p = self._looked_up()
        if found is None or p <= self._tuning.lookup_over_model:
            return False
        return self._n_before_model([DraftedToken(found.token, p, found.source, found.features)], reach) > 0

    def _judged(self, guess: Guess) -> DraftedToken:
        # Nothing may depend on how a draw fell out.
        found, p = self._looked_up() if guess.probs is None else (None, 0.0)
        return self._acceptance.judge(guess, found, p)
