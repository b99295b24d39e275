"""The plan and the ladder."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned_pair import DRAFTER, TARGET

from edgellm.memory.context import ContextSettings
from edgellm.memory.device import Device, budget_device
from edgellm.memory.plan import Limit, PairSettings, PlanError, plan
from edgellm.memory.plan_request import PlanRequest
from edgellm.memory.shape import ModelShape
from edgellm.memory.solve import describe, refusal, solve
from edgellm.memory.stored import plan_from_json
from edgellm.memory.units import MIB

SMALLER = replace(TARGET, quantisation="Q3_K_M", weight_bytes=900_000_000)


def place(n_bytes: int) -> Device:
    return replace(budget_device(n_bytes), bandwidth_bytes_s=24e9, macs_s=80e9, isa="x86")


ROOMY = solve(TARGET, DRAFTER, place(8 * 1024 * MIB)).plan


def test_a_roomy_device_gives_nothing_up() -> None:
    assert ROOMY.fits
    assert ROOMY.drafter == "drafter"
    assert (ROOMY.n_ctx, ROOMY.settings.target.kv, ROOMY.settings.target.n_ubatch) == (4096, "f16", 128)
    assert all(step.cost.startswith("none") for step in ROOMY.steps)
    assert ROOMY.settings.target.n_outputs == ROOMY.n_draft + 1


def test_the_total_is_the_sum_of_its_lines_and_each_has_a_formula() -> None:
    assert ROOMY.total_bytes == sum(line.n_bytes for line in ROOMY.lines)
    assert ROOMY.headroom_bytes == ROOMY.limit_bytes - ROOMY.total_bytes
    assert all(line.n_bytes > 0 and line.formula for line in ROOMY.lines)
    assert 0 < ROOMY.generation_bytes < ROOMY.total_bytes - TARGET.weight_bytes


@given(st.integers(1000, 1700))
def test_the_plan_fits_or_says_what_would(n_mib: int) -> None:
    solution = solve(TARGET, DRAFTER, place(n_mib * MIB), smaller=[SMALLER])
    assert solution.plan.fits or solution.nearest is None or solution.nearest.fits
    if not solution.plan.fits:
        assert "more than" in refusal(solution)


def test_drafting_is_trimmed_before_the_answer_is_touched() -> None:
    """As the budget shrinks: the drafter goes, then the cache's type, the context and last the quantisation change."""
    plans = [solve(TARGET, DRAFTER, place(n * MIB), smaller=[SMALLER]).plan for n in range(1700, 900, -10)]
    assert {plan.drafter for plan in plans} == {"drafter", None}
    for plan_ in plans:
        if plan_.drafter is not None:
            assert (plan_.settings.target.kv, plan_.n_ctx, plan_.quantisation) == ("f16", 4096, "Q4_K_M")
        if plan_.quantisation != "Q4_K_M":
            assert plan_.drafter is None
    assert [plan.fits for plan in plans] == sorted((plan.fits for plan in plans), reverse=True)


def test_a_rung_that_was_not_needed_is_given_back() -> None:
    """Dropping the drafter frees so much that the small batches before it were for nothing."""
    without = solve(TARGET, None, place(8 * 1024 * MIB)).plan
    solved = solve(TARGET, DRAFTER, place(without.total_bytes + 4 * MIB)).plan
    assert solved.drafter is None
    assert solved.settings.target.n_ubatch == 128


def test_what_was_asked_for_is_kept_and_the_nearest_plan_gives_way() -> None:
    ask = PlanRequest(n_ctx=32_768, kv="f16")
    solution = solve(TARGET, None, place(1500 * MIB), ask)
    assert (solution.plan.n_ctx, solution.plan.settings.target.kv) == (32_768, "f16")
    assert not solution.plan.fits
    assert solution.nearest is not None
    assert describe(solution.nearest) in refusal(solution)


def test_the_bound_is_where_the_draft_model_begins_to_fit() -> None:
    bound = ROOMY.bound_bytes
    assert bound is not None
    assert solve(TARGET, DRAFTER, place(bound + MIB)).plan.drafter == "drafter"
    assert solve(TARGET, DRAFTER, place(bound - 8 * MIB)).plan.drafter is None


def test_a_state_is_planned_with_the_copies_that_it_is_cut_back_to() -> None:
    recurrent = replace(TARGET, architecture="mamba", attention=(), state_elements=1_000_000)
    solved = solve(recurrent, DRAFTER, place(8 * 1024 * MIB)).plan
    assert (solved.drafter, solved.n_draft, solved.lost) == ("drafter", 4, ())
    copies = next(line for line in solved.lines if line.name == "target states")
    assert (copies.n_bytes, solved.settings.target.n_saved_states) == (5 * 4_000_000, 5)
    hybrid = replace(recurrent, architecture="qwen35")
    assert solve(hybrid, DRAFTER, place(8 * 1024 * MIB)).plan.settings.target.n_saved_states == 4
    tight = solve(recurrent, DRAFTER, place(solved.total_bytes - 10 * MIB)).plan
    assert (tight.settings.target.n_saved_states, tight.steps[-1].name) == (1, "target: 5 -> 1 saved states")


def test_weights_that_stay_mapped_beside_a_copy_count_twice() -> None:
    def weights(**settings: Any) -> int:
        pair = PairSettings(ContextSettings(512), repack=True, **settings)
        return plan(TARGET, None, pair, Limit("x", 0)).lines[0].n_bytes

    assert weights(loading="mapped") == TARGET.weight_bytes + TARGET.repacked_bytes("x86")
    assert weights(loading="copied") == TARGET.weight_bytes
    assert weights(loading="packed") <= TARGET.weight_bytes * 1.03
    tied = replace(TARGET, tied=("Q8_0", 1_000_000))
    pair = PairSettings(ContextSettings(512), loading="packed")
    assert plan(tied, None, pair, Limit("x", 0)).lines[0].n_bytes - weights(loading="packed") == 1_000_000


@pytest.mark.parametrize("drafter", [DRAFTER, None])
def test_a_plan_survives_its_json(drafter: ModelShape | None) -> None:
    solved = solve(TARGET, drafter, place(2000 * MIB)).plan
    assert plan_from_json(json.loads(json.dumps(solved.to_json()))) == solved


@pytest.mark.parametrize(
    ("key", "value"), [("version", 99), ("n_ctx", "4096"), ("n_ctx", -1), ("kv", "f64"), ("lines", None)]
)
def test_a_damaged_plan_is_refused(key: str, value: Any) -> None:
    data = {**ROOMY.to_json(), key: value}
    with pytest.raises(PlanError, match="--save"):
        plan_from_json(data)
    del data[key]
    with pytest.raises(PlanError):
        plan_from_json(data)
