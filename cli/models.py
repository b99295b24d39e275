"""`edgellm list`, `show` and `rm`: what is on this machine and what could be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.export.store import ModelFile


def as_json(model: ModelFile) -> dict[str, Any]:
    """An installed model for machines. Sizes in bytes."""
    from dataclasses import asdict

    return {"reference": model.reference, **asdict(model), "path": str(model.path)}
