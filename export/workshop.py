"""A folder that appears whole or not at all, whatever it is that is made in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from edgellm.export import manifest
from edgellm.export.manifest import Manifest, ManifestError


class ExportError(RuntimeError):
    """An export that cannot be carried out as asked; the message says what to change."""


def appear(output: Path, key: str, make: Callable[[Path], dict[str, Any]]) -> Manifest:
    """Let `make` fill a folder beside the output and return its manifest's document; then the folder takes the name.

    Args:
        key: the request's fingerprint: an output that bears it already is checked and left as it is.

    Raises:
        ExportError: something else is there.
        ManifestError: what is there is damaged.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        return _already_there(output, key)
    with workshop(output, key) as work:
        manifest.write(work, make(work))
        _sync(work)
        work.replace(output)
        _sync(output.parent)
    return manifest.read(output)


@contextmanager
def workshop(output: Path, key: str) -> Iterator[Path]:
    """A folder beside the output for one export at a time; what an interrupted run finished is still in it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    work = output.with_name(f".{output.name}.{key}.partial")
    with filelock.FileLock(output.with_name(f".{output.name}.lock"), timeout=-1):
        for other in output.parent.glob(f".{output.name}.*.partial"):
            if other != work:
                shutil.rmtree(other, ignore_errors=True)  # of another request, never finished
        work.mkdir(exist_ok=True)
        for rest in work.glob(".*.part"):
            rest.unlink()
        yield work
    output.with_name(f".{output.name}.lock").unlink(missing_ok=True)


def _already_there(output: Path, key: str) -> Manifest:
    try:
        there = manifest.read(output)
    except ManifestError:
        there = None
    if there is not None and there.document.get("key") == key:
        return manifest.verify(output)
    raise ExportError(f"{output} exists and is not this export: remove it, or choose another --output")


def _sync(folder: Path) -> None:
    """Names in a folder are data of the folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
