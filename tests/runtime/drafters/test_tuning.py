"""The controller's numbers: each says what it is, and can be set by name."""

from __future__ import annotations

from dataclasses import fields

import pytest

from edgellm.runtime.drafters.tuning import HALF_AND_TWICE, TUNING, Tuning, about


def test_every_number_says_its_unit_its_effect_and_where_it_comes_from() -> None:
    for item in fields(Tuning):
        assert all(item.metadata[name] for name in ("unit", "effect", "origin")), item.name
    assert len(about()) == len(fields(Tuning))
    assert set(HALF_AND_TWICE) <= {item.name for item in fields(Tuning)}


def test_numbers_are_set_by_name() -> None:
    weights = ",".join(["0.5"] * len(TUNING.model_weights))
    tuned = TUNING.with_set(["optimism=0.4", "max_model_starts=2", f"model_weights={weights}"])
    assert (tuned.optimism, tuned.max_model_starts, set(tuned.model_weights)) == (0.4, 2, {0.5})
    assert tuned.horizon == TUNING.horizon


@pytest.mark.parametrize("wrong", ["hope=1", "optimism=x", "max_model_starts=1.5", "model_weights=1,2"])
def test_what_is_no_number_of_the_controller_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        TUNING.with_set([wrong])
