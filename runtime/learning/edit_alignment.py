"""Follows a text that repeats an earlier one with edits: where it is in the earlier one, and which edits were made.

Copying (CopySpec, arXiv:2502.08923) loses its place at every edit and finds it again some tokens later. But an edited
text mostly has one edit made many times, a renamed function. So the place is kept across an edit, and the edit is
expected wherever the same words come again.

The earlier text is `1 2 3 4 50 5 6 7 50 8`, its first four tokens were said again, and now 60 is said for 50:

>>> index = NgramIndex(256)
>>> index.extend([1, 2, 3, 4, 50, 5, 6, 7, 50, 8])
>>> alignment = EditAlignment(index, position=4, n_same=4)
>>> alignment.expected()  # nothing differed so far
Expected(token=50, kind='same')
>>> alignment.follow(60)
>>> alignment.expected()  # if 60 replaces one token, 5 comes next
Expected(token=5, kind='new edit')
>>> alignment.follow(5)
>>> list(alignment.edits)
[Edit(old=(50,), new=(60,), before=-1)]
>>> alignment.follow(6)
>>> alignment.follow(7)
>>> alignment.expected()  # the earlier text has 50 again
Expected(token=60, kind='edit')
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from edgellm.runtime.learning.ngram_index import GAP, NgramIndex, Place

MIN_MATCH = 4  # tokens in common from which on an earlier text is taken to be repeated
MAX_EDIT_TOKENS = 8  # tokens of an edit, removed or inserted; where more differs the texts have parted
MAX_EDITS = 64  # remembered, the oldest forgotten first

Kind = Literal["same", "edit", "new edit"]
"""same: the token of the earlier text; edit: one that was made before is made again; new edit: behind tokens that the
earlier text lacks, if they replace as many of its own"""


class Edit(NamedTuple):
    """`new` was said where the earlier text has `old`."""

    old: tuple[int, ...]
    new: tuple[int, ...]
    before: int  # what precedes in the earlier text, where `new` is empty: a deletion is repeated in its place alone


class Expected(NamedTuple):
    """What comes next if the text goes on as it did."""

    token: int
    kind: Kind


@dataclass(slots=True)
class EditAlignment:
    """Follows what is said through the earlier text that it resembles."""

    index: NgramIndex
    position: int | None = None  # in the earlier text, of what comes next or of what an edit began to replace
    n_same: int = 0  # tokens in common since the last edit
    said: list[int] = field(default_factory=list)  # in the present edit; empty outside of one
    edits: dict[Edit, None] = field(default_factory=dict)  # shared by copies

    def copy(self) -> EditAlignment:
        """To walk ahead with, over what is only proposed."""
        return replace(self, said=self.said.copy())

    def begin(self) -> None:
        """Another text."""
        self.position, self.n_same = None, 0
        self.said.clear()
        self.edits.clear()

    def find(self, places: Iterable[Place]) -> None:
        """These are where the end of the text was said before; it may be said again from the best of them on."""
        best = max(places, key=lambda place: place.match, default=None)
        if self.position is None and best is not None and best.match >= MIN_MATCH:
            self.position, self.n_same = best.position, best.match

    def follow(self, token: int, *, learn: bool = True) -> None:
        """`token` was said next."""
        if self.position is None:
            return
        if not self.said and self.index.token(self.position) == token:
            if learn and (edit := self._edit()) is not None:
                del self.edits[edit]  # it was not made here
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
        elif len(self.said) > MAX_EDIT_TOKENS:
            self.position = None
            self.said.clear()

    def expected(self) -> Expected | None:
        """What comes next; None where the place is lost."""
        if self.position is None:
            return None
        edit, n_said = self._edit(), len(self.said)
        kind: Kind = "edit"
        if edit is not None and list(edit.new[:n_said]) == self.said:
            is_over = n_said == len(edit.new)
            token = self.index.token(self.position + len(edit.old)) if is_over else edit.new[n_said]
        else:
            token = self.index.token(self.position + n_said)
            kind = "new edit" if n_said else "same"
        return Expected(token, kind) if token != GAP else None

    def _n_replaced(self, token: int) -> int | None:
        """How many tokens the present edit replaces, if `token` is where the earlier text goes on."""
        assert self.position is not None
        edit = self._edit()
        if edit is not None and self._old(len(edit.old) + 1)[-1] == token and list(edit.new) == self.said[:-1]:
            return len(edit.old)
        at_least = 1 if len(self.said) == 1 else 0
        ahead = range(at_least, MAX_EDIT_TOKENS + 1)
        return next((n for n in ahead if self.index.token(self.position + n) == token), None)

    def _learn(self, n_old: int) -> None:
        old, new = self._old(n_old), tuple(self.said[:-1])
        if not old:
            return
        assert self.position is not None
        before = GAP if new else self.index.token(self.position - 1)
        self.edits[Edit(old, new, before)] = None
        if len(self.edits) > MAX_EDITS:
            del self.edits[next(iter(self.edits))]

    def _old(self, n: int) -> tuple[int, ...]:
        assert self.position is not None
        return tuple([self.index.token(self.position + i) for i in range(n)])

    def _edit(self) -> Edit | None:
        """The known one that would replace what comes next, the longest and the latest."""
        if not self.edits:
            return None
        assert self.position is not None
        ahead, before = self._old(MAX_EDIT_TOKENS), self.index.token(self.position - 1)
        fitting = [edit for edit in self.edits if ahead[: len(edit.old)] == edit.old and edit.before in (GAP, before)]
        return max(reversed(fitting), key=lambda edit: len(edit.old), default=None)
