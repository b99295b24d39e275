"""OmniDraft's cache: longest match, least used out first, inside its bytes, back from disk as it was."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from fakes import byte_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.runtime.drafters.retokenizers import MapRetokenizer, learn_mappings
from edgellm.runtime.learning.ngrams import NgramCache, entries_of

entries = st.lists(
    st.tuples(st.lists(st.integers(0, 9), min_size=2, max_size=6).map(tuple), st.integers(0, 99)), max_size=60
)


@given(entries, st.lists(st.integers(0, 9), max_size=12))
@settings(max_examples=200)
def test_the_longest_entry_wins(known: list[tuple[tuple[int, ...], int]], draft: list[int]) -> None:
    cache, table = NgramCache(10**6), {}
    for key, target in known:
        cache.learn(key, target)
        table[key] = target
    assert cache.n_entries == len(table)
    for start in range(len(draft)):
        fits = [key for key in table if tuple(draft[start : start + len(key)]) == key]
        longest = max(fits, key=len, default=None)
        assert cache.match(draft, start) == ((len(longest), table[longest]) if longest else None)
        rest = tuple(draft[start:])
        assert cache.may_go_on(draft, start) == any(len(key) > len(rest) and key[: len(rest)] == rest for key in table)


def test_the_least_used_go_first_and_the_bytes_hold() -> None:
    cache = NgramCache(60_000)
    rng = np.random.default_rng(1)
    often = [(1, 2, i) for i in range(20)]
    for _ in range(400):
        for key in often:
            cache.learn(key, 7)
        cache.learn(rng.integers(0, 1000, 3).tolist(), 8)
        assert cache.n_bytes <= cache.budget_bytes
    assert all(cache.match(key, 0) == (3, 7) for key in often)


def test_a_seeded_cache_keeps_room_and_loses_what_is_never_used_first() -> None:
    cache = NgramCache(60_000)
    cache.seed(((i, i + 1), i) for i in range(10_000))
    assert cache.match((0, 1), 0) == (2, 0)
    assert cache.budget_bytes // 2 < cache.n_bytes < cache.budget_bytes * 0.6
    for i in range(60):
        cache.learn((5000 + i, 3), 9, count=2)
    assert cache.n_bytes <= cache.budget_bytes
    assert all(cache.match((5000 + i, 3), 0) == (2, 9) for i in range(60))


def test_bytes_are_at_least_what_python_takes() -> None:
    rng = np.random.default_rng(2)
    keys = [tuple(int(t) for t in rng.integers(0, 49_000, rng.integers(2, 5))) for _ in range(6000)]
    tracemalloc.start()
    cache = NgramCache(10**7)
    for key in keys:
        cache.learn(key, 100_000)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used <= cache.n_bytes


@given(entries)
@settings(max_examples=60)
def test_it_comes_back_as_it_was(known: list[tuple[tuple[int, ...], int]]) -> None:
    cache = NgramCache(10**6)
    for key, target in known:
        cache.learn(key, target)
    again = NgramCache(10**6)
    again.merge(entries_of(cache.to_bytes(), 10, 100))
    assert sorted(again.entries()) == sorted(cache.entries())


@pytest.mark.parametrize("data", [b"\1", b"\0\0\0\0" * 2, np.array([5, 1, 2, 3, 99], "<i4").tobytes(),
                                  np.array([500, 1, 2, 3, 4], "<i4").tobytes(),
                                  np.array([5, 0, 2, 3, 4], "<i4").tobytes(),
                                  np.array([5, 1, 10**9, 3, 4], "<i4").tobytes()])  # fmt: skip
def test_what_no_vocabulary_has_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"ent|whole"):
        entries_of(data, 10, 100)


def test_spellings_are_learnt_by_byte_borders_alone() -> None:
    own = byte_vocabulary(b"fl", b"a", b"ke", b" wh", b"ite")
    target = byte_vocabulary(b"flake", b" white", b"ew")
    cache = NgramCache(10**5)
    fl, ke, wh, ite = 256, 258, 259, 260
    learn_mappings(cache, own, target, [fl, ord("a"), ke, wh, ite], [256, 257], 2)
    assert cache.match([fl, ord("a"), ke], 0) == (3, 256)
    assert cache.match([wh, ite], 0) == (2, 257)
    learn_mappings(cache, own, target, [fl, ord("a"), ke, ord("w")], [258], 1)  # its border is inside a draft token
    assert cache.n_entries == 2


def test_drafted_freely_merged_then_cut_at_what_has_no_counterpart() -> None:
    own = byte_vocabulary(b"fl", b"a", b"ke", b"zz")
    target = byte_vocabulary(b"flake")
    cache = NgramCache(10**5)
    retokenizer = MapRetokenizer(own, target, cache)
    fl, ke, zz = 256, 258, 259
    assert retokenizer.retokenize([], [fl, ord("a"), ke], 0)[:4] == ([], 0, False, 0)  # "fl" is no token of the target
    cache.learn([fl, ord("a"), ke], 256)
    assert retokenizer.retokenize([], [fl], 0)[:4] == ([], 0, True, 0)  # the beginning of an entry: the draft goes on
    assert retokenizer.retokenize([], [fl, ord("a"), ke, ord("x")], 0)[:4] == ([256, ord("x")], 2, True, 1)
    assert retokenizer.retokenize([], [ord("x"), zz, ord("y")], 0)[:4] == ([ord("x")], 1, False, 0)
