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


class PullError(EdgellmError, RuntimeError):
    """A model could not be brought here; the message gives each source's reason."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on this disk."""

    path: Path
    name: str  # of the catalogue, or user/repo, or the file's stem
    quant: str | None
    n_bytes: int
    sha256: str | None  # None for a file named by its path
    licence: str | None
    source: str  # hf, pypi or path
    repo: str | None = None
    revision: str | None = None  # the commit, where the Hub told it

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
        return {key: asdict(ModelFile(**entry)) for key, entry in entries.items()}
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
    """The model of an entry, if its file is there in its full length."""
    if entry["path"] is None:
        return None
    path = Path(entry["path"])
    if not path.is_file() or path.stat().st_size != entry["n_bytes"]:
        return None
    return ModelFile(**entry | {"path": path})
