"""Plans of a pair by name, and as files, which `plan --save` writes and `--plan` runs."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from edgellm.app import calibration
from edgellm.app.defaults import NO_ADAPTER, BadSetting, asked_bytes, cache_type
from edgellm.app.drafter_adapters import DrafterAdapter, file_with, planned
from edgellm.app.listener import SILENCE, Listener
from edgellm.app.shapes import (
    Known,
    drafter_for,
    look_up,
    of_name,
    own_head,
    smaller_than,
    with_adapters,
    with_references,
)

if TYPE_CHECKING:
    from edgellm.memory.adapter import Lora
    from edgellm.memory.buffer_sizes import BufferSizes, Sizer
    from edgellm.memory.context import ContextSettings
    from edgellm.memory.device import Device
    from edgellm.memory.plan import MemoryPlan
    from edgellm.memory.plan_request import PlanRequest
    from edgellm.memory.shape import ModelShape
    from edgellm.memory.solve import Solution
    from edgellm.runtime.bringup.calibrate import Measurement

PLAN_BYTES = 2**20  # no plan is longer


@dataclass(frozen=True, slots=True)
class PlannedPair:
    """A pair's plan, with what it took where it was run here."""

    target: Known
    solution: Solution
    measured: Measurement | None
    adapter: DrafterAdapter | None = None  # that the drafter would run with


def plan(
    model: Path | str,
    draft: Path | str | None = None,
    *,
    memory: str | None = None,
    budget: str | None = None,
    device: str | None = None,
    n_ctx: int | None = None,
    kv: str | None = None,
    n_draft: int | None = None,
    n_parallel: int = 1,
    adapt: bool = False,
    offline: bool = False,
) -> MemoryPlan:
    """What fits, what each part takes and how fast it will roughly be, before anything is downloaded.

    Args:
        model, draft: as for `load`.
        memory: of a device ("6GB", "6GiB"), half of which is a program's; or
        budget: of the program; or
        device: a name that `edgellm devices` lists; this machine if none of the three is given.
        n_ctx, kv, n_draft: context in tokens, type of its cache, tokens drafted a round; None: what fits best.
        n_parallel: conversations at once, each with a context of its own.
        adapt: the drafter learns between the answers of a chat, where there is room for that.
        offline: ask no server for the header of a model that is not here.

    Returns:
        A plan, whether it fits (`fits`) or not; `load` takes it.

    Raises:
        BadSetting, BadSize, UnknownDevice: a place that is none, or a type of the cache.
        BadReference, UnknownModel, UnknownShape, GgufError: the model is not known, or its file is damaged.
    """
    place = place_for(memory, budget, device)
    here = memory is None and device is None
    keep = draft is not None
    ask = plan_request(n_ctx=n_ctx, kv=kv, n_draft=n_draft, n_parallel=n_parallel, here=here, keep_drafter=keep)
    named = None if draft is None else str(draft)
    return plan_pair(str(model), named, place, ask, adapt=adapt, offline=offline).solution.plan


def plan_pair(
    model: str,
    draft: str | None,
    place: Device,
    ask: PlanRequest,
    *,
    adapters: Sequence[Lora] = (),
    draft_adapter: str | None = None,
    probe: bool = False,
    calibrate: bool = False,
    adapt: bool = False,
    offline: bool = False,
    listener: Listener = SILENCE,
) -> PlannedPair:
    """The plan of a target and its drafter.

    Args:
        draft: "none" for no drafter; None for the one that the catalogue recommends, where one is small enough.
        draft_adapter: as `drafter_adapters.choose` takes it.
        probe: ask llama.cpp for exact sizes where the files are here.
        calibrate: run a plan that fits in a process of its own, and keep what it took.
        adapt: the drafter learns beside a chat, where there is room.

    Raises:
        BadReference, UnknownModel, UnknownShape, GgufError: as `look_up`.
        AdapterError, DraftAdapterError: an adapter is damaged, or not for this model.
        LoadError: the run of `calibrate` failed.
    """
    from edgellm.memory.solve import solve
    from edgellm.memory.training_size import with_training

    target = look_up(model, offline=offline)
    own = own_head(target, draft, n_parallel=ask.n_sequences)
    drafter = own or drafter_for(target.shape, draft, offline=offline)
    target = with_adapters(target, adapters)
    sizer = _sizer(target, drafter, exactly=probe, listener=listener)
    smaller, shape = smaller_than(target), drafter.shape if drafter else None
    solution = solve(target.shape, shape, place, ask, sizer=sizer, smaller=smaller)
    solution = replace(
        solution,
        plan=replace(
            with_references(solution.plan, target, drafter),
            loras=tuple(a.reference for a in adapters),
            draft_adapter=_reference(draft_adapter),
        ),
        nearest=with_references(solution.nearest, target, drafter) if solution.nearest else None,
    )
    adapter = None
    if drafter is not None and own is None and solution.plan.drafter is not None:
        adapter = planned(target, drafter, draft_adapter, loras=adapters, listener=listener)
    if calibrate and solution.plan.fits:
        base = drafter.path if drafter is not None else None
        path = file_with(adapter, base, listener) if adapter is not None and base is not None else base
        calibration.run(solution.plan, target.path, path, listener)
    measured = calibration.find(solution.plan) if place.kind == "machine" else None
    if measured:
        solution = replace(solution, plan=calibration.with_speed(solution.plan, measured))
    if adapt:
        solution = replace(solution, plan=with_training(solution.plan, shape))
    return PlannedPair(target, solution, measured, adapter)


def remembering(plan: MemoryPlan, target: ModelShape, prefix_bytes: int | None = None) -> list[str]:
    """What is kept of conversations that are over, a sentence each.

    Args:
        prefix_bytes: of the disk that a server may take for their beginnings; None where it takes none.
    """
    from edgellm.app.defaults import prefix_folder
    from edgellm.memory.kv import token_bytes
    from edgellm.memory.units import format_bytes

    slides = any(group.window for group in target.attention)
    said = []
    if plan.settings.target.n_sequences > 1 and not slides:
        said.append("what was read before stays in the same cache as long as it has room: that takes no more memory")
    if prefix_bytes is not None and slides:
        said.append(f"no beginnings are kept on the disk: layers of {plan.target} have a window that slides")
    elif prefix_bytes is not None and (a_token := token_bytes(target, plan.settings.target.kv)):
        most = f"{format_bytes(prefix_bytes)} at most, some {prefix_bytes // a_token:,} tokens"
        said.append(f"beginnings on the disk take {most}, in {prefix_folder()}")
    return said


def best_pairs(place: Device, ask: PlanRequest) -> list[Solution]:
    """The plans of all targets of the catalogue that have sizes, by the bytes of their weights, largest first."""
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


def plan_request(
    *,
    n_ctx: int | None = None,
    kv: str | None = None,
    n_draft: int | None = None,
    n_ubatch: int | None = None,
    n_parallel: int = 1,
    loading: str | None = None,
    here: bool = True,
    keep_drafter: bool = False,
    workers: tuple[str, ...] = (),
    n_gpu_layers: int = -1,
) -> PlanRequest:
    """What is asked of a plan, None leaving it open.

    Args:
        loading: "packed" by our kernels, "copied" or "mapped"; None for what this machine, or another, would do.
        here: the plan is for this machine, whose settings and layouts count.
        workers: HOST:PORT of machines that take `n_gpu_layers` of the target's layers; -1: what does not fit.

    Raises:
        BadSetting: no type of the cache, or no way to load.
    """
    from edgellm.memory.cpu import usable_cores
    from edgellm.memory.plan import Loading
    from edgellm.memory.plan_request import PlanRequest

    if loading is None:
        off = here and os.environ.get("EDGELLM_KERNELS", "").strip().lower() in ("off", "stock")
        loading = "copied" if off else "packed"
    if loading not in get_args(Loading):
        raise BadSetting(f"{loading!r} is no way to load: take {', '.join(get_args(Loading))}")
    return PlanRequest(
        n_ctx=n_ctx,
        kv=cache_type(kv),
        n_draft=n_draft,
        n_ubatch=n_ubatch,
        n_sequences=n_parallel,
        loading=cast(Loading, loading),
        repack=loading == "copied" and (not here or _rearranges()),
        n_threads=usable_cores(),
        keep_drafter=keep_drafter,
        workers=workers,
        n_gpu_layers=n_gpu_layers,
    )


def with_workers(place: Device, workers: Sequence[str]) -> Device:
    """A place with these workers (HOST:PORT), asked what they lend and how far they are.

    Raises:
        BadAddress, WorkerError: one of them is not there, or cannot be used.
    """
    if not workers:
        return place
    from edgellm.runtime.workers.link import linked

    return replace(place, accelerators=tuple(link.survey.accelerator.limit for link in linked(workers)))


def place_for(memory: str | None = None, budget: str | None = None, device: str | None = None) -> Device:
    """The place to plan for, this machine if none is named; answers are in the units that its size is given in.

    Args:
        memory: of a whole device, half of which is a program's.
        budget: of a program.
        device: one that `known_devices` lists.

    Raises:
        BadSetting: more than one is given.
        BadSize, UnknownDevice: it is no size, or no device.
    """
    from edgellm.memory import units
    from edgellm.memory.device import budget_device, find_device, sized_device, this_machine

    if sum(given is not None for given in (memory, budget, device)) > 1:
        raise BadSetting("give one of --mem, --budget and --device")
    n_bytes = asked_bytes(memory if memory is not None else budget)
    if n_bytes is not None:
        return sized_device(n_bytes) if memory is not None else budget_device(n_bytes)
    place = find_device(device) if device is not None else this_machine()
    units.answer_in(decimal=place.decimal)
    return place


def read_plan(path: Path) -> MemoryPlan:
    """The plan of a file.

    Raises:
        PlanError: the file is no plan.
        OSError: it cannot be read.
    """
    from edgellm.memory.plan import PlanError
    from edgellm.memory.stored import plan_from_json

    try:
        with path.open("rb") as file:
            data = json.loads(file.read(PLAN_BYTES))
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path} is not JSON: write it again with `edgellm plan --save {path}`") from error
    if not isinstance(data, dict):
        raise PlanError(f"{path} is no plan: write it with `edgellm plan --save {path}`")
    return plan_from_json(data)


def models_of(plan: MemoryPlan, model: str | None, draft: str | None) -> tuple[str, str]:
    """References of a plan's target and drafter ("none" for none), where the command names no others.

    Raises:
        PlanError: one of them has to be exported first; the message says how.
    """
    target = model or _made(plan.target_reference or plan.target, plan.target_obtain)
    if draft is not None or plan.drafter is None:
        return target, draft or "none"
    return target, _made(plan.drafter_reference or plan.drafter, plan.drafter_obtain)


def _made(reference: str, obtain: str | None) -> str:
    from edgellm.memory.plan import PlanError

    if obtain is not None and not Path(reference).is_file():
        raise PlanError(obtain)
    return reference


def _reference(draft_adapter: str | None) -> str | None:
    """What names it again, from another folder too."""
    if draft_adapter is None or draft_adapter.casefold() == NO_ADAPTER:
        return draft_adapter
    return str(Path(draft_adapter).expanduser().resolve())


def _rearranges() -> bool:
    """Whether the engine's own fast layouts are used on this machine."""
    from edgellm.runtime.bringup.extra_buffers import verdict

    return verdict().usable


def _sizer(target: Known, drafter: Known | None, *, exactly: bool, listener: Listener) -> Sizer | None:
    """Sizes from llama.cpp itself; every different question is asked once. None where formulas do.

    Args:
        exactly: also of caches that are known; else llama.cpp is asked only of those that are not.
    """
    from edgellm.memory.buffers import estimate

    known = {model.shape.name: model for model in (target, drafter) if model is not None}
    if not exactly and all(model.shape.known for model in known.values()):
        return None
    for model in known.values():
        if not model.shape.known:
            listener.note(f"the cache of {model.shape.architecture} is not known here, so llama.cpp is asked")
        elif exactly and model.path is None and not model.shape.head_of:
            listener.warning(f"{model.shape.name} is not on this machine, so its sizes come from formulas")

    from edgellm.runtime.bringup.probe import probe

    @functools.cache
    def sizes(shape: ModelShape, settings: ContextSettings, repack: bool) -> BufferSizes:
        path = known[shape.name].path if shape.name in known else None
        if path is None or not shape.exact or (shape.known and not exactly):
            return estimate(shape, settings, repack)
        return probe(path, [settings], repack=repack)[0]

    return sizes
