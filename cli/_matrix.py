"""Models against devices: as a table, CSV, JSON or a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.app.matrix import Matrix
    from edgellm.memory.plan import MemoryPlan
    from edgellm.memory.plan_request import PlanRequest
    from edgellm.memory.shape import ModelShape

FORMATS = (".csv", ".json", ".png", ".svg")


def show_matrix(
    names: str, model: str | None, draft: str | None, ask: PlanRequest, *, output: Path | None, as_json: bool
) -> None:
    """A table, or the cells as JSON, CSV, or a picture.

    Raises:
        typer.BadParameter: `output` is no format of a matrix, or no regular file.
    """
    from edgellm.app.matrix import matrix

    check_format(output)
    found = matrix(names, model, draft, ask)
    if output is not None:
        write(output, found.cells(), lambda path: _draw(path, found))
        out.note(f"written to {output}")
    if as_json:
        return out.json(found.cells())
    if output is None:
        _table(found)
        out.note("tok/s estimated; c: copying instead of a draft model, q8/q4: smaller cache, -: does not fit")


def check_format(output: Path | None) -> None:
    """Raises typer.BadParameter: not a format that a matrix is written in."""
    if output is not None and output.suffix not in FORMATS:
        raise typer.BadParameter(f"--output {output} must end in {', '.join(FORMATS)}")


def _table(matrix: Matrix) -> None:
    """Devices by number where their names would not fit beside each other."""
    places, rows = matrix.places, matrix.rows
    width = max(len(target.name) for target, _ in rows) + sum(len(place.name) + 2 for place in places)
    heads = [place.name for place in places]
    if width > out.console().width:
        heads = [str(number) for number, _ in enumerate(places, 1)]
        for number, place in enumerate(places, 1):
            out.text(f"{number:>3} {place.name}")
    table = [(target.name, *(_word(target, plan) for plan in plans)) for target, plans in rows]
    out.table(["model", *(f"{head} " for head in heads)], table)


def _word(target: ModelShape, plan: MemoryPlan) -> str:
    """A cell of the table: speed and what was given up for it."""
    if not plan.fits:
        return "-"
    marks = [] if plan.drafter else ["c"]
    if plan.settings.target.kv != "f16":
        marks.append(plan.settings.target.kv[:2])
    if plan.n_ctx < min(4096, target.n_ctx_train):
        marks.append(f"{plan.n_ctx}")
    if plan.quantisation != target.quantisation:
        marks.append(plan.quantisation)
    return " ".join([f"{plan.tokens_per_s.value:.0f}" if plan.tokens_per_s else "?", *marks])


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


def _draw(path: Path, matrix: Matrix) -> None:
    places, rows = matrix.places, matrix.rows
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
