"""Layers on workers: as many as do not fit here, on as few machines as hold them, the nearest first."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from test_solve import DRAFTER, TARGET, place

from edgellm.memory.device import Device
from edgellm.memory.placement import DeviceLimit, Remote
from edgellm.memory.plan_request import PlanRequest
from edgellm.memory.solve import refusal, solve
from edgellm.memory.stored import plan_from_json
from edgellm.memory.units import MIB

GIB = 1024 * MIB


def worker(name: str, n_bytes: int, round_trip_s: float = 0.001, link_bytes_s: float = 100e6) -> DeviceLimit:
    return DeviceLimit(name, "a board", n_bytes, False, Remote(round_trip_s, link_bytes_s, 24e9, 80e9, True))


def here(n_bytes: int, *workers: DeviceLimit) -> tuple[Device, PlanRequest]:
    asked = PlanRequest(keep_drafter=True, loading="packed", workers=tuple(each.name for each in workers))
    return replace(place(n_bytes), accelerators=workers), asked


def test_where_all_fits_here_nothing_is_lent() -> None:
    plan = solve(TARGET, DRAFTER, *here(8 * GIB, worker("a:1", 4 * GIB))).plan
    assert plan.fits
    assert plan.settings.target.placed == ()
    assert plan.devices == ()


def test_what_does_not_fit_here_is_lent_and_no_layer_more() -> None:
    device, asked = here(900 * MIB, worker("a:1", 4 * GIB))
    plan = solve(TARGET, DRAFTER, device, asked).plan
    assert plan.fits
    assert plan.drafter == "drafter"
    ((name, n),) = plan.settings.target.placed
    assert name == "a:1"
    assert all(step.cost.startswith("none") for step in plan.steps)
    fewer = solve(TARGET, DRAFTER, device, replace(asked, n_gpu_layers=n - 1)).plan
    assert not all(step.cost.startswith("none") for step in fewer.steps)
    assert plan.settings.target.head_stays
    assert plan.settings.drafter is not None
    assert plan.settings.drafter.placed == ()


def test_the_nearest_are_filled_first_and_the_others_are_left_alone() -> None:
    near, middle, far = worker("near:1", 300 * MIB, 0.001), worker("mid:1", 4 * GIB, 0.01), worker("far:1", GIB, 0.1)
    plan = solve(TARGET, DRAFTER, *here(900 * MIB, far, middle, near)).plan
    assert plan.fits
    assert [name for name, _ in plan.settings.target.placed] == ["near:1", "mid:1"]
    for each in plan.devices:
        assert 0 < plan.device_bytes(each.name) <= each.usable_bytes


def test_what_is_lent_and_what_stays_is_the_model() -> None:
    device, asked = here(8 * GIB, worker("a:1", 600 * MIB), worker("b:1", 600 * MIB, 0.002))
    whole = solve(TARGET, None, place(8 * GIB), replace(asked, workers=())).plan
    lent = solve(TARGET, None, device, replace(asked, n_gpu_layers=20)).plan

    def of(part: str, plan: object) -> int:
        return sum(line.n_bytes for line in plan.lines if line.name.startswith(part))  # type: ignore[attr-defined]

    assert sum(n for _, n in lent.settings.target.placed) == 20
    assert of("target cache", lent) == pytest.approx(of("target cache", whole), rel=1e-6)
    assert of("target weights", lent) == pytest.approx(of("target weights", whole), rel=0.01)


def test_workers_that_hold_too_little_leave_the_rest_to_trimming_or_a_refusal() -> None:
    device, asked = here(300 * MIB, worker("a:1", 200 * MIB))
    solution = solve(TARGET, DRAFTER, device, asked)
    assert not solution.plan.fits
    assert "more than" in refusal(solution)


def test_more_layers_than_workers_hold_are_refused_and_not_left_here_in_silence() -> None:
    device, asked = here(8 * GIB, worker("a:1", 100 * MIB), worker("b:1", 100 * MIB, 0.1))
    solution = solve(TARGET, DRAFTER, device, replace(asked, n_gpu_layers=20))
    assert sum(n for _, n in solution.plan.settings.target.placed) == 20
    assert not solution.plan.fits
    assert "choose fewer --gpu-layers" in refusal(solution)


def test_a_draft_hides_the_way_to_the_workers() -> None:
    gains = []
    for round_trip_s in (0.0, 0.002, 0.02, 0.1):
        device, asked = here(900 * MIB, worker("a:1", 4 * GIB, round_trip_s))
        speed = solve(TARGET, DRAFTER, device, asked).plan.tokens_per_s
        assert speed is not None
        gains.append(speed.value / speed.plain)
    assert all(later > earlier for earlier, later in pairwise(gains))


def test_a_plan_with_workers_is_read_back_as_it_was() -> None:
    plan = solve(TARGET, DRAFTER, *here(900 * MIB, worker("a:1", 4 * GIB))).plan
    again = plan_from_json(json.loads(json.dumps(plan.to_json())))
    assert again.settings == plan.settings
    assert [device.name for device in again.devices] == ["a:1"]
