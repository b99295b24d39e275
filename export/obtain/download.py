"""One file over HTTP: resumed where it stopped, checked before it takes its name, told to whoever watches."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from edgellm.memory.errors import EdgellmError
from edgellm.memory.files import settle
from edgellm.memory.units import format_bytes

if TYPE_CHECKING:
    import httpx2

CONNECT_S, READ_S = 5.0, 30.0
MAX_FRUITLESS = 5  # attempts in a row that bring no new byte
RETRY_WAIT_S = 0.5  # after the first of them, and as much longer after each further one
_CHUNK_BYTES = 1 << 20


class SourceError(EdgellmError, RuntimeError):
    """A source cannot give the file; the message is a clause without a full stop.

    `status` is the HTTP status behind it, if any.
    """

    def __init__(self, clause: str, *, status: int | None = None) -> None:
        super().__init__(clause)
        self.status = status


class ChecksumError(SourceError):
    """A source has a file of that name, and it is another one."""


class Progress(Protocol):
    """Who watches a download."""

    def start(self, total_bytes: int | None, label: str) -> None: ...

    def advance(self, n_bytes: int) -> None:
        """So many bytes have come."""
        ...

    def adjust(self, n_bytes: int) -> None:
        """So many were here before; negative where some have to be fetched again."""
        ...

    def note(self, text: str) -> None:
        """Something a person should know: a wait, a checksum kept for the first time."""
        ...

    def detail(self, text: str) -> None:
        """Something only a curious person wants to know: why a source was passed over."""
        ...

    def done(self) -> None: ...


class Unwatched:
    """A `Progress` that nobody looks at."""

    def start(self, total_bytes: int | None, label: str) -> None: ...

    def advance(self, n_bytes: int) -> None: ...

    def adjust(self, n_bytes: int) -> None: ...

    def note(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def done(self) -> None: ...


def fetch(
    url: str,
    dest: Path,
    progress: Progress,
    *,
    partial: Path,
    n_bytes: int | None = None,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Bring `url` to `dest`, through `partial`, which survives an interruption and is continued from the next time.

    Args:
        url: http, https or file.
        partial: beside `dest`, so that the last step is a rename.
        n_bytes, sha256: what the file must be, where known.

    Raises:
        SourceError: the server refuses, is out of reach, or serves something else.
        OSError: this machine's disk.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    have_bytes = partial.stat().st_size if partial.exists() else 0
    if n_bytes is not None:
        if have_bytes > n_bytes:
            partial.unlink()
            have_bytes = 0
        require_space(partial.parent, n_bytes - have_bytes)
    progress.adjust(have_bytes)
    if n_bytes is None or have_bytes < n_bytes:
        if url.startswith("file:"):
            _copy(url, partial, progress)
        else:
            _get(url, partial, progress, n_bytes, dict(headers or {}))
    check(partial, n_bytes=n_bytes, sha256=sha256)
    settle(partial, dest)


def check(path: Path, *, n_bytes: int | None, sha256: str | None) -> None:
    """Delete `path` and raise SourceError if it is not what it must be."""
    actual_bytes = path.stat().st_size
    if n_bytes is not None and actual_bytes != n_bytes:
        path.unlink()
        raise SourceError(f"the file has {actual_bytes:,} bytes where {n_bytes:,} were expected")
    if sha256 is not None and (actual := digest(path)) != sha256:
        path.unlink()
        raise ChecksumError(f"the file's sha256 is {actual[:12]}… where {sha256[:12]}… was expected")


def digest(path: Path) -> str:
    """sha256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, n_bytes: int) -> None:
    """Raise OSError (ENOSPC) unless `n_bytes` more fit into `folder`."""
    free_bytes = shutil.disk_usage(folder).free
    if n_bytes > free_bytes:
        needs = f"{format_bytes(n_bytes)} are needed and {format_bytes(free_bytes)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {needs}", str(folder))


def _copy(url: str, partial: Path, progress: Progress) -> None:
    from urllib.request import url2pathname

    source = Path(url2pathname(urlsplit(url).path))
    try:
        reader = source.open("rb")
    except OSError as error:
        raise SourceError(f"{source} cannot be read ({error.strerror})") from error
    with reader, partial.open("ab") as writer:
        reader.seek(writer.tell())
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            progress.advance(len(chunk))


def _get(url: str, partial: Path, progress: Progress, n_bytes: int | None, headers: dict[str, str]) -> None:
    """Attempts until the file is whole; only those that bring nothing new are counted."""
    import httpx2

    host = urlsplit(url).hostname
    furthest_bytes, n_fruitless = partial.stat().st_size if partial.exists() else 0, 0
    timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
    with httpx2.Client(follow_redirects=True, timeout=timeout) as client:
        while True:
            try:
                if _attempt(client, url, partial, progress, n_bytes, headers):
                    return
                reason = "the connection ended early"
            except httpx2.TransportError as error:
                reason = f"{host} is out of reach ({str(error) or type(error).__name__})"
            except SourceError as error:
                if error.status is None or (error.status < 500 and error.status not in (408, 416, 429)):
                    raise
                reason = str(error)
            except httpx2.HTTPError as error:
                raise SourceError(f"{host} cannot be read ({error})") from error
            have_bytes = partial.stat().st_size if partial.exists() else 0
            n_fruitless = 0 if have_bytes > furthest_bytes else n_fruitless + 1
            furthest_bytes = max(furthest_bytes, have_bytes)
            if n_fruitless >= MAX_FRUITLESS or (furthest_bytes == 0 and n_fruitless >= 2):
                raise SourceError(reason)
            progress.detail(f"{reason}; continuing at {format_bytes(have_bytes)}")
            time.sleep(RETRY_WAIT_S * n_fruitless)  # none after an attempt that brought something


def _attempt(
    client: httpx2.Client, url: str, partial: Path, progress: Progress, n_bytes: int | None, headers: dict[str, str]
) -> bool:
    """One request, appended to `partial`. True if the file is whole, False if the stream ended before its end."""
    have_bytes = partial.stat().st_size if partial.exists() else 0
    # A compressed answer could not be continued at a byte.
    asked = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have_bytes}-"} if have_bytes else {})
    with client.stream("GET", url, headers=asked) as response:
        host = response.url.host
        if response.status_code == 416:
            if response.headers.get("Content-Range") == f"bytes */{have_bytes}":
                return True  # stopped between the last byte and the new name
            partial.unlink()  # what is here is no beginning of what is there
            progress.adjust(-have_bytes)
        if response.status_code not in (200, 206):
            raise SourceError(f"{host} answers {response.status_code}", status=response.status_code)
        start = _start_of(response.headers.get("Content-Range")) if response.status_code == 206 else 0
        if start != have_bytes:
            if start != 0:
                raise SourceError(f"{host} sends another part of the file than it was asked for")
            progress.adjust(-have_bytes)  # the server ignores ranges: from the beginning again
        length = response.headers.get("Content-Length")
        end_bytes = start + int(length) if length and length.isdigit() else n_bytes
        if n_bytes is not None and end_bytes != n_bytes:
            raise SourceError(f"{host} has a file of {end_bytes:,} bytes where {n_bytes:,} were expected")
        with partial.open("r+b" if partial.exists() else "wb") as writer:
            writer.truncate(start)
            writer.seek(start)
            for chunk in response.iter_raw():
                writer.write(chunk)
                progress.advance(len(chunk))
            return end_bytes is None or writer.tell() == end_bytes


def _start_of(content_range: str | None) -> int:
    """`bytes 200-1000/67589` -> 200; -1 where it says nothing of the kind."""
    unit, _, rest = (content_range or "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else -1
