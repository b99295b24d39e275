"""Plans as files, which `plan --save` writes and `--plan` runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from edgellm.memory.plan import MemoryPlan


def read_plan(path: Path, **given: object) -> MemoryPlan:
    """The plan of a file.

    Args:
        given: options of the command that a plan decides, None where they were not given.

    Raises:
        typer.BadParameter: one of them was given too.
        PlanError: the file is no plan.
        OSError: it cannot be read.
    """
    import json

    from edgellm.memory.plan import MemoryPlan, PlanError

    for name, value in given.items():
        if value is not None:
            raise typer.BadParameter(f"the plan decides --{name.replace('_', '-')}: leave it out, or leave out --plan")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path} is not JSON: write it again with `edgellm plan --save {path}`") from error
    if not isinstance(data, dict):
        raise PlanError(f"{path} is no plan: write it with `edgellm plan --save {path}`")
    return MemoryPlan.from_json(data)
