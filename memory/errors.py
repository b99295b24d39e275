"""The base of every failure that a user can mend, and the exit codes of the command."""

from __future__ import annotations

from typing import ClassVar, Final

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2  # the command line, or a value on it, is wrong
DOES_NOT_FIT: Final = 3  # what was asked for needs more memory than there is
INTERRUPTED: Final = 130


class EdgellmError(Exception):
    """A failure whose message is one sentence for a user; any other exception is a bug.

    A class that code catches by a built-in name as well has that as its second base: `class BadSize(EdgellmError,
    ValueError)`.
    """

    exit_code: ClassVar[int] = FAILED
