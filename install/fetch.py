"""Bring the default pair; prints how far it is. Run in an environment that has all but the engine."""

from __future__ import annotations

import sys

from edgellm.app.listener import Silence
from edgellm.app.references import resolve_pair
from edgellm.export.obtain.download import Progress, Unwatched
from edgellm.memory.errors import EdgellmError
from edgellm.memory.units import format_bytes

STEP_BYTES = 8 << 20


class Printed(Unwatched):
    """A download whose state is a line of stdout each time that it has grown by STEP_BYTES."""

    def __init__(self) -> None:
        self.total_bytes = self.here_bytes = self.told_bytes = 0

    def start(self, total_bytes: int | None, label: str) -> None:
        self.total_bytes, self.here_bytes, self.told_bytes = total_bytes or 0, 0, 0

    def advance(self, n_bytes: int) -> None:
        self.here_bytes += n_bytes
        if self.here_bytes - self.told_bytes >= STEP_BYTES:
            self.told_bytes = self.here_bytes
            print(f"{format_bytes(self.here_bytes)} of {format_bytes(self.total_bytes)}", flush=True)

    def adjust(self, n_bytes: int) -> None:
        self.here_bytes += n_bytes


class Listening(Silence):
    def progress(self) -> Progress:
        return Printed()


if __name__ == "__main__":
    try:
        resolve_pair(None, None, listener=Listening())
    except EdgellmError as error:
        sys.exit(str(error))
