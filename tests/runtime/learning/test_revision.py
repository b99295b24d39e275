"""A text that is said again with changes: its place is kept, and a change that was made is expected again."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.runtime.learning.history import GAP, History
from edgellm.runtime.learning.recall import Recall
from edgellm.runtime.learning.revision import N_CHANGES, N_LONGEST, Revision

EARLIER = [10, 11, 12, 50, 51, 13, 14, 15, 50, 51, 16, 17, 18, 50, 51, 19, 20, 21, 22]


def revision_of(earlier: list[int], n_begun: int = 4) -> Revision:
    """One whose first tokens were said again by now."""
    history = History(256)
    history.extend(earlier)
    revision = Revision(history)
    revision.position, revision.n_same = n_begun, n_begun
    return revision


def guesses(revision: Revision, later: list[int]) -> list[int | None]:
    """What was expected in the place of each token."""
    found: list[int | None] = []
    for token in later:
        step = revision.guess()
        found.append(step.token if step else None)
        revision.follow(token)
    return found


@pytest.mark.parametrize("new", [[60], [60, 61], [60, 61, 62], [60, 51]], ids=str)
def test_a_change_is_missed_once_and_expected_from_then_on(new: list[int]) -> None:
    earlier = [1, 2, 3, 4, *EARLIER]
    later = [10, 11, 12, *new, 13, 14, 15, *new, 16, 17, 18, *new, 19, 20, 21, 22]
    found = guesses(revision_of(earlier), later)
    n_first = 3 + len(new) + 1  # the change and the token behind it
    assert found[n_first:] == later[n_first:]
    assert found[:3] == later[:3]


def test_words_that_are_left_out_are_left_out_in_their_place_alone() -> None:
    earlier = [1, 2, 3, 4, 10, 50, 11, 12, 10, 50, 13, 14, 50, 15]
    later = [10, 11, 12, 10, 13, 14, 50, 15]
    found = guesses(revision_of(earlier), later)
    assert found[2:] == later[2:]
    assert found[1] == 50


def test_a_change_that_is_not_made_again_is_forgotten() -> None:
    later = [10, 11, 12, 60, 51, 13, 14, 15, 50, 51, 16, 17, 18, 50, 51, 19]
    revision = revision_of([1, 2, 3, 4, *EARLIER])
    found = guesses(revision, later)
    assert found[8] == 60
    assert found[9:] == later[9:]
    assert not revision.changes


def test_a_text_that_goes_its_own_way_is_let_go() -> None:
    revision = revision_of([1, 2, 3, 4, *EARLIER])
    guesses(revision, list(range(100, 100 + N_LONGEST + 1)))
    assert revision.guess() is None


def test_walking_ahead_teaches_nothing() -> None:
    revision = revision_of([1, 2, 3, 4, *EARLIER])
    ahead = revision.copy()
    for token in [10, 11, 12, 60, 51, 13, 14]:
        ahead.follow(token, learn=False)
    assert not revision.changes
    assert (revision.position, revision.said) == (4, [])
    assert ahead.position == 4 + 7


def test_whatever_is_said_it_stays_small_and_in_its_text() -> None:
    rng = np.random.default_rng(0)
    history = History(256)
    history.extend(rng.integers(0, 12, 200).tolist())
    revision = Revision(history)
    recall = Recall({"copy": history}, revision)
    said = history.tokens().tolist()
    for token in rng.integers(0, 12, 3000).tolist():
        recall.start(said)
        step = revision.guess()
        assert step is None or step.token != GAP
        said.append(token)
        history.extend([token])
        revision.follow(token)
        assert len(revision.changes) <= N_CHANGES
        assert len(revision.said) <= N_LONGEST
        assert revision.position is None or revision.position <= history.n


def test_recalling_goes_on_through_a_change() -> None:
    """The places where the words were said before all know the old name; what comes is the new one."""
    history = History(256)
    earlier = [1, 2, 3, 4, *EARLIER]
    history.extend(earlier)
    revision = Revision(history)
    recall = Recall({"copy": history}, revision)
    said = list(earlier)
    for token in [1, 2, 3, 4, 10, 11, 12, 60, 51, 13, 14, 15]:
        recall.start(said)
        said.append(token)
        history.extend([token])
        revision.follow(token)
    recall.start(said)
    proposed = []
    for _ in range(10):
        found = recall.guess()
        assert found is not None
        proposed.append(found.token)
        recall.take(found.token)
    assert proposed == [60, 51, 16, 17, 18, 60, 51, 19, 20, 21]
