"""Answers about this machine that take a while to find: kept between runs, and found anew where they are damaged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.memory import files


@dataclass(frozen=True, slots=True)
class KeptAnswers:
    """A file of a few answers, each under the hash of all that it depends on."""

    path: Path
    n_most: int  # the oldest are let go of
    is_one: Callable[[Any], bool]  # whether a value can be an answer; others are not believed

    def get(self, key: str) -> Any:
        """As it was put; None where there is none."""
        return self._read().get(key)

    def put(self, key: str, answer: Any) -> None:
        """Where it cannot be kept, the next process finds it anew."""
        answers = {name: kept for name, kept in self._read().items() if name != key} | {key: answer}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(dict(list(answers.items())[-self.n_most :]), indent=1) + "\n"
            files.write(self.path, text.encode(), private=True)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return {key: kept for key, kept in content.items() if self.is_one(kept)} if isinstance(content, dict) else {}
