"""Drafting while the target verifies: the same output, guesses that cost no wait, nothing left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import wait

import numpy as np
import pytest
from fakes import TableBackend, alone, random_table

from edgellm.runtime.backends.base import EngineError, Interrupted, Logits
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.ahead import AheadProposer
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.failsafe import FailsafeProposer
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.learning.costs import Costs, assumed
from edgellm.runtime.sampling import GREEDY, Sampling

N_VOCAB = 7
PROMPT = [1, 2, 3]


class Slow(TableBackend):
    """Takes its time, by its own account and by the clock, as a device of its own does."""

    pass_s = 0.0
    waits_for: AheadProposer | None = None  # slower than all that is done ahead, however busy the machine

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        if self.waits_for is not None and self.waits_for._work is not None:
            wait([self.waits_for._work])
        time.sleep(self.pass_s)
        self.engine_s += self.pass_s
        return super().forward(tokens, n_outputs)


def slow(pass_s: float, seed: int, noise: float = 0.0) -> Slow:
    table = random_table(N_VOCAB, seed)
    backend = Slow(table + random_table(N_VOCAB, seed + 1, noise) if noise else table)
    backend.pass_s = pass_s
    return backend


def controller(
    target: TableBackend, draft: TableBackend, *, fixed: int | None = None
) -> tuple[AdaptiveDrafter, AheadProposer]:
    model = AheadProposer(ModelDrafter(draft))
    costs = Costs(assumed(4e-3, 0.05), assumed(3e-3, 1.0))
    return AdaptiveDrafter(target, costs, model=model, fixed=fixed, passes_per_token=1.0), model


def said(
    target: TableBackend, drafter: object, n: int = 60, sampling: Sampling = GREEDY, n_draft: int = 4
) -> list[int]:
    drafter = alone(drafter)  # type: ignore[arg-type]
    drafter.begin(PROMPT, sampling=sampling)
    rounds = generate(target, drafter, PROMPT, sampling, n_draft=n_draft, max_new=n)
    return [token for each in rounds for token in each.tokens]


@pytest.mark.parametrize("fixed", [None, 1, 3])
@pytest.mark.parametrize("noise", [0.0, 1.0, 5.0])
def test_what_is_drafted_ahead_changes_no_token(fixed: int | None, noise: float) -> None:
    plain = said(slow(0.0, 1), NoDrafter(), n_draft=0)
    target = slow(1e-3, 1)
    drafter, _ = controller(target, slow(5e-4, 1, noise), fixed=fixed)
    assert said(target, drafter) == plain
    drafter.close()


def test_seeded_samples_keep_their_distribution() -> None:
    target, sampling = slow(0.0, 1), Sampling(temperature=1.0, seed=3)
    counts = []
    for make in (lambda: NoDrafter(), lambda: controller(target, slow(0.0, 1, 2.0), fixed=2)[0]):
        seen = np.zeros(N_VOCAB)
        for seed in range(300):
            target.truncate(0)
            drafter = make()
            for token in said(target, drafter, 4, Sampling(temperature=1.0, seed=seed), 2)[1:]:
                seen[token] += 1
            drafter.close()
        counts.append(seen)
    expected, got = counts
    chi = ((got - expected) ** 2 / np.maximum(got + expected, 1)).sum()
    # 6 degrees of freedom, one in a hundred thousand: threads decide what is drawn when, so runs differ.
    assert chi < 33.1, (sampling, counts)


def test_a_drafter_that_is_right_is_hardly_waited_for() -> None:
    target = slow(0.0, 1)
    drafter, model = controller(target, slow(1e-4, 1), fixed=3)
    target.waits_for = model
    said(target, drafter, 80)
    drafter.close()
    assert model.n_used > 40
    assert model.engine_s < 0.3 * model.backend.engine_s


def test_guesses_behind_what_was_not_said_are_not_used() -> None:
    target, model = slow(0.0, 1), AheadProposer(ModelDrafter(slow(0.0, 1)))
    model.begin(PROMPT)
    model.go_ahead(PROMPT, [4], 4)
    assert model._work is not None
    wait([model._work])
    assert model.n_ready([*PROMPT, 4]) == 0  # the target's own token is missing
    guesses = model._guesses
    other = (guesses[0].token + 1) % N_VOCAB
    assert model.n_ready([*PROMPT, 4, other]) == 0
    assert model.n_ready([*PROMPT, 5, guesses[0].token]) == 0
    assert model.n_ready([*PROMPT, 4, guesses[0].token]) == len(guesses) - 1
    model.close()
    target.close()


def test_one_that_is_never_right_rests() -> None:
    target, draft = slow(5e-4, 1), slow(0.0, 9)
    drafter, model = controller(target, draft)
    said(target, drafter, 400)
    before = model.n_ahead
    said_before = draft.n_passes
    target.truncate(0)
    said(target, drafter, 200)
    per_round = (draft.n_passes - said_before) / 200
    assert per_round < 2.0, (before, model.n_ahead, per_round)
    drafter.close()


def test_one_that_is_waited_for_longer_than_it_saves_rests() -> None:
    def n_passes(worth_s: float) -> int:
        target, draft = slow(0.0, 1), slow(2e-3, 1)
        model = AheadProposer(ModelDrafter(draft))
        model.begin(PROMPT)
        tokens = list(PROMPT)
        for _ in range(64):  # each pass of the drafter is still running when the target's is over
            model.go_ahead(tokens, [], 2, worth_s)
            row = target.forward(tokens[len(target.tokens) :], 1)[-1]
            tokens.append(int(row.argmax()))
            model.observe(tokens, 1)
        model.close()
        target.close()
        return draft.n_passes

    assert 2 * n_passes(worth_s=1e-6) < n_passes(worth_s=1.0)


def test_a_failure_ahead_ends_drafting_and_not_the_answer() -> None:
    class Failing(ModelDrafter):
        def drafting(self, tokens, prefix):  # type: ignore[no-untyped-def]
            if len(tokens) > 20:
                raise EngineError("the device is gone")
            return super().drafting(tokens, prefix)

    told: list[str] = []
    target = slow(1e-3, 1)
    model = AheadProposer(FailsafeProposer(Failing(slow(0.0, 1)), told.append))
    costs = Costs(assumed(4e-3, 0.05), assumed(1e-3, 1.0))
    drafter = AdaptiveDrafter(target, costs, model=model, passes_per_token=1.0)
    assert said(target, drafter) == said(slow(0.0, 1), NoDrafter(), n_draft=0)
    assert len(told) == 1
    drafter.close()


def test_an_interruption_ahead_is_left_to_the_target() -> None:
    class Stopped(ModelDrafter):
        def drafting(self, tokens, prefix):  # type: ignore[no-untyped-def]
            raise Interrupted("stopped")
            yield

    model = AheadProposer(Stopped(slow(0.0, 1)))
    model.begin(PROMPT)
    model.go_ahead(PROMPT, [], 4)
    model.observe([*PROMPT, 4], 1)
    assert model.n_ready([*PROMPT, 4]) == 0
    model.close()


def test_closing_waits_for_the_pass_that_runs_and_leaves_no_thread() -> None:
    before = {thread for thread in threading.enumerate() if thread.name.startswith("edgellm-ahead")}
    draft = slow(0.05, 1)
    model = AheadProposer(ModelDrafter(draft))
    model.begin(PROMPT)
    model.go_ahead(PROMPT, [], 8)
    model.close()
    assert draft.closed
    assert {thread for thread in threading.enumerate() if thread.name.startswith("edgellm-ahead")} <= before
