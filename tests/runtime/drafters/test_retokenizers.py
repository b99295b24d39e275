"""The worked example of `retokenizers`: one draft, said in four ways."""

from __future__ import annotations

from fakes import byte_vocabulary

from edgellm.runtime.drafters.retokenizers import MapRetokenizer, MergingRetokenizer, TextRetokenizer
from edgellm.runtime.learning.ngrams import NgramCache

OWN = byte_vocabulary(b" the", b" c", b"at")
TARGET = byte_vocabulary(b" the", b" cat", b" cats")
THE, C, AT, S = 256, 257, 258, ord("s")
CAT, CATS = 257, 258
DRAFT = [THE, C, AT]


def cache() -> NgramCache:
    learnt = NgramCache(10**5)
    learnt.learn([C, AT], CAT, 2)
    learnt.learn([C, AT, S], CATS)
    return learnt


def test_the_text_is_tokenised_again_and_its_last_token_is_provisional() -> None:
    said = TextRetokenizer(OWN, TARGET).retokenize([], DRAFT, 0)
    assert (said.tokens, said.n_settled, said.p_final) == ([THE, CAT], 1, None)
    assert TextRetokenizer(OWN, TARGET).retokenize([], [*DRAFT, S], 0).tokens == [THE, CATS]


def test_merging_says_how_likely_the_last_token_stays() -> None:
    said = MergingRetokenizer(OWN, TARGET, cache()).retokenize([], DRAFT, 0)
    assert (said.tokens, said.n_settled, said.p_final) == ([THE, CAT], 1, 0.625)


def test_a_map_is_cut_at_what_has_no_counterpart() -> None:
    said = MapRetokenizer(OWN, TARGET, None).retokenize([], DRAFT, 0)
    assert (said.tokens, said.n_settled, said.goes_on) == ([THE], 1, False)


def test_a_map_with_a_cache_merges_and_waits_for_a_longer_entry() -> None:
    said = MapRetokenizer(OWN, TARGET, cache()).retokenize([], DRAFT, 0)
    assert (said.tokens, said.n_settled, said.n_merged) == ([THE, CAT], 1, 1)
    assert MapRetokenizer(OWN, TARGET, cache()).retokenize([], [*DRAFT, S], 0).tokens == [THE, CATS]
