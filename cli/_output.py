"""One way to print: data on stdout, talk on stderr, `--json` for machines, `--quiet` for silence."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


PROSE = 40  # characters of a cell from which on it is text, which wraps at spaces; a name or a number never breaks


class Output:
    """What the commands print through. `quiet` silences talk, never data and never errors."""

    def __init__(self) -> None:
        self.begin()

    def begin(self, *, quiet: bool = False, verbose: bool = False) -> None:
        """A command starts."""
        self.quiet, self.verbose = quiet, verbose
        self._warned: set[str] = set()

    def text(self, text: str, end: str = "\n") -> None:
        """Data for people, or the answer itself."""
        sys.stdout.write(text + end)
        sys.stdout.flush()

    def json(self, value: Any) -> None:
        """Data for machines: one object, indented."""
        self.text(json_text(value, indent=2))

    def jsonl(self, value: Any) -> None:
        """One event of a stream, on one line."""
        self.text(json_text(value))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
        """A table on stdout; columns whose header ends in a space are aligned to the right.

        Only prose wraps, at its spaces: where names need more than the terminal has, the table is wider than that.
        """
        from rich import box
        from rich.measure import Measurement
        from rich.table import Table

        cells = [[_cell(value) for value in row] for row in rows]
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
        for index, column in enumerate(columns):
            texts = [column.rstrip(), *(row[index] for row in cells)]
            is_long = max(map(len, texts)) > PROSE
            table.add_column(
                column.rstrip(),
                justify="right" if column.endswith(" ") else "left",
                no_wrap=not is_long,
                min_width=max(len(word) for text in texts for word in text.split() or [""]) if is_long else None,
            )
        for row in cells:
            table.add_row(*row)
        console = self.console()
        wide = console.options.update_width(10_000)
        prose = sum(
            Measurement.get(console, wide, "\n".join(row[i] for row in cells)).maximum - (column.min_width or 0)
            for i, column in enumerate(table.columns)
            if not column.no_wrap
        )
        console.width = max(console.width, Measurement.get(console, wide, table).maximum - max(prose, 0))
        console.print(table)

    def note(self, text: str) -> None:
        """Talk: progress, hints, what was chosen and why."""
        if not self.quiet:
            self._stderr(text)

    def detail(self, text: str) -> None:
        """Talk that only `--verbose` wants."""
        if self.verbose and not self.quiet:
            self._stderr(text)

    def warning(self, text: str) -> None:
        if not self.quiet:
            self._stderr(f"warning: {text}")

    def warnings(self, texts: Iterable[str]) -> None:
        """Those of `texts` that were not told yet: a list that grows may be given again."""
        for text in texts:
            if text not in self._warned:
                self._warned.add(text)
                self.warning(text)

    def error(self, text: str) -> None:
        self._stderr(f"error: {text}")

    def console(self, *, stderr: bool = False) -> Console:
        """A rich console that honours NO_COLOR and pipes."""
        from rich.console import Console

        return Console(stderr=stderr, highlight=False, soft_wrap=not (sys.stderr if stderr else sys.stdout).isatty())

    def _stderr(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON that any reader takes: a byte of a name that is no UTF-8 is an escape, which `os.fsencode` turns back."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _cell(value: object) -> str:
    from rich.markup import escape

    return "" if value is None else escape(str(value))


def wants_colour(stream: Any) -> bool:
    """A terminal that takes colour, and a user who has not said NO_COLOR."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


out = Output()
