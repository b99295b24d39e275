"""A text that says an earlier one again with changes: where it is in the earlier one, and what it says instead of what.

Copying (CopySpec, arXiv:2502.08923) loses its place at every change and finds it again some tokens later. But an edit
mostly is one change made many times, a renamed function. So the place is kept across a change, and the change is
expected wherever the same words come again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from edgellm.runtime.learning.history import GAP, History, Place

N_SURE = 4  # tokens in common that make an earlier text one that is said again
N_LONGEST = 8  # tokens of a change, on either side
N_CHANGES = 64  # remembered, the oldest forgotten first

Kind = Literal["same", "changed", "beyond"]


class Change(NamedTuple):
    """`new` was said where the earlier text has `old`."""

    old: tuple[int, ...]
    new: tuple[int, ...]
    before: int  # what precedes in the earlier text, where `new` is empty: words are left out in their places alone


class Step(NamedTuple):
    """What comes next if the text goes on as it did; `beyond`: within a change that was never seen."""

    token: int
    kind: Kind


@dataclass(slots=True)
class Revision:
    """Follows what is said through the earlier text that it resembles."""

    history: History
    position: int | None = None  # in the earlier text, of what comes next or of what a change began to replace
    n_same: int = 0  # tokens in common since the last change
    said: list[int] = field(default_factory=list)  # in the present change; empty outside of one
    changes: dict[Change, None] = field(default_factory=dict)  # shared by copies

    def copy(self) -> Revision:
        """To walk ahead with, over what is only proposed."""
        return replace(self, said=self.said.copy())

    def begin(self) -> None:
        """Another text."""
        self.position, self.n_same = None, 0
        self.said.clear()
        self.changes.clear()

    def find(self, places: Iterable[Place]) -> None:
        """These are where the end of the text was said before; it may be said again from the best of them on."""
        best = max(places, key=lambda place: place.match, default=None)
        if self.position is None and best is not None and best.match >= N_SURE:
            self.position, self.n_same = best.position, best.match

    def follow(self, token: int, *, learn: bool = True) -> None:
        """`token` was said next."""
        if self.position is None:
            return
        if not self.said and self.history.token(self.position) == token:
            if learn and (change := self._change()) is not None:
                del self.changes[change]  # it was not made here
            self.position += 1
            self.n_same += 1
            return
        self.said.append(token)
        n_old = self._n_replaced(token)
        if n_old is not None:
            if learn:
                self._learn(n_old)
            self.position += n_old + 1
            self.n_same = 1
            self.said.clear()
        elif len(self.said) > N_LONGEST:
            self.position = None
            self.said.clear()

    def guess(self) -> Step | None:
        """What comes next; None where the place is lost."""
        if self.position is None:
            return None
        change, n_said = self._change(), len(self.said)
        kind: Kind = "changed"
        if change is not None and list(change.new[:n_said]) == self.said:
            is_over = n_said == len(change.new)
            token = self.history.token(self.position + len(change.old)) if is_over else change.new[n_said]
        else:
            token = self.history.token(self.position + n_said)
            kind = "beyond" if n_said else "same"
        return Step(token, kind) if token != GAP else None

    def _n_replaced(self, token: int) -> int | None:
        """How many tokens the present change replaces, if `token` is where the earlier text goes on."""
        assert self.position is not None
        change = self._change()
        if change is not None and self._old(len(change.old) + 1)[-1] == token and list(change.new) == self.said[:-1]:
            return len(change.old)
        at_least = 1 if len(self.said) == 1 else 0
        ahead = range(at_least, N_LONGEST + 1)
        return next((n for n in ahead if self.history.token(self.position + n) == token), None)

    def _learn(self, n_old: int) -> None:
        old, new = self._old(n_old), tuple(self.said[:-1])
        if not old:
            return
        assert self.position is not None
        before = GAP if new else self.history.token(self.position - 1)
        self.changes[Change(old, new, before)] = None
        if len(self.changes) > N_CHANGES:
            del self.changes[next(iter(self.changes))]

    def _old(self, n: int) -> tuple[int, ...]:
        assert self.position is not None
        return tuple([self.history.token(self.position + i) for i in range(n)])

    def _change(self) -> Change | None:
        """The known one that would replace what comes next, the longest and the latest."""
        if not self.changes:
            return None
        assert self.position is not None
        ahead, before = self._old(N_LONGEST), self.history.token(self.position - 1)
        fitting = [
            change
            for change in self.changes
            if ahead[: len(change.old)] == change.old and change.before in (GAP, before)
        ]
        return max(reversed(fitting), key=lambda change: len(change.old), default=None)
