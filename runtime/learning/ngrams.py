"""OmniDraft's cache: a mapping of a drafter's tokens to those that a target uses (arXiv:2507.02659, section 3.1).

An entry says that the draft tokens (d_1 .. d_n) are the one target token t. Entries come from what the target has said,
never from guesses. The paper leaves open what happens to overlaps: here the longest entry wins. Entries of n = 1, which
the paper does not need, are counted too: a token that is the whole of one target token here and the beginning of a
longer one there says how likely a draft that ends with it ends a word.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

NODE_BYTES = 260  # of a trie node, entries and Python's own included; tests compare it with what is used
MAX_LENGTH = 12  # draft tokens of an entry
_TOKEN_BITS = 21
MAX_TOKEN = 1 << _TOKEN_BITS
MAX_COUNT = 2**30


class Entry(NamedTuple):
    """Draft tokens, what they are to the target, and how often that was seen."""

    draft: tuple[int, ...]
    target: int
    n_seen: int


class NgramCache:
    """A trie over draft tokens, bounded in bytes: the least used entries go (the paper's LFU)."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.n_learnt = 0  # times that something was learnt
        self._clear()

    def _clear(self) -> None:
        self._children: dict[int, int] = {}  # node << _TOKEN_BITS | token -> node
        self._target: array[int] = array("i", [-1])
        self._count: array[int] = array("i", [0])
        self._n_through: array[int] = array("i", [0])  # times that an entry at or below the node was seen
        self.n_entries = 0  # of two draft tokens and more

    @property
    def n_bytes(self) -> int:
        return NODE_BYTES * len(self._target)

    def learn(self, draft: Sequence[int], target: int, count: int = 1) -> None:
        """These draft tokens were `target`, so many times."""
        if not 1 <= len(draft) <= MAX_LENGTH or min(draft) < 0 or max(draft) >= MAX_TOKEN or target < 0:
            return
        if NODE_BYTES * (len(self._target) + len(draft)) > self.budget_bytes:
            self._evict()
        self.n_learnt += 1
        node = 0
        for token in draft:
            key = node << _TOKEN_BITS | token
            child = self._children.get(key)
            if child is None:
                child = len(self._target)
                self._children[key] = child
                self._target.append(-1)
                self._count.append(0)
                self._n_through.append(0)
            node = child
            self._n_through[node] = min(self._n_through[node] + count, MAX_COUNT)
        self.n_entries += self._target[node] < 0 and len(draft) > 1
        self._target[node] = target
        self._count[node] = min(self._count[node] + count, MAX_COUNT)

    def match(self, draft: Sequence[int], start: int) -> tuple[int, int] | None:
        """The longest entry that `draft[start:]` begins with: (its draft tokens, the target token)."""
        node, found = 0, None
        for i in range(start, len(draft)):
            child = self._children.get(node << _TOKEN_BITS | draft[i])
            if child is None:
                break
            node = child
            if self._target[node] >= 0 and i > start:
                found = (i + 1 - start, self._target[node])
        return found

    def may_go_on(self, draft: Sequence[int], start: int) -> bool:
        """Whether `draft[start:]` is the beginning of a longer entry."""
        node = 0
        for i in range(start, len(draft)):
            child = self._children.get(node << _TOKEN_BITS | draft[i])
            if child is None:
                return False
            node = child
        return self._n_through[node] > self._count[node]

    def p_final(self, draft: Sequence[int]) -> float | None:
        """P(a target token that begins with these draft tokens ends with them); None where nothing is known."""
        node = 0
        for token in draft:
            child = self._children.get(node << _TOKEN_BITS | token)
            if child is None:
                return None
            node = child
        return (self._count[node] + 0.5) / (self._n_through[node] + 1.0)

    def entries(self) -> list[Entry]:
        """All entries, in no order."""
        parents = {child: key for key, child in self._children.items()}
        entries = []
        for node, target in enumerate(self._target):
            if target >= 0:
                draft, at = [], node
                while at:
                    draft.append(parents[at] & (MAX_TOKEN - 1))
                    at = parents[at] >> _TOKEN_BITS
                entries.append(Entry(tuple(reversed(draft)), target, self._count[node]))
        return entries

    def seed(self, mappings: Iterable[tuple[tuple[int, ...], int]]) -> None:
        """Begin with what two vocabularies say of each other, as far as half of the budget goes, counted once each.

        What is used will count for more, and be kept when entries have to go.
        """
        for draft, target in mappings:
            if self.n_bytes > self.budget_bytes // 2:
                break
            self.learn(draft, target)

    def merge(self, entries: Sequence[Entry]) -> None:
        """Take over another cache's entries; of two counts the larger holds."""
        known = {entry.draft: entry for entry in self.entries()}
        for entry in entries:
            mine = known.get(entry.draft)
            if mine is None or mine.n_seen < entry.n_seen:
                known[entry.draft] = entry
        self._clear()
        n_nodes = self.budget_bytes // NODE_BYTES
        for entry in sorted(known.values(), key=lambda entry: -entry.n_seen):
            if len(self._target) + len(entry.draft) > n_nodes:
                break
            self.learn(*entry)

    def _evict(self) -> None:
        """Keep the more used half of the entries."""
        kept = sorted(self.entries(), key=lambda entry: -entry.n_seen)
        self._clear()
        for entry in kept[: len(kept) // 2]:
            self.learn(*entry)

    def to_bytes(self) -> bytes:
        """Entries as int32: target, count, n, and the n draft tokens."""
        numbers: list[int] = []
        for draft, target, count in self.entries():
            numbers += [target, count, len(draft), *draft]
        return np.array(numbers, "<i4").tobytes()


def entries_of(data: bytes, n_draft: int, n_target: int) -> list[Entry]:
    """What `to_bytes` wrote, for vocabularies of these sizes.

    Raises:
        ValueError: it is not that.
    """
    if len(data) % 4:
        raise ValueError("not a whole number of entries")
    numbers = np.frombuffer(data, "<i4").tolist()
    entries, at = [], 0
    while at < len(numbers):
        if at + 3 > len(numbers):
            raise ValueError("half an entry")
        target, count, n = numbers[at : at + 3]
        draft = tuple(numbers[at + 3 : at + 3 + n]) if 1 <= n <= MAX_LENGTH else ()
        if len(draft) != n or not 0 <= target < n_target or count < 1 or min(draft) < 0 or max(draft) >= n_draft:
            raise ValueError("an entry that no vocabulary has")
        entries.append(Entry(draft, target, min(count, MAX_COUNT)))
        at += 3 + n
    return entries
