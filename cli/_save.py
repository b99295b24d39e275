"""Files that a user names for a result: regular ones, and whole or not at all."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import typer


def destination(path: Path, option: str) -> Path:
    """Where a result goes: through links to the file they name.

    Raises:
        typer.BadParameter: something is there that is no regular file.
        OSError: it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise typer.BadParameter(f"{option} {path} is {kind}: name a regular file")
    return path.resolve()


def write_whole(path: Path, option: str, fill: Callable[[Path], object]) -> None:
    """`fill` writes a file beside the one that is meant, which then takes its place.

    Raises:
        typer.BadParameter, OSError: as `destination`, or it cannot be written.
    """
    from edgellm.memory.files import making

    with making(destination(path, option), suffix=path.suffix) as aside:
        fill(aside)
