"""Draft heads that ship with a target: inside its file (MTP), or in a file that lies beside it (an assistant)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.app.defaults import BadSetting

if TYPE_CHECKING:
    from edgellm.export.obtain.store import ModelFile
    from edgellm.memory.gguf import GgufHeader


def is_own(draft: str | None) -> bool:
    """Whether what is named as the drafter is the head inside the target's file."""
    from edgellm.memory.draft_heads import OWN_HEAD

    return draft is not None and draft.casefold() == OWN_HEAD


def has_own(path: Path) -> bool:
    """Whether a file has a head inside that drafts here."""
    from edgellm.memory.draft_heads import has_head

    header = _header(path)
    return header is not None and has_head(header)


def is_head(path: Path) -> bool:
    """Whether a file holds a draft head alone, which drafts for the model that it was made for."""
    from edgellm.memory.draft_heads import is_head_alone

    header = _header(path)
    return header is not None and is_head_alone(header)


def drafts_itself(target: ModelFile, draft: str | None, *, n_parallel: int = 1) -> bool:
    """Whether the target's own head drafts: where it is named, or nothing is and there is one.

    With several conversations at once it does not: each would need a pass of the head for itself.

    Raises:
        BadSetting: it is named, and the file has none that drafts here; the message says why.
    """
    if draft is not None and not is_own(draft):
        return False
    if draft is None:
        return n_parallel == 1 and has_own(target.path)
    from edgellm.memory.draft_heads import why_none

    header = _header(target.path)
    why = why_none(header) if header is not None else f"{target.name} is no GGUF file, and has no draft head inside"
    if why is not None:
        raise BadSetting(why)
    return n_parallel == 1


def beside(target: ModelFile) -> Path | None:
    """The assistant that lies in a target's folder and was made for it; None where there is none."""
    from edgellm.memory.draft_heads import ASSISTANTS, serves

    header = _header(target.path)
    if header is None or header.architecture not in ASSISTANTS.values():
        return None
    for path in sorted(target.path.parent.glob("*.gguf"))[:_MOST_FILES]:
        if path != target.path and (other := _header(path)) is not None and serves(other, header):
            return path
    return None


_MOST_FILES = 64  # of a folder that are looked into


def _header(path: Path) -> GgufHeader | None:
    """None where it is no GGUF file, or a damaged one, which the engine refuses with a reason."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _read(path, status.st_mtime_ns, status.st_size) if path.is_file() else None


@functools.lru_cache(maxsize=2)
def _read(path: Path, mtime_ns: int, n_bytes: int) -> GgufHeader | None:
    """A vocabulary takes a tenth of a second to read, and the same file is asked about several times."""
    from edgellm.memory.gguf import GgufError
    from edgellm.memory.split import read_model

    try:
        return read_model(path)
    except (GgufError, OSError):
        return None
