"""A training that was interrupted: which lessons it learns and how far it has come, so that the next one goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from edgellm.memory import files
from edgellm.memory.draft_adapter import DraftAdapter, DraftAdapterError, read_draft_adapter
from edgellm.runtime.distillation.curriculum import Named
from edgellm.runtime.learning.files import private_folder


class Unfinished:
    """The training of one drafter for one target."""

    def __init__(self, folder: Path, target_key: str, draft_sha256: str) -> None:
        digest = hashlib.sha256(f"{target_key} {draft_sha256}".encode()).hexdigest()[:16]
        self._folder = folder
        self._lessons = folder / f"training-{digest}.json"
        self.checkpoint = folder / f"training-{digest}.state"
        self._learnt = folder / f"training-{digest}.learnt"

    @property
    def is_there(self) -> bool:
        """Whether something was kept that a training may go on with."""
        return self.checkpoint.is_file() or self._learnt.is_file()

    def begin(self, start: str, lessons: Sequence[Named]) -> None:
        """Remember what is learnt from now on.

        Args:
            start: names the state that training begins with.

        Raises:
            OSError: the disk.
        """
        private_folder(self._folder)
        self.end()
        text = json.dumps({"start": start, "lessons": [name for name, _ in lessons]})
        files.write(self._lessons, text.encode(), private=True)

    def lessons(self, start: str, known: Sequence[Named]) -> list[Named] | None:
        """Those of a training that began with `start`, in its order; None where there is nothing to go on with."""
        by_name = dict(known)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._lessons.read_bytes())
            if kept["start"] == start and self.is_there:
                return [(str(name), by_name[name]) for name in kept["lessons"]]
        return None

    def keep(self, learnt: DraftAdapter) -> None:
        """All is learnt, and waits to be judged. Raises OSError."""
        files.write(self._learnt, learnt.to_bytes(), private=True)

    def learnt(self) -> DraftAdapter | None:
        """What waits to be judged."""
        with contextlib.suppress(OSError, DraftAdapterError):
            return read_draft_adapter(self._learnt)
        return None

    def end(self) -> None:
        """There is nothing to go on with any more."""
        for path in (self._lessons, self.checkpoint, self._learnt):
            files.discard(path)
