"""`edgellm plan`: what fits into a device's memory, line by line, before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.memory.buffers import Sizer
    from edgellm.memory.device import Device
    from edgellm.memory.plan import MemoryPlan
    from edgellm.memory.shape import ModelShape
    from edgellm.memory.solve import Ask, Solution


def plan(
    model: str = typer.Argument(
        None,
        envvar="EDGELLM_MODEL",
        show_envvar=False,
        show_default=False,
        help="Target: a catalogue name[:QUANT], a GGUF file, or a checkpoint's folder. Without one: the best pairs.",
    ),
    draft: str = typer.Option(
        None, "--draft", "-d", envvar="EDGELLM_DRAFT", help="Drafter, or `none`.", metavar="MODEL"
    ),
    mem: str = typer.Option(
        None, "--mem", envvar="EDGELLM_MEM", help="Plan for a device with this memory (6GB, 6GiB).", metavar="SIZE"
    ),
    budget: str = typer.Option(
        None, "--budget", envvar="EDGELLM_BUDGET", help="Plan for a program of this size.", metavar="SIZE"
    ),
    device: str = typer.Option(
        None, "--device", envvar="EDGELLM_DEVICE", help="Plan for a device of `edgellm devices`.", metavar="NAME"
    ),
    ctx: int = typer.Option(None, "--ctx", "-c", envvar="EDGELLM_CTX", min=16, help="Context in tokens.", metavar="N"),
    kv: str = typer.Option(None, "--kv", envvar="EDGELLM_KV", help="Type of the cache: f16, q8_0 or q4_0."),
    n_draft: int = typer.Option(
        None, "--n-draft", "-k", envvar="EDGELLM_N_DRAFT", min=0, max=64, help="Draft length, at most.", metavar="N"
    ),
    n_ubatch: int = typer.Option(
        None, "--ubatch", envvar="EDGELLM_UBATCH", min=1, max=4096, help="Tokens computed at once.", metavar="N"
    ),
    loading: str = typer.Option(
        None,
        "--load",
        envvar="EDGELLM_LOAD",
        help="Weights: packed by our kernels (the default), copied, or mapped.",
        show_default=False,
    ),
    probe: bool = typer.Option(False, "--probe", help="Ask llama.cpp for exact sizes; the files must be here."),
    explain: bool = typer.Option(False, "--explain", help="Show each trim: what it saved and what it cost."),
    matrix: str = typer.Option(
        None, "--matrix", help="Models against devices: names with commas between, or `all`.", metavar="DEVICES"
    ),
    calibrate: bool = typer.Option(
        False, "--calibrate", help="Run the plan here: measured memory and speed, kept for later plans."
    ),
    offline: bool = typer.Option(False, "--offline", envvar="EDGELLM_OFFLINE", help="Ask no server for a header."),
    save: Path = typer.Option(None, "--save", help="Write the plan as JSON, for `chat --plan`.", metavar="FILE"),
    output: Path = typer.Option(
        None, "--output", "-o", help="Write the matrix to a .csv, .json or .png file.", metavar="FILE"
    ),
    json_: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Plan memory: what fits, what each part takes, and how fast it will roughly be. Exit 0 fits, 3 does not."""
    from dataclasses import asdict, replace

    from edgellm.cli import _calibration, _errors
    from edgellm.cli._shapes import drafter_for, shape_of, smaller_than
    from edgellm.memory.solve import refusal, solve

    if calibrate and (matrix is not None or model is None or mem is not None or device is not None):
        raise typer.BadParameter("--calibrate runs one model here: give a MODEL, and --budget rather than --mem")
    ask = _ask(ctx, kv, n_draft, n_ubatch, loading, here=mem is None and device is None, keep=draft is not None)
    if matrix is not None:
        from edgellm.cli._matrix import show_matrix

        return show_matrix(matrix, model, draft, ask, output=output, as_json=json_)
    if output is not None:
        raise typer.BadParameter("--output goes with --matrix; a plan is written with --save")
    place = _device(mem, budget, device)
    if model is None:
        return _show_pairs(place, ask, json_)
    target = shape_of(model, ask=probe, offline=offline)
    drafter = drafter_for(target, draft, offline=offline)
    sizer = _probing(model, draft, target, drafter) if probe else None
    solution = solve(target, drafter, place, ask, sizer=sizer, smaller=smaller_than(target))
    if calibrate and solution.plan.fits:
        _calibration.run(solution.plan, model, draft)
    if place.kind == "machine" and (measured := _calibration.find(solution.plan)):
        solution = replace(solution, plan=_calibration.with_speed(solution.plan, measured))
    else:
        measured = None
    if save is not None and solution.plan.fits:
        _calibration.write_json(save, solution.plan.to_json())
    if json_:
        out.json({**_as_json(solution, place), "measured": asdict(measured) if measured else None})
    else:
        _show(solution.plan, place, explain=explain)
        if measured:
            out.text(_calibration.sentence(solution.plan, measured))
    if save is not None and solution.plan.fits:
        out.note(f"saved to {save}")
    if not solution.plan.fits:
        out.error(refusal(solution))
        raise typer.Exit(_errors.DOES_NOT_FIT)


def _ask(
    ctx: int | None,
    kv: str | None,
    n_draft: int | None,
    n_ubatch: int | None,
    loading: str | None,
    *,
    here: bool,
    keep: bool,
) -> Ask:
    import os
    from typing import cast, get_args

    from edgellm.cli._models import check_kv
    from edgellm.memory.cpu import usable_cores
    from edgellm.memory.plan import Loading
    from edgellm.memory.solve import Ask

    if loading is None:
        off = here and os.environ.get("EDGELLM_KERNELS", "").strip().lower() in ("off", "stock")
        loading = "copied" if off else "packed"
    if loading not in get_args(Loading):
        raise typer.BadParameter(f"{loading!r} is no way to load: take {', '.join(get_args(Loading))}")
    return Ask(
        n_ctx=ctx,
        kv=check_kv(kv) if kv is not None else None,
        n_draft=n_draft,
        n_ubatch=n_ubatch,
        loading=cast(Loading, loading),
        repack=loading == "copied",
        n_threads=usable_cores(),
        keep_drafter=keep,
    )


def _device(mem: str | None, budget: str | None, device: str | None) -> Device:
    from edgellm.memory.device import budget_device, find_device, sized_device, this_machine
    from edgellm.memory.units import parse_bytes

    if sum(given is not None for given in (mem, budget, device)) > 1:
        raise typer.BadParameter("give one of --mem, --budget and --device")
    if mem is not None:
        return sized_device(parse_bytes(mem))
    if budget is not None:
        return budget_device(parse_bytes(budget))
    return find_device(device) if device is not None else this_machine()


def _probing(model: str, draft: str | None, target: ModelShape, drafter: ModelShape | None) -> Sizer:
    """Sizes from llama.cpp itself; every different question is asked once."""
    import functools

    from edgellm.cli._shapes import path_of
    from edgellm.memory.buffers import BufferSizes, estimate
    from edgellm.memory.context import ContextSettings
    from edgellm.runtime.probe import probe

    paths = {target.name: path_of(model)}
    if drafter is not None:
        paths[drafter.name] = path_of(draft or drafter.name)
    for name in (name for name, path in paths.items() if path is None):
        out.warning(f"{name} is not on this machine, so its sizes come from formulas")

    @functools.cache
    def sizes(shape: ModelShape, settings: ContextSettings, repack: bool) -> BufferSizes:
        path = paths.get(shape.name)
        if path is None or not shape.exact:
            return estimate(shape, settings, repack)
        return probe(path, [settings], repack=repack)[0]

    return sizes


def _as_json(solution: Solution, place: Device) -> dict[str, Any]:
    from edgellm.memory.solve import describe

    nearest = solution.nearest
    return {
        **solution.plan.to_json(),
        "device": {"name": place.name, "total_bytes": place.total_bytes, "usable_bytes": place.usable_bytes},
        "nearest": {"options": describe(nearest), **nearest.to_json()} if nearest else None,
    }


_COLOURS = {
    "weights": "blue", "vocabulary": "cyan", "cache": "green", "compute": "yellow", "logits": "magenta",
    "candidates": "magenta", "runtime": "white", "unaccounted": "bright_black", "system reserve": "bright_black",
}  # fmt: skip


def _colour(line: str) -> str:
    return _COLOURS.get(line) or _COLOURS.get(line.split()[-1]) or _COLOURS["runtime"]


def _show(plan: MemoryPlan, place: Device, *, explain: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from edgellm.memory.units import format_bytes

    pair = f"{plan.target} {plan.quantisation}" + (f" drafted by {plan.drafter}" if plan.drafter else "")
    table = Table(box=box.SIMPLE_HEAD, title=f"{pair} on {place.name}", title_justify="left", pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("how" if explain else "share", overflow="fold")
    largest = max(line.n_bytes for line in plan.lines)
    for line in plan.lines:
        share = f"[{_colour(line.name)}]{_eighths(24 * line.n_bytes / largest)}[/]"
        how = f"[dim]{escape(line.formula)}[/]" if explain else share
        table.add_row(f"[{_colour(line.name)}]■[/] {line.name}", format_bytes(line.n_bytes), how)
    table.add_section()
    total = f"[bold]{format_bytes(plan.total_bytes)}[/]"
    table.add_row("[bold]  total[/]", total, f"of {format_bytes(plan.limit_bytes)}")
    out.console().print(table)
    _bar(plan)
    _summary(plan, place)
    if explain:
        _ladder(plan)


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
    scale = width / max(plan.limit_bytes, plan.total_bytes)
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


def _summary(plan: MemoryPlan, place: Device) -> None:
    from edgellm.memory.units import format_bytes

    settings = plan.settings
    console = out.console()
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
    console.print(", ".join(words))
    if speed := plan.tokens_per_s:
        console.print(f"about {speed.value:.1f} tok/s, {speed.plain:.1f} without drafting ({speed.kind})")
    if plan.bound_bytes:
        console.print(f"a draft model gains from {format_bytes(plan.bound_bytes)} of a program's memory on")
    console.print(f"[dim]{place.source}[/]")


def _cache_type(plan: MemoryPlan, role: str) -> str | None:
    """The type that an ONNX graph was exported with; None where it is a setting."""
    formula = next(line.formula for line in plan.lines if line.name == f"{role} cache")
    return formula.split(", ")[-1].removesuffix(" as exported") if formula.endswith(" as exported") else None


def _ladder(plan: MemoryPlan) -> None:
    from edgellm.memory.units import format_bytes

    rows = [(step.name, format_bytes(step.saved_bytes) if step.saved_bytes else "-", step.cost) for step in plan.steps]
    out.table(["step", "saves ", "costs"], rows, title="what was trimmed, in order")


def _show_pairs(place: Device, ask: Ask, as_json: bool) -> None:
    """The best pairs of the catalogue for a device: the largest target that fits first."""
    from edgellm.cli import _errors
    from edgellm.cli._shapes import drafter_for, of_entry
    from edgellm.export.catalogue import load_catalogue
    from edgellm.memory.solve import solve
    from edgellm.memory.units import format_bytes

    found: list[MemoryPlan] = []
    for entry in load_catalogue():
        if entry.facts is not None and entry.role == "target":
            target = of_entry(entry)
            solution = solve(target, drafter_for(target, None), place, ask)
            if solution.plan.fits:
                found.append(solution.plan)
    found.sort(key=lambda plan: plan.lines[0].n_bytes, reverse=True)
    if as_json:
        out.json([plan.to_json() for plan in found])
    elif found:
        out.table(
            ["target", "drafter", "memory ", "context ", "about "],
            [
                (
                    f"{plan.target}:{plan.quantisation}",
                    plan.drafter or "copying",
                    format_bytes(plan.process_bytes),
                    f"{plan.n_ctx:,} {plan.settings.target.kv}",
                    f"{plan.tokens_per_s.value:.0f} tok/s" if plan.tokens_per_s else "?",
                )
                for plan in found
            ],
            title=f"what fits {place.name} ({format_bytes(place.usable_bytes)} for a program), largest first",
        )
    if not found:
        out.error(f"no model of the catalogue fits {place.name}: {format_bytes(place.usable_bytes)} for a program")
        raise typer.Exit(_errors.DOES_NOT_FIT)
