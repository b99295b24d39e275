"""Pieces of beginnings in a folder: a file each, checksummed, for their owner alone, as many as a bound allows."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from edgellm.memory import files
from edgellm.memory.sealed import MAX_HEADER_BYTES, Damaged, seal, unseal
from edgellm.runtime.learning.files import alone, private_folder

KIND, VERSION = "prefix", 1
_SUFFIX = ".prefix"
# A link is not followed, and a pipe not waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class PrefixFiles:
    """Payloads by name; the least recently used go where there is no room. Several processes may share a folder."""

    def __init__(self, folder: Path, max_bytes: int, warn: Callable[[str], None]) -> None:
        """`warn`: told in a sentence, once of a kind, what could not be used or written."""
        self.folder, self.max_bytes, self._warn = folder, max_bytes, warn
        self._told: set[str] = set()

    def has(self, name: str) -> bool:
        return self._path(name).is_file()

    def read(self, name: str, n_bytes: int) -> bytes | None:
        """A payload of this length; None where there is none. What is damaged or not ours is taken away."""
        path = self._path(name)
        try:
            return self._read(path, name, n_bytes)
        except FileNotFoundError:
            pass
        except Damaged as error:
            self.discard([name], str(error))
        except OSError as error:
            self._tell("read", f"{path} cannot be read ({error.strerror}): what it holds is read anew")
        return None

    def _read(self, path: Path, name: str, n_bytes: int) -> bytes:
        """Raises Damaged, OSError."""
        with open(os.open(path, _FLAGS), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > n_bytes + MAX_HEADER_BYTES:
                raise Damaged("is no file of the size that it should have")
            if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
                raise Damaged("is somebody else's")
            payload = unseal(file.read(n_bytes + MAX_HEADER_BYTES), KIND, VERSION, name, max_bytes=n_bytes)
        if len(payload) != n_bytes:
            raise Damaged("holds less than it should")
        return payload

    def write(self, name: str, payload: bytes) -> None:
        """Keep a payload, whole or not at all, in the place of those that were used least recently. Raises OSError."""
        data = seal(payload, KIND, VERSION, name)
        if len(data) > self.max_bytes:
            return
        private_folder(self.folder)
        with contextlib.suppress(OSError):  # it was there, and open to others
            self.folder.chmod(0o700)
        with alone(self.folder / "prefixes"):
            self._make_room(len(data))
            files.write(self._path(name), data, private=True)

    def use(self, names: Iterable[str]) -> None:
        """They were of use just now, in this order: later ones are of no use without those before, so they go first."""
        for name in reversed(list(names)):
            with contextlib.suppress(OSError):
                os.utime(self._path(name))

    def discard(self, names: Iterable[str], why: str) -> None:
        """Take files away that cannot be used."""
        for name in names:
            path = self._path(name)
            with contextlib.suppress(OSError):
                path.unlink()
            self._tell("damaged", f"{path} {why}: it was taken away, and what it held is read anew")

    def refused(self, error: OSError) -> None:
        """Tell of a failed `write`."""
        why = error.strerror or str(error)
        self._tell(f"write {why}", f"what was read is not kept: {error.filename or self.folder}: {why}")

    def _make_room(self, n_bytes: int) -> None:
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = n_bytes + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                return
            with contextlib.suppress(OSError):  # another process was faster
                os.unlink(path)
            total -= size

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"

    def _tell(self, kind: str, sentence: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._warn(sentence)
