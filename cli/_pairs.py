"""The best pairs of the catalogue for a device: the largest target that fits first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.memory.device import Device
    from edgellm.memory.plan_request import PlanRequest
    from edgellm.memory.solve import Solution


def show(place: Device, ask: PlanRequest, *, as_json: bool) -> None:
    """Exit 3 where nothing fits; the JSON is then the plan that lacks least."""
    from edgellm.cli import _errors, _plan_view
    from edgellm.memory.units import format_bytes

    solved = _solutions(place, ask)
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


def _solutions(place: Device, ask: PlanRequest) -> list[Solution]:
    """The plans of all targets with sizes, by the bytes of their weights, largest first."""
    import functools

    from edgellm.cli._shapes import drafter_for, look_up, of_name, with_references
    from edgellm.export.obtain.catalogue import load_catalogue
    from edgellm.memory.solve import solve

    look, found = functools.cache(look_up), []
    for entry in load_catalogue():
        if entry.facts is not None and entry.role == "target":
            target = of_name(entry.name)
            drafter = drafter_for(target.shape, None, look=look)
            solution = solve(target.shape, drafter.shape if drafter else None, place, ask)
            found.append(replace(solution, plan=with_references(solution.plan, target, drafter)))
    return sorted(found, key=lambda solution: solution.plan.lines[0].n_bytes, reverse=True)


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
