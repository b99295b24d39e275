"""The seam between the loop and whatever guesses ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgellm.runtime.sampling import GREEDY, Distribution, Sampling


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposal: tokens of the *target's* vocabulary that may follow.

    `probs` is None for tokens that are simply given, which is lossless for any drafter; otherwise item i must be the
    very distribution that token i was drawn from.
    """

    tokens: list[int] = field(default_factory=list)
    probs: Sequence[Distribution | None] | None = None  # None in it: that token is given
    source: str = "none"
    sources: Sequence[str] = ()  # of each token, where they are not all of one source


@dataclass(frozen=True, slots=True)
class Guess:
    """One token of a draft model, and what it knows of it."""

    token: int
    top: float = 1.0  # the drafter's probability of what it spelled the token with
    entropy: float = 0.0  # nats, the largest on the way
    provisional: bool = False  # tokens drafted later may retokenise it
    p_final: float | None = None  # where it is provisional: P(it stays as it is); None where nothing is known
    probs: Distribution | None = None  # that it was drawn from; None for a token that is given


class Drafter(Protocol):
    """Guesses the continuation of a token sequence that it follows along."""

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

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        """At most `limit` tokens to follow `tokens` (the whole sequence, prompt included)."""
        ...

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        """The last `n_new` of `tokens` are now settled: verified draft tokens and the target's own one."""
        ...

    def close(self) -> None:
        """Free what the drafter holds."""
        ...


class SteppedDrafter(Drafter, Protocol):
    """A draft model that is asked pass by pass, and reads what it missed only when it is asked."""

    def n_unread(self) -> int:
        """Tokens of its own that it must read before it can draft."""
        ...

    def drafting(self, tokens: Sequence[int], prefix: Sequence[int]) -> Iterator[list[Guess]]:
        """After each pass, all that it guesses to follow `tokens` and the proposed `prefix`. Ends when it cannot go on.

        Guesses that are not provisional stay as they were.
        """
        ...

    def prefill(self) -> None:
        """Read what it missed."""
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
