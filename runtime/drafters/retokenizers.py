"""Retokenising: ways to say in the target's vocabulary what was drafted in another; `bench --ablate` compares them.

The drafter wrote ` the` ` c` `at`. The target's vocabulary has ` the`, ` cat` and ` cats`, and the cache saw it say
` cat` twice and ` cats` once where the drafter wrote ` c` `at` and ` c` `at` `s`:

    retokenizer    tokens           n_settled  why
    text           ` the` ` cat`    1          the text tokenised again; what is drafted next may make it ` cats`
    merging        ` the` ` cat`    1          likewise; p_final = (2 + 0.5) / (3 + 1) = 0.625 says that it stays ` cat`
    map            ` the`           1          ` c` has no counterpart of the same bytes: the draft is cut there
    map, cache     ` the` ` cat`    1          merged by an entry, of which a longer one is known
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from edgellm.runtime.learning.ngrams import NgramCache
from edgellm.runtime.text.translate import continuation
from edgellm.runtime.text.vocabulary import CannotEncode, Vocabulary


class Retokenized(NamedTuple):
    """Target tokens for a draft; what is drafted next may change all but the first `n_settled`."""

    tokens: list[int]
    n_settled: int
    goes_on: bool = True  # more drafted tokens can add to it
    n_merged: int = 0  # of the tokens, how many came from the cache
    p_final: float | None = None  # P(the last token stays) where it is not settled; None: nothing is known


class Retokenizer(Protocol):
    """Draft tokens -> target tokens."""

    def retokenize(self, tail: Sequence[int], drafted: Sequence[int], n_skip: int) -> Retokenized:
        """The target's tokens behind its `tail` for what was drafted, less its first `n_skip` bytes."""
        ...


class TextRetokenizer:
    """Tokenise the drafted text again in its context (Timor et al. 2025, arXiv:2502.05202, SLEM)."""

    def __init__(self, own: Vocabulary, target: Vocabulary) -> None:
        self._own, self._target = own, target

    def retokenize(self, tail: Sequence[int], drafted: Sequence[int], n_skip: int) -> Retokenized:
        try:
            tokens = continuation(self._target, tail, self._own.decode(drafted)[n_skip:])
        except CannotEncode:
            return Retokenized([], 0, False)
        return Retokenized(tokens, max(0, len(tokens) - 1))


class MapRetokenizer:
    """Token by token, by equal bytes; with a cache also several draft tokens as one of the target's (OmniDraft).

    Drafted freely, then merged by the longest entry, then cut at the first token that has no counterpart.
    """

    def __init__(self, own: Vocabulary, target: Vocabulary, cache: NgramCache | None) -> None:
        self._own, self._cache = own, cache
        self.direct = direct_map(own, target)

    def retokenize(self, tail: Sequence[int], drafted: Sequence[int], n_skip: int) -> Retokenized:
        start = 0
        while n_skip > 0 and start < len(drafted):
            n_skip -= len(self._own.piece(drafted[start]))
            start += 1
        if n_skip:
            return Retokenized([], 0, n_skip > 0)
        tokens: list[int] = []
        n_settled, n_merged, cache = 0, 0, self._cache
        while start < len(drafted):
            found = cache.match(drafted, start) if cache is not None else None
            if found is None:
                direct = self.direct[drafted[start]]
                if direct < 0:
                    may_follow = cache is not None and cache.may_go_on(drafted, start)
                    return Retokenized(tokens, n_settled, may_follow, n_merged)
                found = (1, direct)
            n_merged += found[0] > 1
            may_follow = cache is not None and cache.may_go_on(drafted, start)
            start += found[0]
            tokens.append(found[1])
            if not may_follow and n_settled == len(tokens) - 1:
                n_settled += 1
        return Retokenized(tokens, n_settled, True, n_merged)


class MergingRetokenizer:
    """Tokenise the drafted text again, and let the cache say how likely its end is the end of a token.

    What OmniDraft merges, tokenising in context merges too, seen or unseen; what that cannot know is whether a word
    that the draft ends with goes on. The cache has counted that.
    """

    def __init__(self, own: Vocabulary, target: Vocabulary, cache: NgramCache) -> None:
        self._text, self._own, self._target, self._cache = TextRetokenizer(own, target), own, target, cache

    def retokenize(self, tail: Sequence[int], drafted: Sequence[int], n_skip: int) -> Retokenized:
        retokenized = self._text.retokenize(tail, drafted, n_skip)
        if not retokenized.tokens:
            return retokenized
        n_left, at = len(self._target.piece(retokenized.tokens[-1])), len(drafted)
        while n_left > 0 and at:
            at -= 1
            n_left -= len(self._own.piece(drafted[at]))
        return retokenized._replace(p_final=None if n_left else self._cache.p_final(drafted[at:]))


def direct_map(own: Vocabulary, target: Vocabulary) -> list[int]:
    """Draft id -> the target's id of the same bytes, -1 where there is none."""
    theirs = target.text_tokens()
    control = own.control
    return [
        theirs.get(piece, -1) if token not in control and (piece := own.piece(token)) else -1
        for token in range(own.n_tokens)
    ]


def learn_mappings(
    cache: NgramCache, own: Vocabulary, target: Vocabulary, own_tokens: Sequence[int], tokens: Sequence[int], n_new: int
) -> None:
    """Let the cache learn which draft tokens the last `n_new` target tokens are, by bytes.

    Both sequences end at the same byte of a text.

    Spans whose borders are not borders of draft tokens teach nothing.
    """
    borders, n_bytes = {0: len(own_tokens)}, 0
    for i in range(len(own_tokens) - 1, -1, -1):
        n_bytes += len(own.piece(own_tokens[i]))
        borders[n_bytes] = i
    end = 0
    for token in reversed(tokens[len(tokens) - n_new :]):
        size = len(target.piece(token))
        if not size:
            return
        first, last = borders.get(end + size), borders.get(end)
        if first is not None and last is not None:
            cache.learn(own_tokens[first:last], token)
        end += size
