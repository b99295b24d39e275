"""What servers keep of long beginnings on this disk."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from edgellm.app.defaults import prefix_folder


@dataclass(frozen=True, slots=True)
class KeptPrefixes:
    folder: Path
    n_files: int
    n_bytes: int


def kept() -> KeptPrefixes:
    """How much there is."""
    sizes = []
    for path in _files():
        with contextlib.suppress(OSError):  # a server took it away
            sizes.append(path.lstat().st_size)
    return KeptPrefixes(prefix_folder(), len(sizes), sum(sizes))


def clear() -> int:
    """Delete all of it; how many files that were. A server that runs reads anew what it would have found there."""
    paths = _files()
    for path in (*paths, *prefix_folder().glob("*.lock"), *prefix_folder().glob(".*.part")):
        path.unlink(missing_ok=True)
    return len(paths)


def _files() -> list[Path]:
    return list(prefix_folder().glob("*.prefix"))
