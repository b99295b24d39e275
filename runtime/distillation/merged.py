"""Drafters' files with adapters merged: a folder for each adapter, made once and never changed.

    ID/NAME.gguf      the drafter with the adapter whose sha256 begins with ID, under the name of its base
    ID/merged.json    its size, time and sha256

Name and size are the base's, since measured costs are known by them. Another adapter has another folder, so that what
a running process has mapped stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from edgellm.memory import files
from edgellm.memory.draft_adapter import AdapterFile, merge, read_draft_adapter
from edgellm.memory.units import format_bytes
from edgellm.runtime.learning.files import alone, private_folder

ID_DIGITS = 16
MERGE_TIMEOUT_S = 120.0  # that another process may take to merge the same
N_SPARE = 2  # folders that are kept although nothing names them: of processes that run, and of adapters elsewhere
SIZE_SLACK_BYTES = 2**20  # names, records and the file system's own
_RECORD, _GONE = "merged.json", ".gone-"
_COMPANIONS = ("*-words.gguf", "*.pair")  # that a drafter is read with, see `text.full_vocabulary`, `vocabulary_map`
Warn = Callable[[str], None]


def identifier(sha256: str) -> str:
    return sha256[:ID_DIGITS]


class MergedDrafters:
    """The folders of one folder."""

    def __init__(self, folder: Path, warn: Warn) -> None:
        self.folder, self._warn = folder, warn

    def path_of(self, adapter: AdapterFile, base: Path) -> Path:
        """Where the drafter with this adapter lies, once it is made."""
        return self.folder / identifier(adapter.sha256) / base.name

    def make(self, adapter: AdapterFile, base: Path) -> Path:
        """The drafter with this adapter: as it was made before, or made now.

        Raises:
            DraftAdapterError: the adapter is for another file, or damaged.
            OSError: the disk, which is full perhaps; nothing half-made is left.
        """
        path = self.path_of(adapter, base)
        private_folder(self.folder)
        with alone(path.parent, MERGE_TIMEOUT_S):
            if path.parent.exists() and not _is_whole(path):
                self._warn(f"{path} is damaged: it is made again")
                _remove(path.parent)
            if not path.parent.exists():
                self._write(adapter, base, path)
            with contextlib.suppress(OSError):
                os.utime(path.parent)  # used just now
        return path

    def _write(self, adapter: AdapterFile, base: Path, path: Path) -> None:
        _refuse_full(self.folder, base.stat().st_size)
        with files.making(path.parent) as aside:
            aside.mkdir(mode=0o700)
            merged = aside / base.name
            merge(read_draft_adapter(adapter.path), base, merged)
            for companion in (found for pattern in _COMPANIONS for found in base.parent.glob(pattern)):
                _bring(companion, aside / companion.name)
            status = merged.stat()
            told = {
                "n_bytes": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "sha256": files.sha256_of(merged),
                "base": adapter.base,
            }
            files.write(aside / _RECORD, json.dumps(told).encode(), private=True)

    def sha256_of(self, path: Path) -> str | None:
        """As it was when it was made."""
        sha256 = _record(path.parent).get("sha256")
        return sha256 if isinstance(sha256, str) else None

    def sweep(self, named: Collection[str]) -> None:
        """Take away the folders that have not been used for longest, except those whose identifier is `named`."""
        files.sweep(self.folder)
        for gone in self.folder.glob(f"{_GONE}*"):
            files.discard(gone)
        made = [path for path in self.folder.iterdir() if (path / _RECORD).is_file() and path.name not in named]
        for folder in sorted(made, key=lambda path: path.stat().st_mtime_ns, reverse=True)[N_SPARE:]:
            _remove(folder)


def _is_whole(path: Path) -> bool:
    told = _record(path.parent)
    try:
        status = path.stat()
    except OSError:
        return False
    if told.get("n_bytes") != status.st_size:
        return False
    return told.get("mtime_ns") == status.st_mtime_ns or told.get("sha256") == files.sha256_of(path)


def _record(folder: Path) -> dict[str, object]:
    try:
        told = json.loads((folder / _RECORD).read_bytes()[: 2**16])
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _refuse_full(folder: Path, n_bytes: int) -> None:
    """Raises OSError before anything is written that would not find room."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes + SIZE_SLACK_BYTES:
        raise OSError(
            errno.ENOSPC,
            f"a drafter with an adapter takes {format_bytes(n_bytes)}, and {format_bytes(free)} are free on its disk",
            str(folder),
        )


def _bring(source: Path, path: Path) -> None:
    try:
        path.symlink_to(source.resolve())
    except OSError:  # Windows asks for rights that few have
        files.copy(source, path)


def _remove(folder: Path) -> None:
    """All of it, or, where the system does not let go of a file that is mapped, nothing yet."""
    gone = folder.with_name(f"{_GONE}{folder.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        os.replace(folder, gone)
        files.discard(gone)
