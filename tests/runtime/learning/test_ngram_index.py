"""An index finds what was said before, whatever was forgotten since, in memory that is known beforehand."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.memory.drafting_budgets import STORE_BYTES, STORE_TOKENS, conversation_bytes
from edgellm.runtime.learning.lookup import Lookup
from edgellm.runtime.learning.ngram_index import GAP, MAX_MATCH, ORDERS, NgramIndex, n_bytes

texts = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=60), min_size=1, max_size=20)


def said(parts: list[list[int]], capacity: int = 256) -> NgramIndex:
    index = NgramIndex(capacity)
    for part in parts:
        index.extend([GAP, *part])
    return index


@given(texts, st.lists(st.integers(0, 5), min_size=1, max_size=40))
@settings(max_examples=200)
def test_a_place_is_where_the_tail_was_said_before(parts: list[list[int]], tail: list[int]) -> None:
    index = said(parts)
    whole = [token for part in parts for token in (GAP, *part)]
    for position, match in index.places(tail):
        assert ORDERS[0] <= match <= MAX_MATCH
        assert index.oldest <= position < index.n
        assert whole[position - match : position] == tail[-match:]
        assert whole[position] != GAP
        longer = whole[position - match - 1 : position] == tail[-match - 1 :]
        assert not longer or match in (MAX_MATCH, len(tail)) or position - match <= index.oldest


@given(texts)
@settings(max_examples=100)
def test_the_last_occurrence_of_a_context_is_found(parts: list[list[int]]) -> None:
    index = said(parts, 4096)
    last = parts[-1]
    if len(last) >= 5:
        places = index.places(last[:4])
        assert any(index.token(place.position) == last[4] for place in places) or len(places) >= 3


def test_matches_cross_the_border_of_two_rounds() -> None:
    grown, whole = NgramIndex(256), NgramIndex(256)
    text = [1, 2, 3, 4, 5, 9, 1, 2, 3, 4]
    whole.extend(text)
    for token in text:
        grown.extend([token])
    assert grown.places(text) == whole.places(text)
    assert grown.token(grown.places(text)[0].position) == 5


@given(texts)
@settings(max_examples=100)
def test_filling_at_once_is_saying_one_by_one(parts: list[list[int]]) -> None:
    slow, fast = said(parts), NgramIndex(256)
    fast.fill(slow.tokens())
    assert fast.tokens().tolist() == slow.tokens().tolist()
    for n in (1, 2, 4, 7):
        tail = parts[-1][:n]
        offset = slow.n - fast.n
        expected = {
            (place.position - offset, min(place.match, place.position - slow.oldest)) for place in slow.places(tail)
        }
        assert {tuple(place) for place in fast.places(tail)} == expected


def test_the_oldest_is_forgotten_and_never_misread() -> None:
    index = NgramIndex(256)
    rng = np.random.default_rng(0)
    whole: list[int] = []
    for _ in range(200):
        part = rng.integers(0, 4, 13).tolist()
        index.extend(part)
        whole += part
        for position, match in index.places(whole[-8:]):
            assert whole[position - match : position] == whole[-8:][-match:]
    assert index.tokens().tolist() == whole[-255:]


def test_memory_is_what_the_budget_says() -> None:
    index = NgramIndex(STORE_TOKENS)
    held = sum(sys.getsizeof(a) for a in [index._tokens, *index._heads, *index._before])
    assert held <= STORE_BYTES * 1.001
    assert n_bytes(index.capacity) == index.n_bytes <= STORE_BYTES
    for n_ctx in (100, 4096, 5000):
        assert NgramIndex(n_ctx + 1).n_bytes <= conversation_bytes(n_ctx)


def test_nothing_is_copied_across_two_texts() -> None:
    index = said([[1, 2, 3], [4, 5, 6]])
    assert index.places([2, 3]) == []
    lookup = Lookup({"store": index})
    lookup.start([1, 2])
    assert lookup.candidate().token == 3  # type: ignore[union-attr]
    lookup.take(3)
    assert lookup.candidate() is None


def test_recollection_follows_the_longest_and_most_frequent() -> None:
    index = said([[7, 1, 2, 3], [8, 1, 2, 4], [9, 1, 2, 4]])
    lookup = Lookup({"copy": index})
    lookup.start([5, 1, 2])
    assert lookup.candidate().token == 4  # type: ignore[union-attr]
    lookup.start([7, 1, 2])
    assert lookup.candidate().token == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("capacity", [1, 255, 256, 257])
def test_any_capacity_is_rounded_up_to_one_that_works(capacity: int) -> None:
    index = NgramIndex(capacity)
    index.extend(range(2000))
    assert index.capacity >= capacity
    assert index.tokens().tolist() == list(range(2000 - index.capacity + 1, 2000))
