"""From what a user fixes to a plan that holds on this machine, before anything is loaded."""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from edgellm.memory.adapter import AdapterError, Lora, adapted, refuse_adapter
from edgellm.memory.context import N_DRAFT_MOST, N_TURN_STATES, ContextSettings, KvType, rows_for
from edgellm.memory.cpu import usable_cores
from edgellm.memory.device import Device, budget_device, this_machine
from edgellm.memory.draft_heads import head_shape, shape_of, why_none
from edgellm.memory.gguf import GgufError
from edgellm.memory.hparams import MAX_LAYERS
from edgellm.memory.limits import N_CTX, N_UBATCH
from edgellm.memory.onnx_graph import OnnxError, is_onnx
from edgellm.memory.onnx_plan import read_shape
from edgellm.memory.placement import AUTO, PROCESSOR, Accelerator, chosen, n_layers_on
from edgellm.memory.plan import RUNTIME_BASE_BYTES, DoesNotFit, Loading, MemoryPlan, PairSettings, PlanError
from edgellm.memory.plan import plan as lines_of
from edgellm.memory.plan_request import PlanRequest
from edgellm.memory.shape import ModelShape, UnknownShape, from_header
from edgellm.memory.solve import refusal, solve
from edgellm.memory.split import read_model
from edgellm.memory.units import format_bytes
from edgellm.runtime.backends.base import LoadError, OutOfMemory
from edgellm.runtime.backends.llama_process import accelerators, has_extra_buffers, kernels
from edgellm.runtime.drafters.base import Stop

TOLERANCE = (
    0.02  # of a stored plan against the same plan made anew: another machine may size buffers a little otherwise
)
_NOT_ASKED_FOR = ("runtime", "system reserve", "margin")  # lines that are there already, or not this program's
UNTOUCHED_BYTES = 72 * 2**20  # a context's: threads' stacks and tables that are reserved and never filled


Learn = Literal["kept", "fresh", "off"]
"""kept: go on with what earlier runs learnt; fresh: begin with nothing and keep nothing; off: do not learn."""
Spelling = Literal["merged", "text", "omnidraft", "direct", "tli"]
"""merged: text tokenised again, its end judged by OmniDraft's cache; text: without the cache; omnidraft: token by token
and by the cache's entries; direct: token by token; tli: likewise, and nothing else is drafted."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What is fixed of how a pair runs; None leaves it to the plan. Sizes are in tokens."""

    n_ctx: int | None = None  # 4,096, or less where memory is short
    n_draft: int = N_DRAFT_MOST
    head: bool = False  # draft with the head that the target's file has inside, where no drafter is named
    copy: bool = True  # propose what followed the same words before
    fixed: bool = False  # draft `n_draft` tokens a round whatever they cost
    stop: Stop = "cost"  # what ends a draft of a fixed length earlier
    spelling: Spelling = "merged"  # how a draft of another vocabulary is said in the target's
    warm_start: bool = False  # with spelling "omnidraft": a cache that knows nothing begins with the vocabularies alone
    merged_probs: bool = False  # with spelling "omnidraft", when sampling: accept more, follow the target approximately
    learn: Learn = "kept"  # from what the target says: for later answers, and how two vocabularies spell each other
    learned: Path | None = None  # where that and measured costs are kept between runs; None: nowhere
    assume_cost: float | None = None  # 0.05: lengths are chosen as if each further token cost 5 % of a pass
    exact: bool = False  # prove at load which widths agree bit for bit, and keep to those
    kv: KvType | None = None  # f16, or less where memory is short
    n_ubatch: int | None = None
    n_threads: int | None = None  # the physical cores that this process may use
    main_device: str = AUTO  # that the target's layers go to, as `edgellm devices --here` names it; "cpu": none
    n_gpu_layers: int = -1  # of them; -1: all that it takes
    draft_device: str = AUTO  # likewise, the drafter's
    n_draft_gpu_layers: int = -1
    workers: tuple[str, ...] = ()  # HOST:PORT of machines that take `n_gpu_layers` of it; -1: what lacks room here
    ahead: bool = True  # draft while the target verifies, where the two lie on different devices
    mmap: bool = False  # weights are read once; mapped, llama.cpp would keep what it repacks a second time
    loras: tuple[Lora, ...] = ()  # adapters of the target
    draft_adapter: str | None = None  # sha256 of the adapter in the drafter's file: its drafts are judged apart
    n_parallel: int = 1  # conversations at once, of `n_ctx` tokens each
    prefixes: Path | None = None  # where long beginnings of conversations are kept between runs; None: nowhere
    prefix_bytes: int = 2 * 2**30  # of them, at most
    budget_bytes: int | None = None  # this program's own; what the machine has free


DEFAULTS = EngineOptions()


def plan_here(
    target: Path, draft: Path | None, options: EngineOptions, plan: MemoryPlan | None = None
) -> tuple[MemoryPlan | None, str]:
    """A plan that fits, and a sentence on it: the one given, if there is room for it, or one of our own.

    No plan where the planner does not know a model's cache, or where a file is for the engine to refuse.

    Raises:
        PlanError: the plan given was made for smaller files.
        DoesNotFit: nothing that keeps to `options` fits; the message names what would.
        LoadError: an adapter is for another model.
    """
    device = _device(options)
    if plan is not None:
        _check_files(plan, target, draft, options)
        if plan.required_bytes > device.usable_bytes:
            raise DoesNotFit(
                f"the plan needs {format_bytes(plan.required_bytes)} and {device.name} has "
                f"{format_bytes(device.usable_bytes)} for it: end other programs, or plan again with a smaller --mem"
            )
        return plan, f"planned: {format_bytes(plan.process_bytes)}"
    try:
        shapes = _shapes(target, draft, options)
    except AdapterError as error:
        raise LoadError(str(error)) from error
    except (UnknownShape, GgufError, OnnxError, OSError) as error:
        return None, f"memory is not planned: {error}"
    solution = solve(*shapes, device, _ask(options))
    if not solution.plan.fits:
        raise DoesNotFit(refusal(solution))
    room = f"{format_bytes(device.usable_bytes)} that {device.name} has for it"
    return solution.plan, f"planned: {format_bytes(solution.plan.process_bytes)} of {room}"


def _check_files(plan: MemoryPlan, target: Path, draft: Path | None, options: EngineOptions) -> None:
    """A plan holds for the files that it was made from, or for others that take no more."""
    try:
        wanted = replace(options, head=options.head and plan.settings.drafter is not None)
        shapes = _shapes(target, draft if plan.settings.drafter else None, wanted)
    except (UnknownShape, GgufError, OnnxError, AdapterError, OSError):
        return  # a plan by the engine's own sizes, or a file that the engine will refuse
    needed = lines_of(*shapes, plan.settings, plan.limit, devices=plan.devices).process_bytes
    if needed > plan.process_bytes * (1 + TOLERANCE):
        raise PlanError(
            f"the plan is of {plan.target} {plan.quantisation} with {plan.drafter or 'no drafter'}, and these files "
            f"need {format_bytes(needed)} where it has {format_bytes(plan.process_bytes)}: plan again"
        )


def left_bytes(options: EngineOptions, taken_bytes: int) -> int:
    """What one more pair may take, by `beside_bytes`, beside those that this process has loaded, which take so much."""
    device, taken_bytes = _device(options), taken_bytes + RUNTIME_BASE_BYTES
    if options.budget_bytes is None:  # pages that nobody has written yet are still counted as free
        taken_bytes = max(taken_bytes, psutil.Process().memory_info().rss)
    return device.usable_bytes - taken_bytes


def beside_bytes(plan: MemoryPlan) -> int:
    """What a plan takes where the interpreter and the engine's libraries are there already."""
    return plan.required_bytes - RUNTIME_BASE_BYTES


def trimmed(plan: MemoryPlan) -> list[str]:
    """What the plan gave up that a user may notice."""
    return [step.name for step in plan.steps if not step.cost.startswith("none")]


def reserve(plan: MemoryPlan) -> None:
    """Ask the system for all that the plan will take, and give it back.

    The engine refuses a cache that it cannot have, and ends the process where a small allocation fails: limits on a
    process are found here instead.

    Raises:
        OutOfMemory: it is not to be had.
    """
    n_bytes = sum(line.n_bytes for line in plan.lines if not line.device and line.name not in _NOT_ASKED_FOR)
    n_bytes += UNTOUCHED_BYTES * (2 if plan.settings.drafter else 1)
    try:
        if sys.platform == "win32":
            mmap.mmap(-1, n_bytes).close()
        else:  # private, as the engine's own memory: shared pages are under other limits
            mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise OutOfMemory(f"{format_bytes(n_bytes)} could not be had: not enough memory") from error


def plan_next(target: Path, draft: Path | None, options: EngineOptions, plan: MemoryPlan) -> MemoryPlan | None:
    """The largest plan that is smaller than one whose memory could not be had; None where nothing is left to trim."""
    drafts = plan.settings.drafter is not None
    shapes = _shapes(target, draft if drafts else None, replace(options, head=options.head and drafts))
    device = replace(_device(options), total_bytes=plan.required_bytes - 1, usable_bytes=plan.required_bytes - 1)
    found = solve(*shapes, device, _ask(options)).plan
    return found if found.fits else None


def unplanned(options: EngineOptions) -> PairSettings:
    """The settings of a model whose memory nobody planned."""
    here = accelerators_here(options)
    device = None if options.workers else chosen(options.main_device, here)
    main = ContextSettings(
        n_ctx=options.n_ctx or N_CTX,
        n_ubatch=max(options.n_ubatch or N_UBATCH, rows_for(options.n_draft, options.n_parallel)),
        n_outputs=rows_for(options.n_draft, options.n_parallel),
        kv=options.kv or "f16",
        n_threads=options.n_threads or usable_cores(),
        n_saved_states=N_TURN_STATES + 1,  # where there is a state
        n_sequences=options.n_parallel,
        placed=((device.name, n_layers_on(options.n_gpu_layers, MAX_LAYERS)),) if device else (),
    )
    return PairSettings(main, options.n_draft, None, options.copy, _loading(options), not options.exact)


def _ask(options: EngineOptions) -> PlanRequest:
    here = accelerators_here(options)
    main = chosen(options.main_device, here)
    draft = chosen(options.draft_device, here) if options.draft_device != AUTO else None
    main = None if options.workers else main
    return PlanRequest(
        n_ctx=options.n_ctx,
        kv=options.kv,
        n_draft=options.n_draft if options.fixed or options.n_draft != N_DRAFT_MOST else None,
        n_ubatch=options.n_ubatch,
        copy=options.copy,
        loading=_loading(options),
        repack=not options.exact and not kernels().active and has_extra_buffers(),
        n_threads=options.n_threads or usable_cores(),
        keep_drafter=True,
        n_sequences=options.n_parallel,
        main_device=main.name if main else "",
        n_gpu_layers=options.n_gpu_layers,
        draft_device=draft.name if draft else AUTO if main and options.draft_device == AUTO else "",
        n_draft_gpu_layers=options.n_draft_gpu_layers,
        workers=options.workers,
    )


def _loading(options: EngineOptions) -> Loading:
    return "mapped" if options.mmap else "packed" if kernels().active else "copied"


def _device(options: EngineOptions) -> Device:
    if options.budget_bytes is not None:
        found = tuple(each.limit for each in accelerators_here(options))
        return replace(budget_device(options.budget_bytes), accelerators=found)
    here = this_machine()
    # What this process holds already (the interpreter, the engine's libraries) is part of its plan.
    resident = psutil.Process().memory_info().rss
    usable = min(here.usable_bytes + resident, here.total_bytes)
    return replace(here, usable_bytes=usable, accelerators=tuple(each.limit for each in accelerators_here(options)))


def accelerators_here(options: EngineOptions) -> list[Accelerator]:
    """What this engine can place layers on; not asked for where nothing may go there."""
    nowhere = (options.main_device, options.draft_device) == (PROCESSOR, PROCESSOR)
    return [] if nowhere and not options.workers else accelerators(options.workers)


def _adapted(target: Path, options: EngineOptions) -> ModelShape:
    if is_onnx(target):
        return adapted(_shape(target), options.loras)
    header = read_model(target)
    refuse_adapter(header)
    return adapted(from_header(header, target.stem), options.loras, header)


def _shapes(target: Path, draft: Path | None, options: EngineOptions) -> tuple[ModelShape, ModelShape | None]:
    """Of a target and of what drafts for it: another file, or its own head. Raises LoadError: it has none."""
    shape = _adapted(target, options)
    if draft is not None:
        return shape, _shape(draft)
    if not options.head or is_onnx(target):
        return shape, None
    header = read_model(target)
    if (why := why_none(header)) is not None:
        raise LoadError(why)
    return shape, head_shape(header, shape)


def _shape(path: Path) -> ModelShape:
    return read_shape(path) if is_onnx(path) else shape_of(read_model(path), path.stem)
