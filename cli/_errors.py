"""Which failures are the user's to mend, and the exit code of each. All else is a bug and keeps its traceback."""

from __future__ import annotations

import errno

from edgellm.memory.errors import DOES_NOT_FIT, DONE, FAILED, INTERRUPTED, USAGE, EdgellmError

__all__ = ["DOES_NOT_FIT", "DONE", "FAILED", "INTERRUPTED", "USAGE", "exit_code", "sentence"]

# What these libraries raise says what is wrong with a network, a file or a setting. Their callers make better sentences
# of what is expected; this is for the rest.
_LIBRARIES = frozenset({"filelock", "httpx2", "huggingface_hub", "jinja2", "onnxruntime", "yaml"})


def exit_code(error: BaseException) -> int | None:
    """The documented code of a known failure, None for a bug."""
    if isinstance(error, EdgellmError):
        return error.exit_code
    return FAILED if isinstance(error, OSError) or _library(error) else None


def sentence(error: BaseException) -> str:
    """The failure in one line."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        remedy = " (free some space and run the same command again)" if error.errno == errno.ENOSPC else ""
        return f"{place}{error.strerror}{remedy}"
    text = " ".join(str(error).split())
    library = None if isinstance(error, EdgellmError) else _library(error)
    return f"{library}: {text or type(error).__name__}" if library else text or type(error).__name__


def _library(error: BaseException) -> str | None:
    """The package, of those above, whose class this is or derives from."""
    roots = (kind.__module__.partition(".")[0] for kind in type(error).__mro__)
    return next((root for root in roots if root in _LIBRARIES), None)
