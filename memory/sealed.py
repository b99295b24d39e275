"""A payload under a header line that says what it is, for whom, and its checksum."""

from __future__ import annotations

import hashlib
import json

from edgellm.memory.errors import EdgellmError

MAX_BYTES = 64 * 2**20  # no payload of ours comes near it
MAX_HEADER_BYTES = 4096


class Damaged(EdgellmError, ValueError):
    """A file that is not what it should be; the message says what is wrong."""


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
