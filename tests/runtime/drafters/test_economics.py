"""What a round costs and brings, and what may be lost: on numbers alone."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.drafters.economics import Economics, LossBudget, TokenRate, best_gain, n_affordable, n_worth
from edgellm.runtime.drafters.tuning import TUNING, Tuning
from edgellm.runtime.learning.costs import Costs, assumed

chances = st.lists(st.floats(0.0, 1.0), max_size=8)
steps = st.lists(st.floats(0.0, 0.5), min_size=9, max_size=9)


def table_of(increments: list[float], one_s: float = 1.0) -> list[float]:
    return list(itertools.accumulate(increments, initial=one_s))


def gain_of(ps: list[float], table: list[float], rate: float) -> float:
    reach, gain = 1.0, 0.0
    for p in ps:
        reach *= p
        gain += reach
    return gain - rate * table[len(ps)]


def test_the_docstrings_example_holds() -> None:
    table = [0.05, 0.06]
    assert n_worth([0.5], table, 20.0) == 1
    assert n_worth([0.1], table, 20.0) == 0


@given(chances, steps, st.floats(0.1, 3.0), st.integers(0, 3))
def test_no_other_number_of_tokens_is_worth_more(ps: list[float], slopes: list[float], rate: float, floor: int) -> None:
    table, floor = table_of(slopes), min(floor, len(ps))
    n = n_worth(ps, table, rate, floor)
    assert floor <= n <= len(ps)
    best = max(gain_of(ps[:k], table, rate) for k in range(floor, len(ps) + 1))
    assert gain_of(ps[:n], table, rate) >= best - 1e-6


@given(steps, st.floats(0.0, 4.0))
def test_what_is_affordable_costs_no_more_than_the_budget_and_one_token_more_would(
    slopes: list[float], budget_s: float
) -> None:
    table = table_of(slopes)
    n = n_affordable(table, budget_s)
    assert table[n] - table[0] <= budget_s
    assert n == len(table) - 1 or table[n + 1] - table[0] > budget_s


def test_a_draft_model_pays_from_the_acceptance_on_at_which_its_tokens_bring_what_they_cost() -> None:
    """One token more for 0.1 s of the model and nothing of the target, at one token a second: worth it above 0.1."""
    asked = {"n_before": 0, "reach": 1.0, "first_s": 0.0, "token_s": 0.1, "min_reach": 0.02}
    assert best_gain([1.0, 1.0], 1.0, 0.11, **asked) == pytest.approx(0.01)
    assert best_gain([1.0, 1.0], 1.0, 0.09, **asked) == pytest.approx(-0.01)
    assert best_gain([1.0], 1.0, 0.9, **asked) == -1.0  # no pass that is wider


def test_tokens_behind_others_bring_less() -> None:
    gains = [
        best_gain([1.0] * 9, 1.0, 0.8, n_before=0, reach=reach, first_s=0.0, token_s=0.1, min_reach=0.02)
        for reach in (1.0, 0.5, 0.2, 0.05)
    ]
    assert gains == sorted(gains, reverse=True)


def test_the_rate_is_never_below_plain_decoding_and_one_lucky_round_moves_it_little() -> None:
    rate = TokenRate()
    assert rate.value(0.5) == 2.0
    rate.add(1, 5.0)
    assert rate.value(0.5) == 2.0
    rate.clear()
    rate.add(15, 0.6)
    assert 2.0 < rate.value(0.5) < 8.0  # 25 tokens a second in that round
    rate.clear()
    assert rate.value(0.5) == 2.0


def test_a_rate_forgets_by_half_in_its_half_life() -> None:
    rate = TokenRate(Tuning(rate_half_life=3.0, rate_prior_rounds=0.0))
    rate.add(8, 1.0)
    for _ in range(3):
        rate.add(1, 1.0)
    n_tokens = 8 * 0.5 + sum(0.5 ** (i / 3) for i in range(3))
    assert rate.value(1.0) == pytest.approx(n_tokens / (0.5 + sum(0.5 ** (i / 3) for i in range(3))))


def test_an_answer_that_brings_nothing_has_lost_what_it_may_after_so_many_tokens() -> None:
    budget = LossBudget(Tuning(lead_at_first=0.0))
    assert budget.n_tokens == TUNING.max_loss_base
    for _ in range(4):
        budget.add(1, 1.125, 1.125)  # a token for 1.125 passes: an eighth behind each round
    assert budget.n_tokens == pytest.approx(4 * TUNING.max_loss_per_token)
    budget.add(3, 1.0, 1.0)
    assert budget.n_tokens == pytest.approx(7 * TUNING.max_loss_per_token + 2.0)
    budget.begin()
    assert budget.n_tokens >= TUNING.max_loss_base


def test_where_drafting_wins_in_general_more_may_be_lost() -> None:
    budget = LossBudget()
    budget.restore(1.12)
    assert budget.n_tokens == pytest.approx(0.5 + 20.0 * 1.0)
    budget.restore(-3.0)
    assert budget.lead == -1.0


def test_a_probe_is_saved_up_for() -> None:
    economics = Economics(Costs(assumed(1.0, 0.5), assumed(0.5, 0.0)), 16)
    economics.renew_table(15, 0)
    assert not economics.pay_for_probe(0, 1)
    for _ in range(101):  # 0.5 % of 100 passes are half a pass
        economics.observe(0, 1, 0.0, probed=False)
    assert economics.pay_for_probe(0, 1)
    assert not economics.pay_for_probe(0, 1)


def test_unread_text_is_amortised_over_the_horizon() -> None:
    """100 tokens to read cost five passes at once; over 40 rounds they are worth it, over 4 they are not."""
    costs = Costs(assumed(1.0, 0.0), assumed(0.05, 1.0))
    asked = {"n_unread": 60, "acceptance": 0.6, "passes_per_token": 1.0, "reads": True}
    pays = {}
    for horizon in (40.0, 2.0):
        economics = Economics(costs, 16, Tuning(horizon=horizon))
        pays[horizon] = economics.model_pays(0, **asked)
    assert pays == {40.0: True, 2.0: False}


def test_a_fixed_length_asks_no_price() -> None:
    economics = Economics(None, 16, fixed=4)
    assert economics.model_pays(0, 10_000, 0.0, 9.0)
    assert economics.n_worth([0.0, 0.0], 0) == 2
    assert economics.model_price(1.0) == 0.0
