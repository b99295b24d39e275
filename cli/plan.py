"""`edgellm plan`: what fits into a device's memory, line by line, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import _options as opt
from edgellm.cli._lora import loras
from edgellm.cli._output import out
from edgellm.cli._variables import Command

if TYPE_CHECKING:
    from edgellm.cli._shapes import Known
    from edgellm.memory.adapter import Lora
    from edgellm.memory.buffer_sizes import Sizer
    from edgellm.memory.device import Device
    from edgellm.memory.plan_request import PlanRequest
    from edgellm.memory.solve import Solution
    from edgellm.runtime.bringup.calibrate import Measurement

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


def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            envvar="EDGELLM_MODEL",
            show_envvar=False,
            show_default=False,
            help="Target: a catalogue name[:QUANT], a GGUF file, or a checkpoint's folder; none: the best pairs.",
        ),
    ] = None,
    draft: opt.Draft = None,
    lora: opt.Lora = [],  # noqa: B006
    mem: opt.Mem = None,
    budget: opt.Budget = None,
    device: Annotated[
        str | None,
        opt.option("--device", help="Plan for a device of `edgellm devices`.", metavar="NAME", panel=opt.ENGINE),
    ] = None,
    ctx: opt.Ctx = None,
    kv: opt.Kv = None,
    draft_tokens: opt.DraftTokens = None,
    n_ubatch: opt.Ubatch = None,
    loading: Annotated[
        str | None,
        opt.option(
            "--load",
            help="Weights: packed by our kernels (the default), copied, or mapped.",
            metavar="packed|copied|mapped",
            panel=opt.ENGINE,
        ),
    ] = None,
    probe: Annotated[
        bool, opt.option("--probe", help="Ask llama.cpp for exact sizes; the files must be here.")
    ] = False,
    explain: Annotated[
        bool, opt.option("--explain", help="Show each trim: what it saved and what it cost.", panel=opt.OUTPUT)
    ] = False,
    matrix: Annotated[
        str | None,
        opt.option(
            "--matrix",
            help="Memory against context; or, with devices' names and commas between (or `all`), models against "
            "devices.",
            metavar="[DEVICES]",
            panel=opt.OUTPUT,
        ),
    ] = None,
    calibrate: Annotated[
        bool, opt.option("--calibrate", help="Run the plan here: measured memory and speed, kept for later plans.")
    ] = False,
    offline: opt.Offline = False,
    save: Annotated[
        Path | None,
        opt.option(
            "--save",
            help="Write the plan as JSON, for `chat --plan`; `-` for stdout.",
            metavar="FILE",
            panel=opt.OUTPUT,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        opt.option(
            "--output",
            "-o",
            help="Write the matrix to a .png, .svg, .csv or .json file.",
            metavar="FILE",
            panel=opt.OUTPUT,
        ),
    ] = None,
    json_: opt.Json = False,
) -> None:
    """Plan memory: what fits, what each part takes, and how fast it will roughly be. Exit 0 fits, 3 does not."""
    from edgellm.cli import _pairs, _plan_view, _plans
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
    ask = _ask(ctx, kv, draft_tokens, n_ubatch, loading, here=mem is None and device is None, keep=draft is not None)
    if matrix is not None:
        place = _device(mem, budget, device) if mem or budget or device else None
        return _matrix(matrix, model, draft, ask, place, offline=offline, output=output, as_json=json_)
    if output is not None:
        raise typer.BadParameter("--output goes with --matrix; a plan is written with --save")
    place = _device(mem, budget, device)
    if model is None:
        return _pairs.show(place, ask, as_json=json_)
    adapters = loras(lora)
    target, solution, measured = _solved(model, draft, place, ask, probe, calibrate, offline, adapters)
    if save is not None and not to_stdout and solution.plan.fits:
        _plans.save(save, solution.plan)
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
    from edgellm.cli._matrix import are_devices, show_matrix

    if model is None and names != CONTEXTS and not are_devices(names):
        model, names = names, CONTEXTS  # `--matrix MODEL`: the option stands before it and has no value
    if names != CONTEXTS:
        return show_matrix(names, model, draft, ask, output=output, as_json=as_json)
    if model is None:
        raise typer.BadParameter("--matrix shows one MODEL's memory against its context; --matrix all every device")
    from edgellm.cli._contexts import show_contexts

    show_contexts(
        model, draft, ask, place or _device(None, None, None), offline=offline, output=output, as_json=as_json
    )


def _solved(
    model: str,
    draft: str | None,
    place: Device,
    ask: PlanRequest,
    probe: bool,
    calibrate: bool,
    offline: bool,
    adapters: Sequence[Lora] = (),
) -> tuple[Known, Solution, Measurement | None]:
    """The plan of a pair, with what it took where it was run here."""
    from dataclasses import replace

    from edgellm.cli import _calibration
    from edgellm.cli._shapes import drafter_for, look_up, smaller_than, with_adapters, with_references
    from edgellm.memory.solve import solve

    target = look_up(model, offline=offline)
    drafter = drafter_for(target.shape, draft, offline=offline)
    target = with_adapters(target, adapters)
    sizer = _probing(target, drafter, exactly=probe)
    smaller, shape = smaller_than(target), drafter.shape if drafter else None
    solution = solve(target.shape, shape, place, ask, sizer=sizer, smaller=smaller)
    solution = replace(
        solution,
        plan=replace(with_references(solution.plan, target, drafter), loras=tuple(a.reference for a in adapters)),
        nearest=with_references(solution.nearest, target, drafter) if solution.nearest else None,
    )
    if calibrate and solution.plan.fits:
        _calibration.run(solution.plan, target.path, drafter.path if drafter else None)
    measured = _calibration.find(solution.plan) if place.kind == "machine" else None
    if measured:
        solution = replace(solution, plan=_calibration.with_speed(solution.plan, measured))
    return target, solution, measured


def _ask(
    ctx: int | None,
    kv: str | None,
    draft_tokens: int | None,
    n_ubatch: int | None,
    loading: str | None,
    *,
    here: bool,
    keep: bool,
) -> PlanRequest:
    import os
    from typing import cast, get_args

    from edgellm.cli._models import check_kv
    from edgellm.memory.cpu import usable_cores
    from edgellm.memory.plan import Loading
    from edgellm.memory.plan_request import PlanRequest

    if loading is None:
        off = here and os.environ.get("EDGELLM_KERNELS", "").strip().lower() in ("off", "stock")
        loading = "copied" if off else "packed"
    if loading not in get_args(Loading):
        raise typer.BadParameter(f"{loading!r} is no way to load: take {', '.join(get_args(Loading))}")
    return PlanRequest(
        n_ctx=ctx,
        kv=check_kv(kv) if kv is not None else None,
        n_draft=draft_tokens,
        n_ubatch=n_ubatch,
        loading=cast(Loading, loading),
        repack=loading == "copied" and (not here or _rearranges()),
        n_threads=usable_cores(),
        keep_drafter=keep,
    )


def _rearranges() -> bool:
    """Whether the engine's own fast layouts are used on this machine."""
    from edgellm.runtime.bringup.extra_buffers import verdict

    return verdict().usable


def _device(mem: str | None, budget: str | None, device: str | None) -> Device:
    """The place to plan for; answers are in the units that its size is given in."""
    from edgellm.cli._models import asked_bytes
    from edgellm.memory import units
    from edgellm.memory.device import budget_device, find_device, sized_device, this_machine

    if sum(given is not None for given in (mem, budget, device)) > 1:
        raise typer.BadParameter("give one of --mem, --budget and --device")
    n_bytes = asked_bytes(mem if mem is not None else budget)
    if n_bytes is not None:
        return sized_device(n_bytes) if mem is not None else budget_device(n_bytes)
    place = find_device(device) if device is not None else this_machine()
    units.answer_in(decimal=place.decimal)
    return place


def _probing(target: Known, drafter: Known | None, *, exactly: bool) -> Sizer | None:
    """Sizes from llama.cpp itself; every different question is asked once. None where formulas do.

    Args:
        exactly: also of caches that are known; else llama.cpp is asked only of those that are not.
    """
    import functools

    from edgellm.memory.buffer_sizes import BufferSizes
    from edgellm.memory.buffers import estimate
    from edgellm.memory.context import ContextSettings
    from edgellm.memory.shape import ModelShape

    known = {model.shape.name: model for model in (target, drafter) if model is not None}
    if not exactly and all(model.shape.known for model in known.values()):
        return None
    for model in known.values():
        if not model.shape.known:
            out.note(f"the cache of {model.shape.architecture} is not known here, so llama.cpp is asked")
        elif exactly and model.path is None:
            out.warning(f"{model.shape.name} is not on this machine, so its sizes come from formulas")

    from edgellm.runtime.bringup.probe import probe

    @functools.cache
    def sizes(shape: ModelShape, settings: ContextSettings, repack: bool) -> BufferSizes:
        path = known[shape.name].path if shape.name in known else None
        if path is None or not shape.exact or (shape.known and not exactly):
            return estimate(shape, settings, repack)
        return probe(path, [settings], repack=repack)[0]

    return sizes
