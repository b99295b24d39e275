"""A text that is repeated with edits: its place is kept, and an edit that was made is expected again."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.runtime.learning.edit_alignment import MAX_EDIT_TOKENS, MAX_EDITS, EditAlignment
from edgellm.runtime.learning.lookup import Lookup
from edgellm.runtime.learning.ngram_index import GAP, NgramIndex

EARLIER = [10, 11, 12, 50, 51, 13, 14, 15, 50, 51, 16, 17, 18, 50, 51, 19, 20, 21, 22]


def alignment_of(earlier: list[int], n_begun: int = 4) -> EditAlignment:
    """One whose first tokens were said again by now."""
    index = NgramIndex(256)
    index.extend(earlier)
    alignment = EditAlignment(index)
    alignment.position, alignment.n_same = n_begun, n_begun
    return alignment


def guesses(alignment: EditAlignment, later: list[int]) -> list[int | None]:
    """What was expected in the place of each token."""
    found: list[int | None] = []
    for token in later:
        step = alignment.expected()
        found.append(step.token if step else None)
        alignment.follow(token)
    return found


@pytest.mark.parametrize("new", [[60], [60, 61], [60, 61, 62], [60, 51]], ids=str)
def test_a_change_is_missed_once_and_expected_from_then_on(new: list[int]) -> None:
    earlier = [1, 2, 3, 4, *EARLIER]
    later = [10, 11, 12, *new, 13, 14, 15, *new, 16, 17, 18, *new, 19, 20, 21, 22]
    found = guesses(alignment_of(earlier), later)
    n_first = 3 + len(new) + 1  # the edit and the token behind it
    assert found[n_first:] == later[n_first:]
    assert found[:3] == later[:3]


def test_words_that_are_left_out_are_left_out_in_their_place_alone() -> None:
    earlier = [1, 2, 3, 4, 10, 50, 11, 12, 10, 50, 13, 14, 50, 15]
    later = [10, 11, 12, 10, 13, 14, 50, 15]
    found = guesses(alignment_of(earlier), later)
    assert found[2:] == later[2:]
    assert found[1] == 50


def test_a_change_that_is_not_made_again_is_forgotten() -> None:
    later = [10, 11, 12, 60, 51, 13, 14, 15, 50, 51, 16, 17, 18, 50, 51, 19]
    alignment = alignment_of([1, 2, 3, 4, *EARLIER])
    found = guesses(alignment, later)
    assert found[8] == 60
    assert found[9:] == later[9:]
    assert not alignment.edits


def test_a_text_that_goes_its_own_way_is_let_go() -> None:
    alignment = alignment_of([1, 2, 3, 4, *EARLIER])
    guesses(alignment, list(range(100, 100 + MAX_EDIT_TOKENS + 1)))
    assert alignment.expected() is None


def test_walking_ahead_teaches_nothing() -> None:
    alignment = alignment_of([1, 2, 3, 4, *EARLIER])
    ahead = alignment.copy()
    for token in [10, 11, 12, 60, 51, 13, 14]:
        ahead.follow(token, learn=False)
    assert not alignment.edits
    assert (alignment.position, alignment.said) == (4, [])
    assert ahead.position == 4 + 7


def test_whatever_is_said_it_stays_small_and_in_its_text() -> None:
    rng = np.random.default_rng(0)
    index = NgramIndex(256)
    index.extend(rng.integers(0, 12, 200).tolist())
    alignment = EditAlignment(index)
    lookup = Lookup({"copy": index}, alignment)
    said = index.tokens().tolist()
    for token in rng.integers(0, 12, 3000).tolist():
        lookup.start(said)
        step = alignment.expected()
        assert step is None or step.token != GAP
        said.append(token)
        index.extend([token])
        alignment.follow(token)
        assert len(alignment.edits) <= MAX_EDITS
        assert len(alignment.said) <= MAX_EDIT_TOKENS
        assert alignment.position is None or alignment.position <= index.n


def test_recalling_goes_on_through_a_change() -> None:
    """The places where the words were said before all know the old name; what comes is the new one."""
    index = NgramIndex(256)
    earlier = [1, 2, 3, 4, *EARLIER]
    index.extend(earlier)
    alignment = EditAlignment(index)
    lookup = Lookup({"copy": index}, alignment)
    said = list(earlier)
    for token in [1, 2, 3, 4, 10, 11, 12, 60, 51, 13, 14, 15]:
        lookup.start(said)
        said.append(token)
        index.extend([token])
        alignment.follow(token)
    lookup.start(said)
    proposed = []
    for _ in range(10):
        found = lookup.candidate()
        assert found is not None
        proposed.append(found.token)
        lookup.take(found.token)
    assert proposed == [60, 51, 16, 17, 18, 60, 51, 19, 20, 21]
