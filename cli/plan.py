"""`edgellm plan`: what fits into a device's memory, line by line, before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgellm.cli import _options as opt
from edgellm.cli._output import out
from edgellm.cli._variables import Command
from edgellm.cli._worker_options import Workers

if TYPE_CHECKING:
    from edgellm.app.plans import PlannedPair
    from edgellm.memory.device import Device
    from edgellm.memory.plan_request import PlanRequest

CONTEXTS = "contexts"  # what `--matrix` without a value shows


class PlanCommand(Command):
    """`--matrix` may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        whole: list[str] = []
        for index, word in enumerate(args):
            whole.append(word)
            following = args[index + 1] if index + 1 < len(args) else "-"
            if word == "--matrix" and following.startswith("-"):
                whole.append(CONTEXTS)
        return super().parse_args(ctx, whole)


Model = Annotated[
    str | None,
    typer.Argument(
        envvar="EDGELLM_MODEL",
        show_envvar=False,
        show_default=False,
        help="Target: a catalogue name[:QUANT], a GGUF file, or a checkpoint's folder; none: the best pairs.",
    ),
]
Loading = Annotated[
    str | None,
    opt.option(
        "--load",
        help="Weights: packed by our kernels (the default), copied, or mapped.",
        metavar="packed|copied|mapped",
        panel=opt.ENGINE,
    ),
]
Probe = Annotated[bool, opt.option("--probe", help="Ask llama.cpp for exact sizes; the files must be here.")]
Explain = Annotated[
    bool, opt.option("--explain", help="Show each trim: what it saved and what it cost.", panel=opt.OUTPUT)
]
Matrix = Annotated[
    str | None,
    opt.option(
        "--matrix",
        help="Memory against context; or, with devices' names and commas between (or `all`), models against devices.",
        metavar="[DEVICES]",
        panel=opt.OUTPUT,
    ),
]
Calibrate = Annotated[
    bool, opt.option("--calibrate", help="Run the plan here: measured memory and speed, kept for later plans.")
]
Save = Annotated[
    Path | None,
    opt.option(
        "--save",
        help="Write the plan as JSON, for `chat --plan`; `-` for stdout.",
        metavar="FILE",
        panel=opt.OUTPUT,
    ),
]
Output = Annotated[
    Path | None,
    opt.option(
        "--output",
        "-o",
        help="Write the matrix to a .png, .svg, .csv or .json file.",
        metavar="FILE",
        panel=opt.OUTPUT,
    ),
]


def plan(
    model: Model = None,
    draft: opt.Draft = None,
    draft_adapter: opt.DraftAdapter = None,
    lora: opt.Lora = [],  # noqa: B006
    mem: opt.Mem = None,
    budget: opt.Budget = None,
    device: opt.DeviceName = None,
    ctx: opt.Ctx = None,
    kv: opt.Kv = None,
    draft_tokens: opt.DraftTokens = None,
    adapt: opt.Adapt = "off",
    n_ubatch: opt.Ubatch = None,
    parallel: opt.Parallel = 1,
    prefix_cache: opt.PrefixCache = None,
    loading: Loading = None,
    workers: Workers = None,
    gpu_layers: opt.GpuLayers = -1,
    probe: Probe = False,
    explain: Explain = False,
    matrix: Matrix = None,
    calibrate: Calibrate = False,
    offline: opt.Offline = False,
    save: Save = None,
    output: Output = None,
    json_: opt.Json = False,
) -> None:
    """Plan memory: what fits, what each part takes, and how fast it will roughly be. Exit 0 fits, 3 does not."""
    from edgellm.app import plans
    from edgellm.app.adapters import loras
    from edgellm.app.defaults import prefix_options
    from edgellm.cli import _pairs
    from edgellm.cli._listener import TERMINAL
    from edgellm.cli._save import destination

    if calibrate and (matrix is not None or model is None or mem is not None or device is not None):
        raise typer.BadParameter("--calibrate runs one model here: give a MODEL, and --budget rather than --mem")
    if workers and (matrix is not None or model is None or probe or calibrate):
        raise typer.BadParameter("--workers plans one MODEL, by formulas: leave out --matrix, --probe and --calibrate")
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
        n_draft=draft_tokens,
        n_ubatch=n_ubatch,
        n_parallel=parallel,
        loading=loading,
        here=mem is None and device is None,
        keep_drafter=draft is not None,
        workers=cast("tuple[str, ...]", workers or ()),
        n_gpu_layers=gpu_layers,
    )
    if matrix is not None:
        place = plans.place_for(mem, budget, device) if mem or budget or device else None
        return _matrix(matrix, model, draft, ask, place, offline=offline, output=output, as_json=json_)
    if output is not None:
        raise typer.BadParameter("--output goes with --matrix; a plan is written with --save")
    place = plans.with_workers(plans.place_for(mem, budget, device), ask.workers)
    if model is None:
        return _pairs.show(place, ask, as_json=json_)
    planned = plans.plan_pair(
        model,
        draft,
        place,
        ask,
        adapters=loras(lora),
        draft_adapter=draft_adapter,
        probe=probe,
        calibrate=calibrate,
        adapt=adapt != "off",
        offline=offline,
        listener=TERMINAL,
    )
    _show(planned, place, save, prefix_options(prefix_cache).get("prefix_bytes"), explain=explain, json_=json_)


def _show(
    planned: PlannedPair, place: Device, save: Path | None, prefix_bytes: int | None, *, explain: bool, json_: bool
) -> None:
    from edgellm.app.drafter_adapters import adapter_json
    from edgellm.app.plans import remembering
    from edgellm.cli import _plan_view

    target, solution, measured = planned.target, planned.solution, planned.measured
    remarks = [
        *_plan_view.remarks(solution.plan, target.shape),
        *remembering(solution.plan, target.shape, prefix_bytes),
    ]
    to_stdout = save is not None and str(save) == "-"
    if save is not None and not to_stdout and solution.plan.fits:
        _plan_view.save(save, solution.plan)
    if to_stdout:
        out.json(solution.plan.to_json())
    elif json_:
        out.json({**_plan_view.as_json(solution, place, measured, remarks), "adapter": adapter_json(planned.adapter)})
    else:
        _plan_view.show(solution.plan, place, target.shape, measured, remarks, explain=explain)
        if planned.adapter is not None:
            out.text(f"it drafts as {planned.adapter}")
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
