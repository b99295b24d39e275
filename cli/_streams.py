"""Standard streams as they are found: closed, full, or of an encoding that cannot show everything."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from typing import Any

from edgellm.memory.errors import EdgellmError

_SHOWN = "edgellm-shown"


class OutputError(EdgellmError, OSError):
    """Standard output cannot be written to; the message says so."""


def mend() -> None:
    """Make the three streams usable, whatever the caller left of them.

    Called before anything is opened: a file that took the number of a closed stream would be written into.

    Closed input is empty input. What goes to a closed or full standard output is an `OutputError`; what goes to such a
    standard error is lost. A name that is not UTF-8 comes out as the very bytes that it has, and a character that the
    encoding lacks as a question mark.
    """
    codecs.register_error(_SHOWN, _shown)
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):  # nobody can write to an input
        if not _is_open(number):
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    if sys.stdout is sys.__stdout__:  # nobody else, as a test does, has put another one there
        sys.stdout = _writer(1, sys.stdout, _Output)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _writer(2, sys.stderr, _Talk)


def give_up_output() -> None:
    """Lose what is still on its way to a standard output that cannot take it, for Python flushes it at its end."""
    with contextlib.suppress(OSError, ValueError):  # there may be none
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Output(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.errno == errno.EBADF:
                raise OutputError("standard output is closed: there is nowhere to write to") from error
            raise OutputError(f"standard output cannot be written to: {error.strerror}") from error


class _Talk(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _writer(number: int, old: io.TextIOBase | Any, kind: type[io.FileIO]) -> Any:
    is_terminal = os.isatty(number)
    return io.TextIOWrapper(
        io.BufferedWriter(kind(number, "wb", closefd=False)),
        encoding=old.encoding if old is not None else "utf-8",
        errors=_SHOWN,
        line_buffering=is_terminal or number == 2,
    )


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _shown(error: UnicodeError) -> tuple[bytes, int]:
    """Bytes of a name that Python could not decode, as they were; a question mark for all else."""
    assert isinstance(error, UnicodeEncodeError)
    codes = map(ord, error.object[error.start : error.end])
    return b"".join(bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else b"?" for code in codes), error.end
