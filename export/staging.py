"""A folder that appears whole or not at all, whatever it is that is made in it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from edgellm.export import manifest
from edgellm.export.manifest import Manifest, ManifestError
from edgellm.memory.errors import EdgellmError
from edgellm.memory.files import behind_links, beside, discard, settle
from edgellm.memory.folders import home


class ExportError(EdgellmError, RuntimeError):
    """An export that cannot be carried out as asked; the message says what to change."""


def publish(output: Path, key: str, make: Callable[[Path], dict[str, Any]]) -> Manifest:
    """Let `make` fill a folder beside the output and return its manifest's document; then the folder takes the name.

    Args:
        key: the request's fingerprint: an output that bears it already is checked and left as it is.

    Raises:
        ExportError: something else is there.
        ManifestError: what is there is damaged.
    """
    if _is_taken(output):
        return _already_there(output, key)
    output = behind_links(output)
    with staging_folder(output, key) as work:
        if _is_taken(output):  # by another process, while this one waited for it
            return _already_there(output, key)
        manifest.write(work, make(work))
        settle(work, output)
    return manifest.read(output)


def _is_taken(output: Path) -> bool:
    return output.exists() and (not output.is_dir() or any(output.iterdir()))


@contextmanager
def staging_folder(output: Path, key: str) -> Iterator[Path]:
    """A folder beside the output for one export at a time; what an interrupted run finished is still in it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    work = beside(output, f"{key}.partial")
    left = re.compile(re.escape(beside(output, "").name) + r"[0-9a-f]{16}\.partial")  # of this name, and no longer one
    with exclusive(output):
        for other in output.parent.iterdir():
            if other != work and left.fullmatch(other.name):
                discard(other)  # of another request, never finished
        work.mkdir(exist_ok=True)
        for rest in work.glob(".*.part"):
            discard(rest)
        yield work
        if work.exists() and not any(work.iterdir()):
            work.rmdir()


@contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Hold an output's name: one process at a time makes it, whichever way it wrote the path.

    The lock lies among edgellm's own files and stays there: one that is deleted while another process waits for it
    locks nothing.
    """
    named = hashlib.sha256(os.fsencode(output.absolute().parent.resolve() / output.name)).hexdigest()[:24]
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / f"export-{named}.lock", timeout=-1):
        yield


def _already_there(output: Path, key: str) -> Manifest:
    try:
        there = manifest.read(output)
    except ManifestError:
        there = None
    if there is not None and there.document.get("key") == key:
        return manifest.verify(output)
    raise ExportError(f"{output} exists and is not this export: remove it, or choose another --output")
