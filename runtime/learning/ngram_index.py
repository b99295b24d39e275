"""An n-gram index over tokens that were said: chains to where the same few tokens were said before.

The index is that of LZ77 compressors (a head for each hash, and for each place the place before it with the same hash):
one step for each new token, memory that is known beforehand, and forgetting the oldest costs nothing. It serves as the
suffix structure of copy drafting (CopySpec, arXiv:2502.08923; SAM-Decoding, arXiv:2411.10666) and, through the several
places that a short context leads to, as an n-gram model with counts (ADED, arXiv:2407.12021).

`1 2 3 4 5 9 1 2 3 4`: the last four tokens were said before at 0 .. 3, and what followed begins at position 4:

>>> index = NgramIndex(256)
>>> index.extend([1, 2, 3, 4, 5, 9, 1, 2, 3, 4])
>>> index.places([1, 2, 3, 4])
[Place(position=4, match=4)]
>>> index.token(4)
5
>>> index.places([7, 3, 4])  # the chain of two tokens finds it too, with a shorter match
[Place(position=4, match=2)]
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDERS = (1, 2, 4)  # tokens of context that have a chain of places each
MAX_MATCH = 32  # tokens; longer matches count as this
MAX_PLACES = (8, 12, 12)  # looked at in the chain of each order, newest first
MIN_PLACES = 3  # found in a chain, so that those of shorter contexts are not searched
GAP = -1  # between two texts: nothing is matched or copied across it
_MULTIPLIER, _MASK = 0x9E3779B1, 0xFFFFFFFF


class Place(NamedTuple):
    """Somewhere the last `match` tokens were said before; what followed begins at `position`."""

    position: int
    match: int


def n_bytes(capacity: int) -> int:
    """Memory of an index of that many tokens, a power of two."""
    return 4 * capacity * (1 + len(ORDERS)) + 4 * len(ORDERS) * _n_heads(capacity)


def _n_heads(capacity: int) -> int:
    return max(256, capacity // 2)


class NgramIndex:
    """The newest `capacity` tokens of what was said; positions count from the first ever."""

    def __init__(self, capacity: int) -> None:
        """`capacity` is rounded up to a power of two."""
        self.capacity = 1 << max(8, (capacity - 1).bit_length())
        self._wrap = self.capacity - 1
        self._head_mask = _n_heads(self.capacity) - 1
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.n = 0  # tokens ever said
        self._tokens = array("i", [0]) * self.capacity
        self._heads = [array("i", [-1]) * (self._head_mask + 1) for _ in ORDERS]
        self._before = [array("i", [-1]) * self.capacity for _ in ORDERS]

    @property
    def n_bytes(self) -> int:
        return n_bytes(self.capacity)

    @property
    def oldest(self) -> int:
        """The first position that is still held. One place less than the capacity, so that a place has what follows."""
        return max(0, self.n - self.capacity + 1)

    def token(self, position: int) -> int:
        """The token at a position that is held; GAP behind the newest."""
        return self._tokens[position & self._wrap] if position < self.n else GAP

    def tokens(self) -> NDArray[np.int32]:
        """Everything that is held, oldest first, shape (n_held,)."""
        held = np.frombuffer(self._tokens, np.int32)
        newest: NDArray[np.int32] = held[np.arange(self.oldest, self.n) & self._wrap]
        return newest

    def extend(self, tokens: Sequence[int]) -> None:
        """More was said."""
        held, wrap = self._tokens, self._wrap
        recent = self._recent(ORDERS[-1])
        for token in tokens:
            end = self.n
            held[end & wrap] = token
            self.n = end + 1
            recent = [token, *recent[: ORDERS[-1] - 1]]
            for chain, key in enumerate(_hashes(recent)):
                key &= self._head_mask
                heads = self._heads[chain]
                self._before[chain][(end + 1) & wrap] = heads[key]
                heads[key] = end + 1

    def fill(self, tokens: NDArray[np.int32]) -> None:
        """`clear`, then `extend`, for a great many tokens at once."""
        self.clear()
        tokens = tokens[-(self.capacity - 1) :].astype(np.int64)
        self.n = len(tokens)
        np.frombuffer(self._tokens, np.int32)[: self.n] = tokens
        hashed = np.zeros(self.n, np.int64)
        usable = np.ones(self.n, bool)
        for back in range(ORDERS[-1]):
            older = np.full(self.n, GAP, np.int64)
            older[back:] = tokens[: self.n - back]
            usable &= older != GAP
            hashed = (hashed * _MULTIPLIER + older + 1) & _MASK
            if back + 1 in ORDERS:
                chain = ORDERS.index(back + 1)
                ends = np.flatnonzero(usable)
                keys = (hashed[ends] ^ (hashed[ends] >> 15)) & self._head_mask
                order = np.argsort(keys, kind="stable")
                keys, ends = keys[order], ends[order] + 1
                same = np.zeros(len(keys), bool)
                same[1:] = keys[1:] == keys[:-1]
                before = np.full(len(keys), -1)
                before[same] = ends[:-1][same[1:]]
                np.frombuffer(self._before[chain], np.int32)[ends & self._wrap] = before
                np.frombuffer(self._heads[chain], np.int32)[keys] = ends  # of equal keys the last stays

    def places(self, tail: Sequence[int], hashed: Sequence[int] | None = None) -> list[Place]:
        """Where the end of `tail` was said before and something followed, no place twice.

        `hashed`: `hashes(tail)`, where several indexes are asked.

        Chains of longer contexts are searched first; a chain that finds something ends the search unless what it found
        are few.
        """
        found: dict[int, int] = {}
        keys = [key & self._head_mask for key in (hashes(tail) if hashed is None else hashed)]
        held, wrap, oldest, n = self._tokens, self._wrap, self.oldest, self.n
        for chain in reversed(range(len(keys))):
            before, order = self._before[chain], ORDERS[chain]
            position, n_left = self._heads[chain][keys[chain]], MAX_PLACES[chain]
            while position >= oldest + order and n_left:
                n_left -= 1
                if position < n and position not in found:
                    n_most = min(MAX_MATCH, len(tail), position - oldest)
                    match = 0
                    while match < n_most and held[(position - 1 - match) & wrap] == tail[-1 - match]:
                        match += 1
                    if match >= order and held[position & wrap] != GAP:
                        found[position] = match
                older = before[position & wrap]
                if older >= position:  # the slot was used again
                    break
                position = older
            if len(found) >= MIN_PLACES:
                break
        return [Place(position, match) for position, match in found.items()]

    def _recent(self, n: int) -> list[int]:
        """The last n tokens, newest first."""
        held, wrap = self._tokens, self._wrap
        return [held[i & wrap] for i in range(self.n - 1, max(self.oldest, self.n - n) - 1, -1)]


def hashes(tail: Sequence[int]) -> list[int]:
    """Of the context of each order at the end of `tail`, as far as it reaches."""
    return _hashes(tail[: -ORDERS[-1] - 1 : -1])


def _hashes(newest_first: Sequence[int]) -> list[int]:
    found, hashed = [], 0
    for length, token in enumerate(newest_first, 1):
        if token == GAP:
            break
        hashed = (hashed * _MULTIPLIER + token + 1) & _MASK
        if length in ORDERS:
            found.append(hashed ^ (hashed >> 15))
    return found
