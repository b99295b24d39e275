"""Memory against context: a model's lines by the cache's type, with and without its drafter, and the device's edge."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.app.contexts import ContextLine
    from edgellm.memory.device import Device
    from edgellm.memory.plan_request import PlanRequest

_INKS = {"f16": "#1b4965", "q8_0": "#2a9d8f", "q4_0": "#e07a1f"}
_TERMINAL = {"f16": "blue", "q8_0": "green", "q4_0": "yellow"}
_EDGE = "#b3261e"
CHART_WIDTH, CHART_HEIGHT = 33, 12  # characters of one of the two charts


def show_contexts(
    model: str, draft: str | None, ask: PlanRequest, place: Device, *, offline: bool, output: Path | None, as_json: bool
) -> None:
    """A chart and a table; or the cells as JSON, CSV, or a picture.

    Raises:
        typer.BadParameter: `output` is no format of a matrix, or no regular file.
    """
    from edgellm.app.contexts import context_lines
    from edgellm.cli._matrix import check_format, write

    check_format(output)
    lines = context_lines(model, draft, ask, place, offline=offline)
    cells = [asdict(cell) for line in lines for cell in line.cells]
    if output is not None:
        write(output, cells, lambda path: _draw(path, lines, place))
        out.note(f"written to {output}")
    if as_json:
        edge = {"name": place.name, "total_bytes": place.total_bytes, "usable_bytes": place.usable_bytes}
        out.json({"device": edge, "cells": cells})
    elif output is None:
        _print(lines, place)


def _groups(lines: list[ContextLine]) -> list[list[ContextLine]]:
    """Alone, and with the drafter."""
    return [[line for line in lines if line.drafter == drafter] for drafter in dict.fromkeys(x.drafter for x in lines)]


def _title(group: list[ContextLine]) -> str:
    return f"with {group[0].drafter}" if group[0].drafter else "alone"


def _print(lines: list[ContextLine], place: Device) -> None:
    from edgellm.memory.units import format_bytes

    first = lines[0].cells[0]
    out.text(f"{first.model} {first.quantisation} on {place.name}: memory of the program against its context")
    _chart(lines, place)
    contexts = [f"{cell.n_ctx:,}{'*' if cell.beyond_training else ''} " for cell in lines[0].cells]
    for group in _groups(lines):
        rows = [
            (line.kv, *(f"{format_bytes(cell.n_bytes)}{'' if cell.fits else '!'}" for cell in line.cells))
            for line in group
        ]
        out.table([_title(group), *contexts], rows)
    out.text(f"edge: {format_bytes(place.usable_bytes)} for a program; !: beyond it")
    if any(cell.beyond_training for cell in lines[0].cells):
        out.text("*: longer than the model was trained for")
    out.console().print(f"[dim]{place.source}[/]")


def _chart(lines: list[ContextLine], place: Device) -> None:
    """Two charts of characters beside each other: alone, and with the drafter."""
    from rich.text import Text

    from edgellm.memory.units import format_bytes

    groups = _groups(lines)
    top = _top(lines, place)
    charts = [_canvas(group, top, place) for group in groups]
    console = out.console()
    titles = "  ".join(f"{_title(group)[:CHART_WIDTH]:{CHART_WIDTH}}" for group in groups)
    console.print(Text(" " * 11 + titles, style="bold"))
    for row in range(CHART_HEIGHT):
        label = format_bytes(round(top * (CHART_HEIGHT - row) / CHART_HEIGHT)) if row % 3 == 0 else ""
        console.print(Text.assemble(f"{label:>9} ┤", *(piece for chart in charts for piece in (chart[row], "  "))))
    axis = "".join(f"{cell.n_ctx // 1024}k".ljust(_step(len(lines[0].cells))) for cell in lines[0].cells)
    axis = f"{axis[:CHART_WIDTH]:{CHART_WIDTH}}"
    console.print(Text(" " * 11 + "  ".join(axis for _ in charts), style="dim"))
    words = [(f"━ {kv}  ", _TERMINAL[kv]) for kv in dict.fromkeys(line.kv for line in lines)]
    console.print(Text.assemble(" " * 11, *words, ("╌ what the device leaves a program", "red")))


def _top(lines: list[ContextLine], place: Device) -> int:
    """The end of the axis: all lines, and the edge where it is not far above them."""
    most = max(cell.n_bytes for line in lines for cell in line.cells)
    return round(1.05 * (max(most, place.usable_bytes) if place.usable_bytes < 1.6 * most else most))


def _step(n_contexts: int) -> int:
    return (CHART_WIDTH - 3) // max(n_contexts - 1, 1)


def _canvas(group: list[ContextLine], top: int, place: Device) -> list[Any]:
    """One chart: the type's lines drawn over the edge, the cheapest type last."""
    from rich.text import Text

    letters = [[(" ", "")] * CHART_WIDTH for _ in range(CHART_HEIGHT)]

    def row_of(n_bytes: float) -> int | None:
        row = CHART_HEIGHT - 1 - math.floor(n_bytes / top * CHART_HEIGHT)
        return row if 0 <= row < CHART_HEIGHT else None

    edge = row_of(place.usable_bytes)
    if edge is not None:
        letters[edge] = [("╌", "red")] * CHART_WIDTH
    step = _step(len(group[0].cells))
    for line in group:
        for left, cell in enumerate(line.cells[:-1]):
            for offset in range(step + 1):
                share = offset / step
                size = cell.n_bytes + (line.cells[left + 1].n_bytes - cell.n_bytes) * (2**share - 1)
                row = row_of(size)
                if row is not None:
                    mark = "●" if offset in (0, step) else "━"
                    letters[row][left * step + offset] = (mark, _TERMINAL[line.kv])
    return [Text.assemble(*row) for row in letters]


def _draw(path: Path, lines: list[ContextLine], place: Device) -> None:
    """Panels with one axis: alone, and with the drafter; lines are named at their ends."""
    from edgellm.cli._matrix import figure

    groups = _groups(lines)
    unit, name = (10**9, "GB") if place.decimal else (2**30, "GiB")
    picture = figure(4.6 * len(groups) + 0.8, 4.4)
    axes = picture.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    first = lines[0].cells[0]
    top = _top(lines, place) / unit
    for panel, group in zip(axes, groups, strict=True):
        for line in group:
            _draw_line(panel, line, unit)
        _label_ends(panel, group, unit, top)
        edge = place.usable_bytes / unit
        if edge <= top:
            panel.axhline(edge, color=_EDGE, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
            panel.axhspan(edge, top, color=_EDGE, alpha=0.06, linewidth=0, zorder=0)
        panel.set_title(_title(group), fontsize=10, loc="left")
        panel.set_xscale("log", base=2)
        contexts = [cell.n_ctx for cell in group[0].cells]
        panel.set_xticks(contexts, [f"{n // 1024}k" if n % 1024 == 0 else f"{n:,}" for n in contexts])
        panel.set_xlim(contexts[0] * 0.88, contexts[-1] * 2.1)
        panel.minorticks_off()
        panel.set_ylim(0, top)
        panel.set_xlabel("context, tokens", fontsize=9)
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=9, length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    axes[0].set_ylabel(f"memory of the program, {name}", fontsize=9)
    words = f"{place.name} leaves a program {place.usable_bytes / unit:.2f} {name}"
    picture.text(0.99, 0.975, words, ha="right", va="top", fontsize=9, color=_EDGE)
    picture.text(0.99, 0.93, "hollow: does not fit", ha="right", va="top", fontsize=8, color="#555555")
    picture.suptitle(f"{first.model} {first.quantisation}", fontsize=12, fontweight="bold", x=0.01, ha="left")
    picture.savefig(path, dpi=160)


def _draw_line(panel: Any, line: ContextLine, unit: int) -> None:
    """Hollow points do not fit."""
    contexts, sizes = [cell.n_ctx for cell in line.cells], [cell.n_bytes / unit for cell in line.cells]
    ink = _INKS[line.kv]
    faces = [ink if cell.fits else "white" for cell in line.cells]
    panel.plot(contexts, sizes, color=ink, linewidth=1.8, zorder=2)
    panel.scatter(contexts, sizes, s=26, facecolors=faces, edgecolors=ink, linewidths=1.4, zorder=3)


def _label_ends(panel: Any, group: list[ContextLine], unit: int, top: float) -> None:
    """The type and the size at the end of each line, moved apart where they would touch."""
    least = 0.055 * top
    at = -least
    for line in sorted(group, key=lambda line: line.cells[-1].n_bytes):
        size = line.cells[-1].n_bytes / unit
        at = max(size, at + least)
        panel.annotate(
            f"{line.kv}  {size:.2f}", (line.cells[-1].n_ctx * 1.07, at), va="center", fontsize=9, color=_INKS[line.kv]
        )
