"""`edgellm plan`: what fits into a device's memory, line by line, before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from edgellm.cli._lora import lora_option
from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.app.plans import PlannedPair
    from edgellm.memory.device import Device
    from edgellm.memory.plan_request import PlanRequest

CONTEXTS = "contexts"  # what `--matrix` without a value shows


class PlanCommand(TyperCommand):
    """`--matrix` may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        whole: list[str] = []
        for index, word in enumerate(args):
            whole.append(word)
            following = args[index + 1] if index + 1 < len(args) else "-"
            if word == "--matrix" and following.startswith("-"):
                whole.append(CONTEXTS)
        return super().parse_args(ctx, whole)


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
    lora: list[str] = typer.Option(
        [], "--lora", help="Count an adapter of the target too.", metavar="FILE[:SCALE]", callback=lora_option
    ),
    mem: str = typer.Option(
        None,
        "--mem",
        envvar="EDGELLM_MEM",
        help="Plan for a device with this memory (6GB, 6GiB), half of it a program's.",
        metavar="SIZE",
    ),
    budget: str = typer.Option(
        None, "--budget", envvar="EDGELLM_BUDGET", help="Plan for a program of this size.", metavar="SIZE"
    ),
    device: str = typer.Option(
        None, "--device", envvar="EDGELLM_DEVICE", help="Plan for a device of `edgellm devices`.", metavar="NAME"
    ),
    ctx: int = typer.Option(
        None, "--ctx", "-c", envvar="EDGELLM_CTX", min=16, max=2**24, help="Context in tokens.", metavar="N"
    ),
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
        None,
        "--matrix",
        help="Memory against context; or, with devices' names and commas between (or `all`), models against devices.",
        metavar="[DEVICES]",
    ),
    calibrate: bool = typer.Option(
        False, "--calibrate", help="Run the plan here: measured memory and speed, kept for later plans."
    ),
    offline: bool = typer.Option(False, "--offline", envvar="EDGELLM_OFFLINE", help="Ask no server for a header."),
    save: Path = typer.Option(
        None, "--save", help="Write the plan as JSON, for `chat --plan`; `-` for stdout.", metavar="FILE"
    ),
    output: Path = typer.Option(
        None, "--output", "-o", help="Write the matrix to a .png, .svg, .csv or .json file.", metavar="FILE"
    ),
    json_: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Plan memory: what fits, what each part takes, and how fast it will roughly be. Exit 0 fits, 3 does not."""
    from edgellm.app import plans
    from edgellm.app.adapters import loras
    from edgellm.cli import _pairs
    from edgellm.cli._listener import TERMINAL
    from edgellm.cli._save import destination

    if calibrate and (matrix is not None or model is None or mem is not None or device is not None):
        raise typer.BadParameter("--calibrate runs one model here: give a MODEL, and --budget rather than --mem")
    to_stdout = save is not None and str(save) == "-"
    if save is not None:
        if model is None or matrix is not None:
            raise typer.BadParameter("--save writes the plan of one model: give a MODEL, and no --matrix")
        if to_stdout and json_:
            raise typer.BadParameter("--save - and --json both print JSON: take one of them")
        if not to_stdout:
            destination(save, "--save")
    ask = plans.plan_request(
        n_ctx=ctx,
        kv=kv,
        n_draft=n_draft,
        n_ubatch=n_ubatch,
        loading=loading,
        here=mem is None and device is None,
        keep_drafter=draft is not None,
    )
    if matrix is not None:
        place = plans.place_for(mem, budget, device) if mem or budget or device else None
        return _matrix(matrix, model, draft, ask, place, offline=offline, output=output, as_json=json_)
    if output is not None:
        raise typer.BadParameter("--output goes with --matrix; a plan is written with --save")
    place = plans.place_for(mem, budget, device)
    if model is None:
        return _pairs.show(place, ask, as_json=json_)
    planned = plans.plan_pair(
        model,
        draft,
        place,
        ask,
        adapters=loras(lora),
        probe=probe,
        calibrate=calibrate,
        offline=offline,
        listener=TERMINAL,
    )
    _show(planned, place, save, explain=explain, json_=json_)


def _show(planned: PlannedPair, place: Device, save: Path | None, *, explain: bool, json_: bool) -> None:
    from edgellm.cli import _plan_view

    target, solution, measured = planned.target, planned.solution, planned.measured
    to_stdout = save is not None and str(save) == "-"
    if save is not None and not to_stdout and solution.plan.fits:
        _plan_view.save(save, solution.plan)
    if to_stdout:
        out.json(solution.plan.to_json())
    elif json_:
        remarks = _plan_view.remarks(solution.plan, target.shape)
        out.json(_plan_view.as_json(solution, place, measured, remarks))
    else:
        _plan_view.show(solution.plan, place, target.shape, measured, explain=explain)
    if save is not None and not to_stdout and solution.plan.fits:
        out.note(f"saved to {save}")
    _plan_view.end(solution)


def _matrix(
    names: str,
    model: str | None,
    draft: str | None,
    ask: PlanRequest,
    place: Device | None,
    *,
    offline: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    from edgellm.app.matrix import are_devices
    from edgellm.app.plans import place_for
    from edgellm.cli._matrix import show_matrix

    if model is None and names != CONTEXTS and not are_devices(names):
        model, names = names, CONTEXTS  # `--matrix MODEL`: the option stands before it and has no value
    if names != CONTEXTS:
        return show_matrix(names, model, draft, ask, output=output, as_json=as_json)
    if model is None:
        raise typer.BadParameter("--matrix shows one MODEL's memory against its context; --matrix all every device")
    from edgellm.cli._contexts import show_contexts

    show_contexts(model, draft, ask, place or place_for(), offline=offline, output=output, as_json=as_json)
