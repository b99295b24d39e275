"""How much of what a target answered is new to its drafter, so that it is worth learning."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from edgellm.app.defaults import adapted_folder

if TYPE_CHECKING:
    from edgellm.runtime.distillation.lessons import SavedLessons

FEW_TOKENS = 500  # before lessons are counted again where tokens are not what is lacking


class NewLessons:
    """Lessons since the last training of a pair, whatever came of it."""

    def __init__(self, lessons: SavedLessons, target_key: str, draft_sha256: str) -> None:
        digest = hashlib.sha256(f"{target_key} {draft_sha256}".encode()).hexdigest()[:16]
        self._lessons = lessons
        self._path = adapted_folder() / f"learnt-{digest}.json"
        self._newest = ""  # of those that were counted

    def n_lacking(self, n_wanted: int, seen: Collection[str]) -> int:
        """Tokens of answers that are to come before there are `n_wanted`, and answers enough to judge by; 0: learn now.

        Args:
            seen: ids of the lessons that the drafter in use had.
        """
        from edgellm.runtime.distillation.curriculum import id_of, is_judging
        from edgellm.runtime.distillation.judging import MIN_ANSWERS

        lessons = {id_of(lesson): lesson for lesson in self._lessons.all()}
        names = list(lessons)
        self._newest = names[-1] if names else ""
        last = self._last()
        behind = names[names.index(last) + 1 :] if last in lessons else names
        n_tokens = sum(len(lessons[name].tokens) for name in behind if name not in seen)
        if n_tokens < n_wanted:
            return n_wanted - n_tokens
        return 0 if sum(map(is_judging, lessons.values())) >= MIN_ANSWERS else FEW_TOKENS

    def mark(self) -> None:
        """Those that were counted have been learnt from. A disk that refuses has them learnt again."""
        from edgellm.memory import files

        with contextlib.suppress(OSError):
            files.write(self._path, json.dumps({"newest": self._newest}).encode(), private=True)

    def _last(self) -> str:
        """The newest lesson of the last training; "" where there was none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(self._path.read_bytes())["newest"])
        return ""
