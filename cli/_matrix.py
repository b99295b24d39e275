"""Models against devices: as a table, CSV, JSON or a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgellm.cli._output import out
from edgellm.memory.limits import N_CTX

if TYPE_CHECKING:
    from edgellm.cli._shapes import Known
    from edgellm.memory.device import Device
    from edgellm.memory.plan import MemoryPlan
    from edgellm.memory.plan_request import PlanRequest
    from edgellm.memory.shape import ModelShape

FORMATS = (".csv", ".json", ".png", ".svg")


def show_matrix(
    names: str, model: str | None, draft: str | None, ask: PlanRequest, *, output: Path | None, as_json: bool
) -> None:
    """One plan for each model and device; what does not fit is a cell, not an error."""
    import functools

    from edgellm.cli._shapes import drafter_for, look_up, smaller_than
    from edgellm.memory.solve import solve

    check_format(output)
    places = _places(names)
    look, rows = functools.cache(look_up), []
    for target in _targets(model):
        drafter, smaller = drafter_for(target.shape, draft, look=look), smaller_than(target)
        shape = drafter.shape if drafter else None
        plans = [solve(target.shape, shape, place, ask, smaller=smaller).plan for place in places]
        rows.append((target.shape, plans))
    cells = [_cell(target, place, plan) for target, plans in rows for place, plan in zip(places, plans, strict=True)]
    if output is not None:
        write(output, cells, lambda path: _draw(path, places, rows))
        out.note(f"written to {output}")
    if as_json:
        return out.json(cells)
    if output is None:
        _table(places, rows)
        out.note("tok/s estimated; c: copying instead of a draft model, q8/q4: smaller cache, -: does not fit")


def are_devices(names: str) -> bool:
    """Whether a value of `--matrix` can be meant as devices, at least one of which is known."""
    from edgellm.memory.device import known_devices

    known = {device.name for device in known_devices()} | {"all", "here"}
    return any(name.strip().casefold() in known for name in names.split(","))


def check_format(output: Path | None) -> None:
    """Raises typer.BadParameter: not a format that a matrix is written in."""
    if output is not None and output.suffix not in FORMATS:
        raise typer.BadParameter(f"--output {output} must end in {', '.join(FORMATS)}")


def _table(places: list[Device], rows: list[tuple[ModelShape, list[MemoryPlan]]]) -> None:
    """Devices by number where their names would not fit beside each other."""
    width = max(len(target.name) for target, _ in rows) + sum(len(place.name) + 2 for place in places)
    heads = [place.name for place in places]
    if width > out.console().width:
        heads = [str(number) for number, _ in enumerate(places, 1)]
        for number, place in enumerate(places, 1):
            out.text(f"{number:>3} {place.name}")
    table = [(target.name, *(_word(target, plan) for plan in plans)) for target, plans in rows]
    out.table(["model", *(f"{head} " for head in heads)], table)


def _places(names: str) -> list[Device]:
    from edgellm.memory.device import find_device, known_devices

    if names.casefold() == "all":
        return list(known_devices())
    return [find_device(name.strip()) for name in names.split(",") if name.strip()]


def _targets(model: str | None) -> list[Known]:
    from edgellm.cli._shapes import look_up, of_name
    from edgellm.export.obtain.catalogue import load_catalogue

    if model is not None:
        return [look_up(name.strip()) for name in model.split(",") if name.strip()]
    names = [entry.name for entry in load_catalogue() if entry.facts is not None and entry.role == "target"]
    return sorted(map(of_name, names), key=lambda target: target.shape.weight_bytes)


def _word(target: ModelShape, plan: MemoryPlan) -> str:
    """A cell of the table: speed and what was given up for it."""
    if not plan.fits:
        return "-"
    marks = [] if plan.drafter else ["c"]
    if plan.settings.target.kv != "f16":
        marks.append(plan.settings.target.kv[:2])
    if plan.n_ctx < min(N_CTX, target.n_ctx_train):
        marks.append(f"{plan.n_ctx}")
    if plan.quantisation != target.quantisation:
        marks.append(plan.quantisation)
    return " ".join([f"{plan.tokens_per_s.value:.0f}" if plan.tokens_per_s else "?", *marks])


def _cell(target: ModelShape, place: Device, plan: MemoryPlan) -> dict[str, Any]:
    return {
        "model": target.name,
        "quantisation": plan.quantisation,
        "device": place.name,
        "fits": plan.fits,
        "total_bytes": plan.total_bytes,
        "limit_bytes": plan.limit_bytes,
        "drafter": plan.drafter,
        "n_ctx": plan.n_ctx,
        "kv": plan.settings.target.kv,
        "n_draft": plan.n_draft,
        "tokens_per_s": plan.tokens_per_s.value if plan.fits and plan.tokens_per_s else None,
    }


def write(path: Path, cells: list[dict[str, Any]], draw: Callable[[Path], None]) -> None:
    """The cells as .csv or .json, or the picture of them; whole or not at all."""
    from edgellm.cli._save import write_whole

    def fill(aside: Path) -> None:
        import csv
        import json

        if path.suffix in (".png", ".svg"):
            return draw(aside)
        with aside.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".json":
                json.dump(cells, file, indent=2)
            else:
                writer = csv.DictWriter(file, list(cells[0]))
                writer.writeheader()
                writer.writerows(cells)

    write_whole(path, "--output", fill)


def figure(width: float, height: float) -> Any:
    """An empty picture, inches.

    Raises:
        typer.BadParameter: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise typer.BadParameter("a picture needs matplotlib: pip install 'edgellm[plots]', or write .csv") from error
    return Figure(figsize=(width, height), layout="constrained")


def _draw(path: Path, places: list[Device], rows: list[tuple[ModelShape, list[MemoryPlan]]]) -> None:
    picture = figure(2 + 0.55 * len(places), 1.8 + 0.32 * len(rows))
    axes = picture.add_subplot()
    speeds = [[p.tokens_per_s.value if p.fits and p.tokens_per_s else 0.0 for p in plans] for _, plans in rows]
    axes.imshow([[min(speed, 60) for speed in row] for row in speeds], cmap="YlGn", vmin=0, vmax=80, aspect="auto")
    for y, (target, plans) in enumerate(rows):
        for x, plan in enumerate(plans):
            axes.text(x, y, _word(target, plan), ha="center", va="center", fontsize=6)
    axes.set_xticks(range(len(places)), [place.name for place in places], rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(rows)), [target.name for target, _ in rows], fontsize=7)
    axes.set_title("estimated tok/s; c: copying, -: does not fit", fontsize=8)
    picture.savefig(path, dpi=160)
