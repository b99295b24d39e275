"""Several continuations of one text, which go through the model in the same passes: for keyboards and editors.

Each is a sample of the target's own distribution, drawn as any answer is; what was drawn before is drawn again with
another seed. So those that come back are distinct, and none is an approximation (Superposed Decoding,
arXiv:2405.18400, shares one pass by blending, which these do not).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from edgellm.runtime.answer import Answer, FinishReason
from edgellm.runtime.engine import Engine
from edgellm.runtime.generation import Generation
from edgellm.runtime.request import BadRequest, Request
from edgellm.runtime.sampling import Sampling

DRAWS = 4  # for each continuation that is asked for, at most: a model may have little else to say


@dataclass(frozen=True, slots=True)
class Completion:
    """One way to go on."""

    text: str
    tokens: tuple[int, ...]
    logprob: float  # of its tokens together, in the model's own distribution
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Completions:
    """The likeliest first. Fewer than were asked for where the model repeats itself."""

    found: tuple[Completion, ...]
    n_drawn: int
    n_prompt: int  # tokens
    n_new: int  # tokens of all that was drawn
    n_rounds: int  # passes' rows: one conversation's part of a pass each


class Writing(Protocol):
    """An answer that can be waited for."""

    def finish(self) -> Answer: ...


class Completing(Protocol):
    """Who draws: an engine of several conversations, or of one."""

    @property
    def n_parallel(self) -> int: ...

    def generate(self, request: Request, *, cancel: threading.Event | None = None) -> Writing: ...


class InTurn:
    """An engine of one conversation, which draws one after the other."""

    n_parallel = 1

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def generate(self, request: Request, *, cancel: threading.Event | None = None) -> Writing:
        return Generation(self._engine, request, cancel=cancel)


def complete(
    engine: Completing,
    prompt: Sequence[int],
    n: int,
    *,
    sampling: Sampling,
    max_tokens: int,
    stop: Sequence[str] = (),
    cancel: threading.Event | None = None,
) -> Completions:
    """`n` different continuations of the tokens of a text, as many at once as the engine has seats.

    Raises:
        BadRequest: several are asked for, and nothing is left to chance.
        PromptTooLong: the text does not fit.
        Interrupted: `cancel` was set.
    """
    if n > 1 and sampling.temperature == 0:
        raise BadRequest("several continuations need chance: give --temp above 0, or ask for one")
    cancel = cancel or threading.Event()
    first = Request(
        prompt=tuple(prompt), sampling=sampling, max_tokens=max_tokens, stop=tuple(stop), n_logprobs=0, n_draft=None
    )
    if n > 1:  # whoever comes then begins with what is read
        engine.generate(replace(first, max_tokens=0, stop=()), cancel=cancel).finish()
    seed = sampling.seed if sampling.seed is not None else int(np.random.default_rng().integers(2**31))
    drawn: list[Answer] = []
    found: dict[str, Completion] = {}
    with ThreadPoolExecutor(engine.n_parallel, "edgellm-complete") as pool:
        while len(found) < n and len(drawn) < DRAWS * n and not cancel.is_set():
            seeds = range(seed + len(drawn), seed + len(drawn) + min(n - len(found), DRAWS * n - len(drawn)))
            requests = [replace(first, sampling=replace(sampling, seed=one % 2**31)) for one in seeds]
            for answer in pool.map(lambda one: engine.generate(one, cancel=cancel).finish(), requests):
                drawn.append(answer)
                found.setdefault(answer.text, _completion(answer))
    return Completions(
        tuple(sorted(found.values(), key=lambda one: -one.logprob)),
        len(drawn),
        len(prompt),
        sum(answer.stats.n_new for answer in drawn),
        sum(answer.stats.n_rounds for answer in drawn),
    )


def _completion(answer: Answer) -> Completion:
    logprob = sum(one.logprob for one in answer.logprobs or ())
    return Completion(answer.text, answer.tokens, logprob, answer.finish_reason)
