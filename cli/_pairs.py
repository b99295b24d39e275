"""The best pairs of the catalogue for a device: the largest target that fits first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.memory.device import Device
    from edgellm.memory.plan_request import PlanRequest
    from edgellm.memory.solve import Solution


def show(place: Device, ask: PlanRequest, *, as_json: bool) -> None:
    """Exit 3 where nothing fits; the JSON is then the plan that lacks least."""
    from edgellm.app.plans import best_pairs
    from edgellm.cli import _errors, _plan_view
    from edgellm.memory.units import format_bytes

    solved = best_pairs(place, ask)
    fitting = [solution for solution in solved if solution.plan.fits]
    if as_json:
        first, *others = fitting or [max(solved, key=lambda solution: solution.plan.headroom_bytes)]
        out.json(_plan_view.as_json(first, place, None, (), [solution.plan.to_json() for solution in others]))
    elif fitting:
        _table(place, fitting)
    if not fitting:
        room = format_bytes(place.usable_bytes)
        out.error(f"no model of the catalogue fits {place.name}: {room} for a program ({place.source})")
        raise typer.Exit(_errors.DOES_NOT_FIT)


def _table(place: Device, fitting: list[Solution]) -> None:
    from edgellm.memory.units import format_bytes

    rows = []
    for plan in (solution.plan for solution in fitting):
        drafter = f"\n  + {plan.drafter}" if plan.drafter else ""
        rows.append(
            (
                f"{plan.target}:{plan.quantisation}{drafter}",
                format_bytes(plan.required_bytes),
                f"{plan.n_ctx:,}",
                plan.settings.target.kv,
                f"{plan.tokens_per_s.value:.0f}" if plan.tokens_per_s else "?",
            )
        )
    out.text(f"what fits {place.name} ({format_bytes(place.usable_bytes)} for a program), largest first")
    out.table(["target, + drafter", "memory ", "context ", "cache", "about tok/s "], rows)
    out.console().print(f"[dim]{place.source}[/]")
