"""Files that are whole or not there: checksummed, versioned, locked, for their owner alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgellm.memory import files
from edgellm.memory.errors import EdgellmError

MAX_BYTES = 64 * 2**20  # no file of ours comes near it
MAX_HEADER_BYTES = 4096
LOCK_TIMEOUT_S = 5.0


class Damaged(EdgellmError, ValueError):
    """A file that is not what it should be; the message says what is wrong."""


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


def seal(payload: bytes, kind: str, version: int, key: str) -> bytes:
    """Header line and payload."""
    header = {"edgellm": kind, "version": version, "key": key, "n_bytes": len(payload)}
    header["sha256"] = hashlib.sha256(payload).hexdigest()
    return json.dumps(header).encode() + b"\n" + payload


def unseal(data: bytes, kind: str, version: int, key: str | None, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The payload, of at most `max_bytes`. `key` None takes any.

    Raises:
        Damaged: it is not of this kind, version and key, or not whole.
    """
    line, newline, payload = data[: MAX_HEADER_BYTES + max_bytes].partition(b"\n")
    try:
        header = json.loads(line[:MAX_HEADER_BYTES])
        found = (header["edgellm"], header["version"], header["key"], header["n_bytes"], header["sha256"])
    except (ValueError, KeyError, TypeError):
        raise Damaged("has no header of edgellm's") from None
    if not newline or found[0] != kind:
        raise Damaged(f"holds no {kind}")
    if found[1] != version:
        raise Damaged(f"is of version {found[1]!r}, not {version}")
    if key is not None and found[2] != key:
        raise Damaged("was made for other models")
    if found[3] != len(payload) or found[4] != hashlib.sha256(payload).hexdigest():
        raise Damaged("does not match its checksum")
    return payload


def private_folder(path: Path) -> None:
    """A folder that its owner alone can look into."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the file's own lock; the system frees it when a process dies.

    Raises:
        Busy: another process holds it for too long.
    """
    import filelock

    lock = filelock.FileLock(path.with_name(path.name + ".lock"), mode=0o600)
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except filelock.Timeout:
        raise Busy(None, "another process holds it", str(path)) from None
    try:
        yield
    finally:
        lock.release()
