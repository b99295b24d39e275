"""Which spare sequences of a context hold beginnings that no conversation uses now; the least recently used go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

N_PARKED = 32  # beginnings that are kept beside those of conversations, as long as they have room
NOBODY = -1
_BLOCK = 256  # tokens that are compared in one go


class Parked:
    """Ids of spare sequences, free or in use."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._free = list(ids)
        self._used: dict[int, None] = {}  # the least recently used first
        self.n = len(self._free)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._used

    def __iter__(self) -> Iterator[int]:
        return iter(self._used)

    def use(self, sequence: int) -> None:
        """It was of use just now, if it is one of them."""
        if sequence in self._used:
            del self._used[sequence]
            self._used[sequence] = None

    def take(self, keep: int = NOBODY) -> int:
        """A spare sequence to be filled: one that is free, or the least recently used but `keep`."""
        sequence = self._free.pop() if self._free else next(one for one in self._used if one != keep)
        self._used.pop(sequence, None)
        self._used[sequence] = None
        return sequence

    def let_go(self, sequence: int) -> None:
        """It holds nothing any more."""
        del self._used[sequence]
        self._free.append(sequence)


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    n = min(len(a), len(b))
    for start in range(0, n, _BLOCK):
        left, right = list(a[start : min(n, start + _BLOCK)]), list(b[start : min(n, start + _BLOCK)])
        if left != right:
            return start + next(i for i, (x, y) in enumerate(zip(left, right, strict=True)) if x != y)
    return n
