"""Files and folders that are whole or not there: made beside their name, synced, and given it in one step.

What a process that was killed leaves beside a name bears that process's number; the next one that writes the name takes
it away.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import psutil

MAX_NAME_BYTES = 255  # of one part of a path, on every system that is in use
CHUNK_BYTES = 8 * 2**20
_TAG_BYTES = 48
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def beside(path: Path, tag: str) -> Path:
    """The hidden name `.NAME.TAG` in the folder of `path`; a name that leaves no room for a tag goes by its hash."""
    stem = path.name
    if len(os.fsencode(stem)) > MAX_NAME_BYTES - _TAG_BYTES:
        stem = hashlib.sha256(os.fsencode(stem)).hexdigest()[:24]
    return path.with_name(f".{stem}.{tag}")


def behind_links(path: Path) -> Path:
    """The file that a link names, there or not; `path` itself where it is no link."""
    return path.resolve() if path.is_symlink() else path


@contextmanager
def making(path: Path, *, private: bool = False, suffix: str = "") -> Iterator[Path]:
    """A name for a writer of its own (a library, a program): what lies under it in the end becomes `path`, whole.

    A file that was there is replaced; it lends its permissions unless the new one is `private`. When the block fails
    nothing of it is left.

    Args:
        suffix: that the name must end in, for writers that go by it.

    Raises:
        OSError: this machine's disk; the error names `path`.
    """
    real = behind_links(path)
    _sweep(real)
    aside = beside(real, f"{os.getpid()}.part{suffix}")
    try:
        yield aside
        if not private and not aside.is_dir():
            with contextlib.suppress(OSError):  # nothing is there, or it is somebody else's
                os.chmod(aside, stat.S_IMODE(real.stat().st_mode))
        settle(aside, real)
    except OSError as error:
        nameless = error.filename is None and error.errno in _OF_THE_DISK
        if nameless or os.fsdecode(error.filename or "").startswith(str(aside)):  # nobody knows that name
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        discard(aside)


@contextmanager
def appearing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when the block ends well, as with `making`.

    Args:
        private: for its owner alone; otherwise a new file has the usual permissions.
    """
    mode = 0o600 if private else 0o666
    with (
        making(path, private=private) as aside,
        open(aside, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file,
    ):
        yield file


def write(path: Path, data: bytes, *, private: bool = False) -> None:
    """The file holds either what it held or `data`, whenever the process or the machine stops."""
    with appearing(path, private=private) as file:
        file.write(data)


def copy(source: Path, path: Path) -> None:
    """`path` becomes a copy of `source`, whole or not at all."""
    with appearing(path) as file, source.open("rb") as data:
        shutil.copyfileobj(data, file, CHUNK_BYTES)


def sha256_of(path: Path) -> str:
    """The hash of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settle(aside: Path, path: Path) -> None:
    """Give a finished file, or a folder of finished files, its name, durably: it is there whole or not at all."""
    if aside.is_dir():
        for folder, _, names in os.walk(aside):
            for name in names:
                _sync_file(Path(folder, name))
            sync_folder(Path(folder))
    else:
        _sync_file(aside)
    os.replace(aside, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Names in a folder are data of the folder."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def discard(path: Path) -> None:
    """A file, or a folder with all that is in it, as far as it goes: why there is something left was told before."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync_file(path: Path) -> None:
    with path.open("rb" if os.name == "posix" else "rb+") as file:  # Windows wants a handle that may write
        os.fsync(file.fileno())


def _sweep(path: Path) -> None:
    """Take away what dead processes left beside a name."""
    sweep(path.parent, re.escape(beside(path, "").name))


def sweep(folder: Path, begin: str = r"\..+\.") -> None:
    """Take away what dead processes left in a folder; `begin`: a pattern of the names up to the process's number."""
    left = re.compile(begin + r"(\d+)\.part.*", re.DOTALL)
    with contextlib.suppress(OSError):  # of a folder that is not there, or is somebody else's
        for other in folder.iterdir():
            found = left.fullmatch(other.name)
            if found and not psutil.pid_exists(int(found[1])):
                discard(other)
