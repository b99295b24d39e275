"""Downloads shown on stderr: a bar with bytes, speed and time left on a terminal, two plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from edgellm.cli._output import out
from edgellm.memory.units import format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class DownloadBar:
    """An `edgellm.export.obtain.download.Progress`."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._fetched_bytes, self._started_s = 0, 0.0

    def start(self, total_bytes: int | None, label: str) -> None:
        self._fetched_bytes, self._started_s = 0, time.monotonic()
        if out.quiet or not sys.stderr.isatty():
            return
        from rich import progress as rich

        self._bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=None),
            rich.DownloadColumn(binary_units=True),
            rich.TransferSpeedColumn(),
            rich.TimeRemainingColumn(),
            console=out.console(stderr=True),
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task(label, total=total_bytes)
        self._bar.start()

    def advance(self, n_bytes: int) -> None:
        self._fetched_bytes += n_bytes
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, n_bytes)

    def adjust(self, n_bytes: int) -> None:
        if n_bytes and self._bar is not None and self._task is not None:
            self._bar.reset(self._task, completed=int(self._bar.tasks[0].completed) + n_bytes)

    def note(self, text: str) -> None:
        self._say(text)

    def detail(self, text: str) -> None:
        if out.verbose:
            self._say(text)

    def done(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
        if self._fetched_bytes > 0:
            seconds = max(time.monotonic() - self._started_s, 1e-3)
            speed = format_bytes(int(self._fetched_bytes / seconds))
            out.note(f"{format_bytes(self._fetched_bytes)} in {seconds:.1f} s ({speed}/s)")

    def _say(self, text: str) -> None:
        if self._bar is None:
            out.note(text)
        elif not out.quiet:
            self._bar.console.print(text, markup=False)
