"""Cost curves: measured once, drawn between the points, corrected by what passes really take."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import TableBackend, random_table
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.learning.costs import CONTEXTS, DRAFT_WIDTHS, WIDTHS, CostCurve, assumed, measure

STEP = [0.010, 0.011, 0.030, 0.032]


def curve(**changes: Any) -> CostCurve:
    rows = [STEP, [2 * s for s in STEP]]
    return CostCurve(**{"widths": (1, 2, 4, 8), "contexts": (0, 1000), "seconds": rows} | changes)


def test_between_points_lines_are_drawn() -> None:
    assert curve()(2) == pytest.approx(0.011)
    assert curve()(3) == pytest.approx(0.0205)
    assert curve()(2, 500) == pytest.approx(0.0165)
    assert curve()(2, 2000) == pytest.approx(0.033)
    assert curve()(10) == pytest.approx(0.033)


@given(st.lists(st.floats(0.001, 0.1), min_size=4, max_size=4))
def test_a_table_never_falls(seconds: list[float]) -> None:
    values = curve(contexts=(0,), seconds=[seconds]).table(8, 0)
    assert len(values) == 8
    assert values == sorted(values)
    assert values[-1] == pytest.approx(seconds[-1])


def test_passes_that_take_longer_move_their_width_and_not_the_others() -> None:
    moved = curve()
    for _ in range(400):
        for n, seconds in zip((1, 2, 4, 8), STEP, strict=True):
            moved.observe(n, 0, seconds * (1.6 if n == 8 else 1.0))
    assert moved(8) / moved(1) == pytest.approx(1.6 * STEP[3] / STEP[0], rel=0.1)
    assert moved(2) / moved(1) == pytest.approx(STEP[1] / STEP[0], rel=0.1)
    assert moved.has_drifted


def test_widths_that_were_never_run_follow_the_next_narrower_one() -> None:
    moved = curve()
    for _ in range(400):
        moved.observe(1, 0, STEP[0])
        moved.observe(4, 0, STEP[2] / 2)  # it was measured while the machine was busy, as the wider one was
    assert moved(8) / moved(1) == pytest.approx(STEP[3] / 2 / STEP[0], rel=0.1)
    assert moved(2) / moved(1) == pytest.approx(STEP[1] / STEP[0], rel=0.1)
    kept = CostCurve.from_json(moved.to_json())
    assert kept(8) / kept(1) == pytest.approx(moved(8) / moved(1), rel=1e-6)
    before = moved(8)
    moved.observe(8, 0, before)  # the first pass of a width begins where the estimate was
    assert moved(8) == pytest.approx(before, rel=0.05)


def test_a_machine_that_is_slower_as_a_whole_changes_no_ratio() -> None:
    moved = curve()
    for _ in range(400):
        for n, seconds in zip((1, 2, 4, 8), STEP, strict=True):
            moved.observe(n, 0, seconds * 1.8)
    assert moved(1) == pytest.approx(1.8 * STEP[0], rel=0.05)
    assert moved(8) / moved(1) == pytest.approx(STEP[3] / STEP[0], rel=0.05)
    assert not moved.has_drifted


def test_one_interrupted_pass_hardly_counts() -> None:
    moved = curve()
    moved.observe(2, 0, 30.0)
    assert moved(2) < 1.1 * STEP[1]


def test_an_assumed_curve_stays_what_was_assumed() -> None:
    flat = assumed(0.04, 0.05)
    flat.observe(4, 0, 9.0)
    assert flat(1) == pytest.approx(0.04)
    assert flat(5) == pytest.approx(0.04 * 1.2)
    assert not flat.has_drifted


def test_a_curve_comes_back_as_it_was() -> None:
    moved = curve()
    for _ in range(100):
        moved.observe(4, 0, 0.05)
        moved.observe(1, 0, 0.01)
    again = CostCurve.from_json(json.loads(json.dumps(moved.to_json())))
    assert again(4) / again(1) == pytest.approx(moved(4) / moved(1))


@pytest.mark.parametrize(
    "change",
    [
        {"widths": [1, 2, 4]},
        {"widths": [2, 3, 4, 8]},
        {"widths": [1, 4, 2, 8]},
        {"contexts": [0]},
        {"contexts": [9, 9]},
        {"seconds": [STEP, [0.0, 1.0, 1.0, 1.0]]},
        {"seconds": [STEP, [float("nan"), 1.0, 1.0, 1.0]]},
        {"seconds": "x"},
        {"widths": None},
    ],
)
def test_what_is_no_curve_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        CostCurve.from_json(curve().to_json() | change)


def test_measuring_takes_every_width_and_leaves_nothing_behind() -> None:
    backend = TableBackend(random_table(5), n_ctx=1024, max_outputs=9)
    found = measure(backend)
    assert found.widths == tuple(n for n in WIDTHS if n <= 9)
    assert found.contexts == CONTEXTS
    assert backend.tokens == []
    small = measure(TableBackend(random_table(5), n_ctx=128, max_outputs=1), DRAFT_WIDTHS)
    assert small.widths == DRAFT_WIDTHS
    assert small.contexts == (CONTEXTS[0],)


def test_a_busy_machine_is_measured_at_fewer_widths_and_not_for_longer() -> None:
    found = measure(TableBackend(random_table(5), n_ctx=1024, max_outputs=16), budget_s=0.0)
    assert found.widths == (1, 16)
    assert found.contexts == (CONTEXTS[0],)
    assert found(8) > 0.0
