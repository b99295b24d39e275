"""The loop: propose, forward, verify, truncate, observe, yield. It knows token ids, a backend and a drafter."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgellm.runtime.backends.base import Backend, Logits
from edgellm.runtime.constraint import ConstraintState
from edgellm.runtime.drafters.base import Drafter, WorksAhead
from edgellm.runtime.logprobs import Logprob, logprobs_of
from edgellm.runtime.sampling import Distribution, Sampling
from edgellm.runtime.verify import verify


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one pass of the target gave."""

    tokens: list[int]  # new ones: accepted draft tokens and the target's own
    n_drafted: int
    n_accepted: int
    source: str  # who drafted
    sources: Sequence[str]  # of each token, where they differ
    draft_s: float  # in the draft model's forward passes
    translate_s: float  # the rest of the drafter's time
    verify_s: float  # in the target's forward pass
    sample_s: float  # choosing and checking tokens
    logprobs: Sequence[Logprob] = ()  # of each new token that was chosen, where they were asked for

    @property
    def total_s(self) -> float:
        return self.draft_s + self.translate_s + self.verify_s + self.sample_s


def generate(
    backend: Backend,
    drafter: Drafter,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    n_draft: int,
    max_new: int,
    stop: frozenset[int] = frozenset(),
    n_logprobs: int | None = None,
    constraint: ConstraintState | None = None,
) -> Generator[RoundResult, None, None]:
    """Yield one result per target forward pass, `max_new` tokens at most or until a token of `stop` (which is yielded).

    `backend` holds any prefix of `prompt`, and not all of it. Between passes it holds every token but the last, so
    closing the iterator at a yield leaves it usable. `drafter.begin` was called with the prompt. With `n_logprobs`,
    results hold the log probabilities of their tokens, and of so many alternatives. What `constraint` does not allow is
    never chosen; `drafter` proposes nothing else (`drafters/constrained.py`).

    Raises:
        ContextFull: the prompt alone does not fit.
        ConstraintFailed: the constraint leaves nothing to choose.
    """
    rng = np.random.default_rng(sampling.seed)
    tokens = list(prompt)
    end = min(len(tokens) + max_new, backend.n_ctx)
    n_draft = min(n_draft, backend.max_outputs - 1)
    ahead = drafter if isinstance(drafter, WorksAhead) else None
    backend.forward(tokens[len(backend.tokens) : -1], n_outputs=0)
    while len(tokens) < end:
        started, draft_busy = time.perf_counter(), drafter.engine_s
        draft = drafter.propose(tokens, min(n_draft, end - len(tokens) - 1))
        proposed, n_known = time.perf_counter(), len(tokens)

        if ahead is not None:
            ahead.verifying(tokens, draft.tokens, n_draft)
        logits = backend.forward([tokens[-1], *draft.tokens], n_outputs=len(draft.tokens) + 1)
        forwarded = time.perf_counter()

        target = partial(_target_at, sampling, logits, tokens, draft.tokens, constraint)
        n_accepted, next_token = verify(target, draft, rng)
        new = [*draft.tokens[:n_accepted], next_token]
        if constraint is not None:
            constraint.advance(new)
            new += constraint.ending  # no pass is made for what nobody chooses
        if n_until_stop := next((i for i, token in enumerate(new, 1) if token in stop), 0):
            new, end = new[:n_until_stop], 0
        logprobs = logprobs_of(logits, new[: n_accepted + 1], n_logprobs) if n_logprobs is not None else ()
        verified = time.perf_counter()

        tokens += new
        backend.truncate(len(tokens) - 1)
        truncated = time.perf_counter()
        drafter.observe(tokens, n_new=len(new))
        draft_s = drafter.engine_s - draft_busy
        yield RoundResult(
            new,
            n_drafted=len(draft.tokens),
            n_accepted=min(n_accepted, len(tokens) - n_known),
            source=draft.source,
            sources=draft.sources,
            draft_s=draft_s,
            translate_s=proposed - started + time.perf_counter() - truncated - draft_s,
            verify_s=forwarded - proposed + truncated - verified,
            sample_s=verified - forwarded,
            logprobs=logprobs,
        )


def _target_at(
    sampling: Sampling,
    logits: Logits,
    tokens: Sequence[int],
    drafted: Sequence[int],
    constraint: ConstraintState | None,
    i: int,
) -> Distribution:
    """The target's distribution after `tokens` and i drafted ones."""
    allowed = constraint.allowed(drafted[:i]) if constraint is not None else None
    return sampling.distribution(logits[i], (*tokens[-sampling.repeat_last_n :], *drafted[:i]), allowed)
