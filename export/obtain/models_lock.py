"""models.lock.json: the models that were brought here, where they lie, and what they hashed to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgellm.memory import files
from edgellm.memory.errors import EdgellmError
from edgellm.memory.folders import home
from edgellm.memory.split import part_name


class PullError(EdgellmError, RuntimeError):
    """A model could not be brought here; the message gives each source's reason."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """A part of a model in several files, beside the first."""

    filename: str
    n_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on this disk."""

    path: Path  # of a model in parts the first
    name: str  # of the catalogue, or user/repo, or the file's stem
    quant: str | None
    n_bytes: int  # of all parts
    sha256: str | None  # None for a file named by its path; of a model in parts `split.joint_sha256`
    licence: str | None
    source: str  # hf, pypi or path
    repo: str | None = None
    revision: str | None = None  # the commit, where the Hub told it
    parts: tuple[PartFile, ...] = ()  # () of a model in one file

    @property
    def files(self) -> list[Path]:
        """All of its files; an ONNX model's folder is one."""
        return [self.path.with_name(part.filename) for part in self.parts] or [self.path]

    @property
    def reference(self) -> str:
        """What names this file again."""
        if self.source == "path":
            return str(self.path)
        return f"{self.name}:{self.quant}" if self.quant else self.name


def lock_path() -> Path:
    return home() / "models.lock.json"


def read_lock() -> dict[str, dict[str, Any]]:
    path = lock_path()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["models"]
        return {key: asdict(_read(entry)) | {"path": entry["path"]} for key, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PullError(f"{path} is damaged: delete it, and what it lists is found again") from error


@contextlib.contextmanager
def lock_file() -> Iterator[dict[str, dict[str, Any]]]:
    """The entries of models.lock.json, written back whole at the end; other processes wait."""
    import filelock

    path = lock_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        entries = read_lock()
        yield entries
        text = json.dumps({"models": entries}, indent=2, sort_keys=True)
        files.write(path, text.encode("utf-8", "backslashreplace") + b"\n")


def model_of(entry: dict[str, Any]) -> ModelFile | None:
    """The model of an entry, if all its files are there in their full length."""
    return None if entry["path"] is None or damage(entry) is not None else _read(entry)


def damage(entry: dict[str, Any]) -> str | None:
    """What is wrong with a file of an entry, as a clause; None where they are as they were."""
    model = _read(entry)
    sizes = [part.n_bytes for part in model.parts] or [model.n_bytes]
    for path, n_bytes in zip(model.files, sizes, strict=True):
        if not path.is_file():
            return f"{path} is gone"
        if path.stat().st_size != n_bytes:
            return f"{path} has {path.stat().st_size:,} bytes instead of {n_bytes:,}"
    return None


def files_left(entry: dict[str, Any]) -> list[Path]:
    """Those of its files that are there, in whatever length."""
    return [path for path in _read(entry).files if path.is_file()] if entry["path"] is not None else []


def _read(entry: dict[str, Any]) -> ModelFile:
    path = Path(entry["path"]) if entry["path"] is not None else None
    parts = tuple(PartFile(**part) for part in entry.get("parts", ()))
    named = part_name(path.name) if path is not None and parts else None
    if parts and path is not None and (named is None or [part.filename for part in parts] != named.siblings()):
        raise ValueError("parts of other names")
    return ModelFile(**entry | {"path": path, "parts": parts})
