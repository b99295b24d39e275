"""Files that are whole or not there: checksummed, versioned, locked, for their owner alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgellm.memory import files
from edgellm.memory.errors import EdgellmError
from edgellm.memory.sealed import Damaged, seal, unseal

LOCK_TIMEOUT_S = 5.0


class Busy(EdgellmError, OSError):
    """Another process holds the file for too long."""


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A payload under a header that says what it is, for whom, and its checksum."""

    path: Path
    kind: str
    version: int
    key: str  # what the payload was made for: another one's is of no use
    warn: Callable[[str], None]

    def read(self) -> bytes | None:
        """The payload; None where there is none. What is damaged or foreign is set aside with a warning."""
        try:
            return unseal(self.path.read_bytes(), self.kind, self.version, self.key)
        except FileNotFoundError:
            return None
        except Damaged as error:
            self.set_aside(str(error))
        except OSError as error:
            self.warn(f"{self.path} cannot be read ({error.strerror}): what was learnt before is not used")
        return None

    def set_aside(self, why: str) -> None:
        """Keep the file under another name, for whoever wants to look, and go on without it."""
        aside = self.path.with_name(self.path.name + ".damaged")
        with contextlib.suppress(OSError):
            os.replace(self.path, aside)
        self.warn(f"{self.path} {why}: it was set aside as {aside.name} and begins anew")

    def update(self, change: Callable[[bytes | None], bytes]) -> None:
        """Replace the payload by `change(what it is now)`, alone among all processes.

        Raises:
            OSError: the disk, or the lock's holder.
        """
        private_folder(self.path.parent)
        with alone(self.path):
            payload = change(self.read())
            files.write(self.path, seal(payload, self.kind, self.version, self.key), private=True)


def private_folder(path: Path) -> None:
    """A folder that its owner alone can look into."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextlib.contextmanager
def alone(path: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the file's own lock; the system frees it when a process dies.

    Raises:
        Busy: another process holds it for too long.
    """
    import filelock

    lock = filelock.FileLock(path.with_name(path.name + ".lock"), mode=0o600)
    try:
        lock.acquire(timeout=timeout_s)
    except filelock.Timeout:
        raise Busy(None, "another process holds it", str(path)) from None
    try:
        yield
    finally:
        lock.release()
