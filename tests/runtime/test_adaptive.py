"""The controller: drafts where that pays, keeps still where it does not, and says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import TableBackend, random_table

from edgellm.runtime.decode import RoundResult, generate
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.learning.costs import Costs, assumed
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.sampling import GREEDY

N_VOCAB = 40
TARGET = random_table(N_VOCAB, 1)
PROMPT = [0, 1, 2]


def controlled(per_token: float, draft_s: float, table: Any = TARGET, **options: Any) -> AdaptiveDrafter:
    costs = Costs(assumed(1.0, per_token), assumed(draft_s, 0.05))
    drafts = TableBackend(table, n_ctx=8192)
    return AdaptiveDrafter(TableBackend(TARGET), costs, model=ModelDrafter(drafts, reach=64), **options)


def run(drafter: AdaptiveDrafter, n: int = 300, prompt: list[int] = PROMPT) -> list[RoundResult]:
    drafter.begin(prompt)
    return list(generate(TableBackend(TARGET, n_ctx=8192), drafter, prompt, GREEDY, n_draft=15, max_new=n))


def a_round(steps: list[RoundResult]) -> float:
    return sum(len(step.tokens) for step in steps) / len(steps)


def test_a_drafter_that_is_right_and_cheap_drafts_as_far_as_it_may() -> None:
    assert a_round(run(controlled(0.05, 0.01), 600)[-20:]) > 14


def test_a_drafter_that_is_wrong_is_left_alone_but_for_a_look_now_and_then() -> None:
    drafter = controlled(0.05, 0.1, random_table(N_VOCAB, 2))
    steps = run(drafter, 1000)
    late = steps[len(steps) // 2 :]
    # 0.5 % of the time is for looks, each a tenth of a pass; what they find may be worth its twentieth of one.
    assert sum(step.n_drafted for step in late) < 0.05 * len(late)
    assert drafter.choices.n_passes < 0.2 * len(steps)


def test_a_drafter_is_left_alone_where_wide_passes_are_dear() -> None:
    drafter = controlled(1.0, 0.3)
    assert a_round(run(drafter)) == 1.0
    assert "does not pay" in drafter.explain()


@pytest.mark.parametrize("per_token", [0.3, 0.6, 1.0])
def test_an_answer_never_falls_behind_plain_decoding_by_more_than_may_be_lost(per_token: float) -> None:
    """Every word of the prompt misleads: it says once more, at length, what the target will not go on with."""
    for seed in range(6):
        said = np.random.default_rng(seed).integers(0, N_VOCAB, 30).tolist()
        drafter = controlled(per_token, 0.1, random_table(N_VOCAB, 2), conversation=NgramIndex(8192))
        steps = run(drafter, 60, said * 20)
        took = sum(1.0 + per_token * step.n_drafted for step in steps)
        assert took - 60 <= 0.5 + 0.01 * 60 + 0.6  # the last is what a new drafter is trusted with in advance


def test_a_drafter_that_was_wrong_and_is_right_again_is_found_out() -> None:
    wrong_then_right = random_table(N_VOCAB, 2)
    drafter = controlled(0.05, 0.02, wrong_then_right)
    run(drafter, 400)
    wrong_then_right[:] = TARGET
    assert a_round(run(drafter, 4000)[-20:]) > 8


def test_a_draft_model_that_nothing_is_known_of_is_asked_while_it_may_pay() -> None:
    """Half the price of a pass: it pays if it is right three times in four, which only asking can tell."""
    prompt = np.random.default_rng(0).integers(0, N_VOCAB, 60).tolist()
    right = controlled(0.05, 0.5, passes_per_token=1.0)
    assert a_round(run(right, 200, prompt)) > 2.0
    assert right.acceptance.of_model.n_ever > 50
    wrong = controlled(0.05, 0.5, random_table(N_VOCAB, 2), passes_per_token=1.0)
    run(wrong, 200, prompt)
    assert 0 < wrong.acceptance.of_model.n_ever < 15
    assert wrong.choices.n_passes < 20


def test_a_draft_model_that_was_never_asked_is_not_said_to_be_right() -> None:
    drafter = controlled(1.0, 1.5)
    run(drafter, 30)
    assert "it was not asked yet: it is too slow to pay" in drafter.explain()


def test_a_long_prompt_is_not_read_where_drafting_does_not_pay() -> None:
    prompt = np.random.default_rng(0).integers(0, N_VOCAB, 2000).tolist()
    drafter = controlled(1.0, 0.3)
    run(drafter, 20, prompt)
    backend = drafter.model.backend  # type: ignore[union-attr]
    assert backend.n_read == 0


def test_a_long_prompt_is_read_at_its_end_alone() -> None:
    prompt = np.random.default_rng(0).integers(0, N_VOCAB, 2000).tolist()
    drafter = controlled(0.05, 0.001)
    steps = run(drafter, 60, prompt)
    backend = drafter.model.backend  # type: ignore[union-attr]
    assert a_round(steps) > 8
    assert backend.n_read < 64 + 60 * 3


def test_copies_come_first_and_the_model_goes_on_behind_them() -> None:
    drafter = controlled(0.05, 0.1, conversation=NgramIndex(4096))
    text = run(drafter, 200)
    said = [token for step in text for token in step.tokens]
    prompt = [*PROMPT, *said, *PROMPT]
    again = run(drafter, 200, prompt)
    assert a_round(again) > a_round(text)
    assert any(step.source == "copy+model" for step in again) or any(step.source == "copy" for step in again)


def test_a_rewound_drafter_does_the_same_again() -> None:
    drafter = controlled(0.05, 0.1, random_table(N_VOCAB, 1) * 0.8, store=NgramIndex(1024))
    run(drafter, 100)
    known = drafter.snapshot()
    drafter.begin([5])
    first = [step.n_drafted for step in run(drafter, 100)]
    drafter.rewind(known)
    drafter.begin([5])
    assert [step.n_drafted for step in run(drafter, 100)] == first


def test_knowledge_comes_back_and_nonsense_is_refused() -> None:
    drafter = controlled(0.05, 0.05, random_table(N_VOCAB, 2))
    run(drafter, 200)
    other = controlled(0.05, 0.05)
    other.restore(drafter.to_json())
    assert other.to_json() == drafter.to_json()
    for broken in ({}, {"heads": {}, "acceptance": "x", "passes_a_token": 1.0}, {"heads": {"free": {}}}):
        with pytest.raises((ValueError, KeyError, TypeError)):
            other.restore(broken)


def test_what_it_does_is_said_in_a_sentence() -> None:
    drafter = controlled(0.05, 0.01)
    assert drafter.explain() == "nothing was drafted yet"
    run(drafter)
    assert "tokens on average (model in" in drafter.explain()
    assert "so it pays" in drafter.explain()


def test_lengths_cannot_be_chosen_without_costs() -> None:
    with pytest.raises(ValueError, match="costs"):
        AdaptiveDrafter(TableBackend(TARGET), None)
