"""Plans as files, which `plan --save` writes and `--plan` runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

PLAN_BYTES = 2**20  # no plan is longer

if TYPE_CHECKING:
    from edgellm.memory.plan import MemoryPlan
    from edgellm.memory.stored import plan_from_json


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

    from edgellm.memory.plan import PlanError

    for name, value in given.items():
        if value is not None:
            raise typer.BadParameter(f"the plan decides --{name.replace('_', '-')}: leave it out, or leave out --plan")
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(PLAN_BYTES))
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path} is not JSON: write it again with `edgellm plan --save {path}`") from error
    if not isinstance(data, dict):
        raise PlanError(f"{path} is no plan: write it with `edgellm plan --save {path}`")
    return plan_from_json(data)


def models_of(plan: MemoryPlan, model: str | None, draft: str | None) -> tuple[str, str]:
    """References of a plan's target and drafter ("none" for none), where the command names no others.

    Raises:
        PlanError: one of them has to be exported first; the message says how.
    """
    target = model or _made(plan.target_reference or plan.target, plan.target_obtain)
    if draft is not None or plan.drafter is None:
        return target, draft or "none"
    return target, _made(plan.drafter_reference or plan.drafter, plan.drafter_obtain)


def save(path: Path, plan: MemoryPlan) -> None:
    """Write a plan where `--save` says.

    Raises:
        typer.BadParameter, OSError: it is no regular file, or cannot be written.
    """
    import json

    from edgellm.cli._save import write_whole

    text = json.dumps(plan.to_json(), indent=2)
    write_whole(path, "--save", lambda aside: aside.write_text(text, encoding="utf-8"))


def _made(reference: str, obtain: str | None) -> str:
    from edgellm.memory.plan import PlanError

    if obtain is not None and not Path(reference).is_file():
        raise PlanError(obtain)
    return reference
