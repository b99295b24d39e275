"""`edgellm pick`: what fits this machine best for a task, and the chosen one pulled."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import _options as opt
from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.app.picking import Pick, Picks
    from edgellm.memory.device import Device


def _tasks(incomplete: str) -> list[str]:
    from edgellm.app.picking import TASKS

    return [task for task in TASKS if task.startswith(incomplete)]


def pick(
    task: Annotated[
        str, typer.Argument(help="general, code, small, or long (context).", autocompletion=_tasks)
    ] = "general",
    mem: opt.Mem = None,
    budget: opt.Budget = None,
    device: opt.DeviceName = None,
    ctx: opt.Ctx = None,
    kv: opt.Kv = None,
    token: opt.Token = None,
    yes: opt.Yes = False,
    json_: opt.Json = False,
) -> None:
    """Show which models fit this machine best, by their plans, and pull the one that is chosen. Exit 3 where none fits.

    On a terminal it asks which; --yes takes the first; --json only reports, unless --yes is there too.
    """
    from edgellm.app import picking, plans
    from edgellm.cli import _errors
    from edgellm.memory.units import format_bytes

    named = picking.task_of(task)
    place = plans.place_for(mem, budget, device)
    picks = picking.best_for(named, place, plans.plan_request(n_ctx=ctx, kv=kv, here=mem is None and device is None))
    if not picks.fitting:
        if json_:
            out.json(_report(picks, place, None))
        room = format_bytes(place.usable_bytes)
        out.error(f"no model of the catalogue for {named} fits {place.name}: {room} for a program ({place.source})")
        raise typer.Exit(_errors.DOES_NOT_FIT)
    if not json_:
        _table(picks, place)
    chosen = _chosen(picks.fitting, yes=yes, asks=not json_)
    pulled = _pulled(chosen, token) if chosen is not None else None
    if json_:
        out.json(_report(picks, place, pulled))


def _chosen(fitting: list[Pick], *, yes: bool, asks: bool) -> Pick | None:
    if yes:
        return fitting[0]
    if not asks:
        return None
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        out.note("`edgellm pull NAME` brings one here; --yes takes the first")
        return None
    most = len(fitting)
    answer: int = typer.prompt(f"Pull which, 1 to {most}, or 0 for none?", 1, err=True, type=int)
    if not 0 <= answer <= most:
        raise typer.BadParameter(f"{answer} is none of them: answer 1 to {most}, or 0")
    return fitting[answer - 1] if answer else None


def _pulled(chosen: Pick, token: str | None) -> dict[str, Any]:
    from edgellm.app import picking
    from edgellm.app.inventory import installed_json
    from edgellm.cli._listener import TERMINAL

    target, draft = picking.pull(chosen, token=token, listener=TERMINAL)
    out.note(f"`edgellm chat {chosen.entry.name}` talks with it")
    return {"target": installed_json(target), "draft": installed_json(draft) if draft else None}


def _report(picks: Picks, place: Device, pulled: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "task": picks.task,
        "device": {"name": place.name, "total_bytes": place.total_bytes, "usable_bytes": place.usable_bytes},
        "picks": [one.to_json() for one in picks.fitting],
        "too_large": picks.too_large,
        "unknown": picks.unknown,
        "pulled": pulled,
    }


def _table(picks: Picks, place: Device) -> None:
    from edgellm.memory.units import format_bytes

    rows = []
    for number, one in enumerate(picks.fitting, 1):
        plan, n_bytes = one.plan, one.entry.files[0].n_bytes
        rows.append(
            (
                number,
                f"{one.entry.name}:{plan.quantisation}",
                "here" if one.is_here else format_bytes(n_bytes) if n_bytes else "?",
                format_bytes(plan.required_bytes),
                f"{plan.n_ctx:,}",
                f"{plan.tokens_per_s.value:.0f}" if plan.tokens_per_s else "?",
                plan.drafter or "-",
                one.entry.licence,
            )
        )
    out.text(f"{picks.task}: what fits {place.name} ({format_bytes(place.usable_bytes)} for a program), best first")
    columns = [" ", "model", "download ", "memory ", "context ", "about tok/s ", "drafted by", "licence"]
    out.table(columns, rows)
    if picks.too_large:
        out.note(f"too large: {', '.join(picks.too_large)}")
    if picks.unknown:
        names = ", ".join(picks.unknown)
        out.note(
            f"not ranked, as their sizes are not known before a download: {names} (`edgellm plan NAME` asks the Hub)"
        )
    out.console().print(f"[dim]{place.source}[/]")
