"""The seam between the loop and whatever guesses ahead, and between the controller and draft models.

The loop knows a `Drafter`: it proposes tokens and is told what was verified. The controller is one; it asks lookups,
which cost nothing, and a `Proposer`, a draft model that is asked pass by pass. A proposer must offer what `Proposer`
says. It may offer more:

- probabilities: guesses with `probs`, drawn from them, where the target samples (`ModelDrafter`);
- learning: one that `Learns` keeps something between runs: it is restored when the pair is loaded, and saved with it
  (`learning.pair_state`);
- hidden states: one that is trained on the target's (EAGLE, Medusa) is built where the target's backend is a
  `HiddenStates`, and reads them in `observe` (see `factory.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, runtime_checkable

from edgellm.runtime.backends.base import Backend
from edgellm.runtime.sampling import GREEDY, Distribution, Sampling

# Who drafted a token; the names are part of `drafted_by` in JSON.
COPY: Final = "copy"  # the conversation
STORE: Final = "store"  # earlier answers
MODEL: Final = "model"  # a draft model
FORCED: Final = "forced"  # the constraint, which allows nothing else
NONE: Final = "none"  # nobody

Stop = Literal["cost", "entropy"]
"""What ends a draft of a fixed length earlier: nothing, or AdaEDL's rule."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposal: tokens of the *target's* vocabulary that may follow.

    `probs` is None for tokens that are simply given, which is lossless for any drafter; otherwise item i must be the
    very distribution that token i was drawn from.
    """

    tokens: list[int] = field(default_factory=list)
    probs: Sequence[Distribution | None] | None = None  # None in it: that token is given
    source: str = NONE
    sources: Sequence[str] = ()  # of each token, where they are not all of one source


@dataclass(frozen=True, slots=True)
class Guess:
    """One token of a draft model, and what it knows of it."""

    token: int
    top: float = 1.0  # the drafter's probability of the tokens of its own that became this one
    entropy: float = 0.0  # nats, the largest on the way
    provisional: bool = False  # tokens drafted later may retokenise it
    p_final: float | None = None  # where it is provisional: P(it stays as it is); None where nothing is known
    probs: Distribution | None = None  # that it was drawn from; None for a token that is given


class Follows(Protocol):
    """Follows a token sequence of the target's along; what every drafter has in common."""

    @property
    def engine_s(self) -> float:
        """Seconds spent inside a draft model's forward passes so far; the rest of a drafter's time is translation."""
        ...

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        """A turn starts with these target ids.

        `own_prompt` is the same conversation in the drafter's own vocabulary and chat template; drafters without a
        vocabulary of their own ignore it, a translating one without it translates the target's text. `sampling` is
        how the target chooses, for drafters that can imitate it.
        """
        ...

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        """The last `n_new` of `tokens` are now settled: verified draft tokens and the target's own one."""
        ...

    def close(self) -> None:
        """Free what the drafter holds."""
        ...


class Drafter(Follows, Protocol):
    """Guesses the continuation of a token sequence, for the loop."""

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        """At most `limit` tokens to follow `tokens` (the whole sequence, prompt included)."""
        ...


class Proposer(Follows, Protocol):
    """A draft model that the controller asks pass by pass; it reads what it missed only when it is asked."""

    @property
    def backend(self) -> Backend:
        """Whose passes are timed."""
        ...

    def n_unread(self) -> int:
        """Tokens of its own that it must read before it can draft."""
        ...

    def prefill(self) -> None:
        """Read what it missed."""
        ...

    def drafting(self, tokens: Sequence[int], prefix: Sequence[int]) -> Iterator[list[Guess]]:
        """After each pass, all that it guesses to follow `tokens` and the proposed `prefix`. Ends when it cannot go on.

        Guesses that are not provisional stay as they were.
        """
        ...


class Learns(Protocol):
    """What a drafter may offer: something that is learnt and goes on with the next run."""

    @property
    def has_learnt(self) -> bool:
        """Whether there is anything to save."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What was learnt, as plain values."""
        ...

    def restore(self, data: Mapping[str, Any]) -> None:
        """Begin with what `to_json` gave. Raises ValueError, KeyError or TypeError where it is not that."""
        ...


@runtime_checkable
class WeighsPasses(Protocol):
    """What a drafter may offer that learns what passes cost: to be told of one that is not of its own width."""

    def verifies(self, n_tokens: int) -> None:
        """The next pass verifies so many tokens, whatever was proposed."""
        ...


@runtime_checkable
class WorksAhead(Protocol):
    """What a drafter may offer that can draft while the target verifies."""

    def verifying(self, tokens: Sequence[int], drafted: Sequence[int], limit: int) -> None:
        """The target's pass over `drafted` behind `tokens` begins; the next draft will have at most `limit` tokens."""
        ...


@runtime_checkable
class GoesAhead(Protocol):
    """What a proposer may offer, likewise."""

    def go_ahead(self, tokens: Sequence[int], drafted: Sequence[int], limit: int, worth_s: float) -> None:
        """Draft behind `drafted` until asked for anything; each token there in time saves so many seconds."""
        ...

    def n_ready(self, tokens: Sequence[int]) -> int:
        """Guesses to follow `tokens` that are there already, and cost nothing."""
        ...

    def explain(self) -> str:
        """How much of it was of use."""
        ...


@runtime_checkable
class DraftsBehind(Protocol):
    """What a drafter may offer: to go on behind tokens that are proposed whatever it thinks of them."""

    def propose_behind(self, tokens: Sequence[int], given: Sequence[int], limit: int) -> Draft:
        """`given`, which the constraint forces, and what may follow them; at most `limit` together."""
        ...


class NoDrafter:
    """Plain decoding is speculation of length 0."""

    engine_s = 0.0

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        return None

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        return Draft()

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        return None

    def close(self) -> None:
        return None
