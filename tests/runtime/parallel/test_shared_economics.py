"""What a conversation's drafts cost in passes that it shares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgellm.runtime.learning.costs import CostCurve
from edgellm.runtime.parallel.economics import SharedCurve, SharedDraftCurve
from edgellm.runtime.parallel.passes import Shape

WIDTHS = (1, 2, 4, 8, 9, 16, 32)
CURVE = CostCurve(WIDTHS, (0,), [[0.050, 0.052, 0.056, 0.064, 0.090, 0.110, 0.170]], fixed=True)


def queue(*shapes: Shape) -> Any:
    return SimpleNamespace(lately=shapes)


def test_alone_it_is_the_curve() -> None:
    assert SharedCurve(CURVE, queue()).table(8, 0) == pytest.approx(CURVE.table(8, 0))
    assert SharedCurve(CURVE, queue(Shape(1, 0, 0.0))).table(8, 0) == pytest.approx(CURVE.table(8, 0))


def test_of_four_each_pays_a_quarter_of_a_pass_in_which_all_draft_as_much() -> None:
    values = CURVE.table(16, 0)
    found = SharedCurve(CURVE, queue(Shape(4, 0, 0.0))).table(4, 0)
    assert found == pytest.approx([values[4 * n - 1] / 4 for n in range(1, 5)])


def test_a_slice_of_who_reads_is_there_whether_one_drafts_or_not() -> None:
    values = CURVE.table(12, 0)
    assert SharedCurve(CURVE, queue(Shape(2, 8, 0.0))).table(2, 0) == pytest.approx([values[9] / 2, values[11] / 2])


def test_it_is_the_mean_of_the_last_passes() -> None:
    alone, both = (SharedCurve(CURVE, queue(one)).table(3, 0) for one in (Shape(1, 0, 0.0), Shape(2, 0, 0.0)))
    mixed = SharedCurve(CURVE, queue(Shape(1, 0, 0.0), Shape(2, 0, 0.0))).table(3, 0)
    assert mixed == pytest.approx([(a + b) / 2 for a, b in zip(alone, both, strict=True)])


def test_who_drafts_by_himself_has_all_wait_for_the_pass_and_for_what_leads_to_it() -> None:
    draft = CostCurve((1, 2, 4), (0,), [[0.008, 0.009, 0.011]], fixed=True)
    assert SharedDraftCurve(draft, queue(Shape(1, 0, 0.002)))(1) == pytest.approx(0.010)
    assert SharedDraftCurve(draft, queue(Shape(4, 0, 0.002)))(1) == pytest.approx(0.013 / 4)
    assert SharedDraftCurve(draft, queue())(1) == pytest.approx(0.008)
