"""What policy tells, on the terminal: sentences on stderr, downloads as bars."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager

from edgellm.cli._output import out
from edgellm.cli._progress import DownloadBar


class Terminal:
    """An `edgellm.app.listener.Listener`."""

    def note(self, text: str) -> None:
        out.note(text)

    def detail(self, text: str) -> None:
        out.detail(text)

    def warning(self, text: str) -> None:
        out.warnings((text,))  # an engine's list of them is told again as it grows

    def progress(self) -> DownloadBar:
        return DownloadBar()

    def working(self, what: str) -> AbstractContextManager[object]:
        from edgellm.cli._terminal import waiting

        return waiting(what)


class Dim(Terminal):
    """Between the lines of a conversation."""

    def note(self, text: str) -> None:
        from edgellm.cli._terminal import dim

        out.note(dim(f"({text})"))


class Running(Terminal):
    """Beside keys that are pressed: a line begins where the terminal wrote `^C`."""

    def note(self, text: str) -> None:
        out.note(f"\r{text}" if sys.stderr.isatty() else text)


TERMINAL = Terminal()
RUNNING = Running()
DIM = Dim()
