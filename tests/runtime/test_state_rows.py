"""The engine's form of a state: taken apart and put together without a byte's difference, anything else refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.backends.state_rows import StateLayout, UnknownState, split

LAYOUT = StateLayout(((1, 6), (8, 34)), ((1, 4), (8, 34)))


def state(n: int, first: int = 0) -> np.ndarray:
    rows = np.random.default_rng(n).integers(0, 256, (n, LAYOUT.row_bytes), np.uint8)
    return LAYOUT.join(rows, first, 3)


@given(st.integers(1, 9), st.integers(0, 1000))
def test_what_is_put_together_is_taken_apart_again(n: int, first: int) -> None:
    layout, positions, rows = split(state(n, first))
    assert layout == LAYOUT
    assert positions == list(range(first, first + n))
    assert np.array_equal(layout.join(rows, first, 3), state(n, first))


@given(st.data())
def test_what_is_cut_short_or_longer_is_refused(data: st.DataObject) -> None:
    whole = state(4)
    n = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(UnknownState):
        split(whole[:n])
    with pytest.raises(UnknownState):
        split(np.concatenate([whole, whole[: n + 1]]))


@given(st.data())
def test_a_damaged_state_is_refused_or_has_the_size_of_its_bytes(data: st.DataObject) -> None:
    damaged = state(3).copy()
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        _, positions, rows = split(damaged)
    except UnknownState:
        return
    assert rows.size <= len(damaged)
    assert len(positions) == len(rows)
