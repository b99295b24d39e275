"""A plan for people and for machines: what was lost first, then the lines, the bar, and what to do with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from edgellm.cli._output import out

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgellm.memory.device import Device
    from edgellm.memory.plan import MemoryPlan
    from edgellm.memory.shape import ModelShape
    from edgellm.memory.solve import Solution
    from edgellm.runtime.bringup.calibrate import Measurement


def remarks(plan: MemoryPlan, target: ModelShape) -> list[str]:
    """What a user should know before running it, a sentence each."""
    said = [sentence for sentence in (plan.target_obtain, plan.drafter_obtain) if sentence and plan.fits]
    if plan.n_ctx > target.n_ctx_train and not target.has_encoder:
        said.append(
            f"{plan.target} was trained for {target.n_ctx_train:,} tokens: `chat` makes its context no longer than that"
        )
    for name, n in plan.settings.target.placed:
        remote = next((device.remote for device in plan.devices if device.name == name), None)
        if remote is not None:
            speed = f", {remote.link_bytes_s / 1e6:,.0f} MB/s" if remote.link_bytes_s else ""
            said.append(f"{n} layers go to {name}: {1000 * remote.round_trip_s:.1f} ms there and back{speed}")
    return said


def as_json(
    solution: Solution, place: Device, measured: Measurement | None, remarks: Sequence[str], others: Sequence[Any] = ()
) -> dict[str, Any]:
    """One shape for every report: a plan, where it is for, and other plans of the same device."""
    from edgellm.memory.solve import describe

    nearest = solution.nearest
    return {
        **solution.plan.to_json(),
        "remarks": list(remarks),
        "device": {"name": place.name, "total_bytes": place.total_bytes, "usable_bytes": place.usable_bytes},
        "nearest": {"options": describe(nearest), **nearest.to_json()} if nearest else None,
        "measured": asdict(measured) if measured else None,
        "others": list(others),
    }


def save(path: Path, plan: MemoryPlan) -> None:
    """Write a plan where `--save` says.

    Raises:
        typer.BadParameter, OSError: it is no regular file, or cannot be written.
    """
    import json

    from edgellm.cli._save import write_whole

    text = json.dumps(plan.to_json(), indent=2)
    write_whole(path, "--save", lambda aside: aside.write_text(text, encoding="utf-8"))


def end(solution: Solution) -> None:
    """Exit 3 with a remedy where the plan does not fit."""
    from edgellm.cli import _errors
    from edgellm.memory.solve import refusal

    if not solution.plan.fits:
        out.error(refusal(solution))
        raise typer.Exit(_errors.DOES_NOT_FIT)


def show(
    plan: MemoryPlan,
    place: Device,
    target: ModelShape,
    measured: Measurement | None,
    said: Sequence[str],
    *,
    explain: bool,
) -> None:
    """The plan of a target, as it was asked for, in the terminal."""
    from edgellm.app import calibration

    for sentence in plan.lost:
        out.text(sentence)
    _lines(plan, place, explain=explain)
    _bar(plan)
    _summary(plan, place, target.quantisation, said)
    if explain:
        _ladder(plan)
    if measured:
        out.text(calibration.sentence(plan, measured))


_COLOURS = {
    "weights": "blue", "adapters": "blue", "vocabulary": "cyan", "cache": "green", "compute": "yellow",
    "logits": "magenta", "candidates": "magenta", "runtime": "white", "unaccounted": "bright_black",
    "margin": "bright_black", "system reserve": "bright_black",
}  # fmt: skip


def _colour(line: str) -> str:
    return _COLOURS.get(line) or _COLOURS.get(line.split()[-1]) or _COLOURS["runtime"]


def _lines(plan: MemoryPlan, place: Device, *, explain: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from edgellm.memory.units import format_bytes

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("how" if explain else "share", overflow="fold")
    largest = max((line.n_bytes for line in plan.lines), default=0) or 1
    for line in plan.lines:
        share = f"[{_colour(line.name)}]{_eighths(24 * line.n_bytes / largest)}[/]"
        how = f"[dim]{escape(line.formula)}[/]" if explain else share
        table.add_row(f"[{_colour(line.name)}]■[/] {line.name}", format_bytes(line.n_bytes), how)
    table.add_section()
    total = f"[bold]{format_bytes(plan.total_bytes)}[/]"
    table.add_row("[bold]  total[/]", total, f"of {format_bytes(plan.limit_bytes)}")
    pair = f"{plan.target} {plan.quantisation}" + (f" drafted by {plan.drafter}" if plan.drafter else "")
    out.text(f"{pair} on {place.name}")
    out.console().print(table)


def _eighths(length: float) -> str:
    """A bar of so many characters, to an eighth of one."""
    whole = int(length)
    return "█" * whole + " ▏▎▍▌▋▊▉"[int((length - whole) * 8)].strip() or "▏"


def _bar(plan: MemoryPlan) -> None:
    """All of the memory as one bar: a colour a part, what is free in dots, what is too much in red."""
    from rich.text import Text

    from edgellm.memory.units import format_bytes

    console = out.console()
    width = max(min(console.width if console.is_terminal else 80, 100) - 2, 20)
    scale = width / max(plan.limit_bytes, plan.total_bytes, 1)
    bar, drawn, reached = Text(), 0, 0
    for line in plan.lines:
        reached += line.n_bytes
        end = round(reached * scale)
        bar.append("█" * max(end - drawn, 0), style=_colour(line.name))
        drawn = max(end, drawn)
    bar.append("·" * max(width - drawn, 0), style="dim")
    if not plan.fits:
        edge = round(plan.limit_bytes * scale)
        bar = Text.assemble(bar[:edge], ("▓" * max(drawn - edge, 1), "red"))
    console.print(bar)
    room = (
        f"{format_bytes(plan.headroom_bytes)} free" if plan.fits else f"{format_bytes(-plan.headroom_bytes)} too much"
    )
    console.print(
        Text(f"{'fits' if plan.fits else 'does not fit'}: {room}", style="green" if plan.fits else "bold red")
    )


def _summary(plan: MemoryPlan, place: Device, quantisation: str, remarks: Sequence[str]) -> None:
    from edgellm.memory.units import format_bytes

    settings = plan.settings
    words = [
        f"context {settings.target.n_ctx:,}",
        f"cache {_cache_type(plan, 'target') or settings.target.kv}",
        f"drafts of at most {settings.n_draft}" if settings.n_draft else "no drafting",
        f"batch {settings.target.n_ubatch}",
    ]
    if own := settings.drafter:
        words.append(
            f"drafter: window {own.n_ctx:,}, cache {_cache_type(plan, 'drafter') or own.kv}, batch {own.n_ubatch}"
        )
    out.text(", ".join(words))
    if plan.changes:
        out.text(f"given up to fit: {', '.join(plan.changes)}")
    if plan.needed_bytes is not None:
        at = "" if plan.quantisation == quantisation else f" at {quantisation}"
        out.text(
            f"the program takes {format_bytes(plan.required_bytes)} like this, and needs at least "
            f"{format_bytes(plan.needed_bytes)}{at}"
        )
    for sentence in remarks:
        out.text(sentence)
    if (speed := plan.tokens_per_s) and speed.value > speed.plain:
        out.text(f"about {speed.value:.1f} tok/s, {speed.plain:.1f} without drafting ({speed.kind})")
    elif speed:
        out.text(f"about {speed.value:.1f} tok/s ({speed.kind})")
    if plan.bound_bytes:
        out.text(f"a draft model gains from {format_bytes(plan.bound_bytes)} of a program's memory on")
    out.console().print(f"[dim]{place.source}[/]")


def _cache_type(plan: MemoryPlan, role: str) -> str | None:
    """The type that an ONNX graph was exported with; None where it is a setting."""
    formula = next(line.formula for line in plan.lines if line.name == f"{role} cache")
    return formula.split(", ")[-1].removesuffix(" as exported") if formula.endswith(" as exported") else None


def _ladder(plan: MemoryPlan) -> None:
    from edgellm.memory.units import format_bytes

    rows = [(step.name, format_bytes(step.saved_bytes) if step.saved_bytes else "-", step.cost) for step in plan.steps]
    out.table(["step", "saves ", "costs"], rows, title="what was trimmed, in order")
