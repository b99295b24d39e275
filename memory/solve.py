"""The best plan within a budget, found by SpecMemo's order (arXiv:2506.01986): what speculation wastes goes first.

The ladder: rows of logits and batch sizes that nobody uses, the drafter's window and cache, the length of drafts, the
draft model itself (copying from the conversation stays), and only then what the answer's quality hangs on: the type
of the target's cache, the context, the target's quantisation. A step that turns out not to be needed is given back.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgellm.memory.buffer_sizes import BufferSizes, Sizer
from edgellm.memory.buffers import compute_bytes, estimate
from edgellm.memory.context import N_DRAFT_MOST, N_TURN_STATES, ContextSettings, rows_for
from edgellm.memory.device import Device
from edgellm.memory.kv import check_cache, fits_cache, saved_states
from edgellm.memory.limits import N_CTX, N_UBATCH, N_UBATCH_DRAFT
from edgellm.memory.placing import placed
from edgellm.memory.plan import MemoryPlan, PairSettings, Trim, plan
from edgellm.memory.plan_request import ANYTHING, PlanRequest
from edgellm.memory.shape import ModelShape
from edgellm.memory.speed import gains, predict
from edgellm.memory.trim_steps import (
    State,
    TrimStep,
    all_trim_steps,
    draft_snapshots,
    drafting_trim_steps,
    with_outputs,
)
from edgellm.memory.units import format_bytes

ENGINE_N_UBATCH = 512  # what llama.cpp takes, with logits reserved for each token, if it is not told otherwise


@dataclass(frozen=True, slots=True)
class Solution:
    """The plan, and, where it does not fit, the nearest one that would (None: nothing does)."""

    plan: MemoryPlan
    nearest: MemoryPlan | None = None


def solve(
    target: ModelShape,
    drafter: ModelShape | None,
    device: Device,
    ask: PlanRequest = ANYTHING,
    *,
    sizer: Sizer | None = None,
    smaller: Sequence[ModelShape] = (),
) -> Solution:
    """The plan that fits with the least given up.

    Args:
        sizer: how buffers are sized; formulas for the device's instruction set by default.
        smaller: the target at smaller quantisations, largest first.

    Raises:
        UnsupportedCache: the cache type asked for does not suit the model.
    """

    def formulas(shape: ModelShape, settings: ContextSettings, repack: bool) -> BufferSizes:
        return estimate(shape, settings, repack, isa=device.isa)

    size = sizer or formulas
    if ask.kv is not None:
        check_cache(target, ask.kv)
    start, steps = _start(target, drafter, device, ask)
    found = _descend(start, steps, all_trim_steps(ask, drafter, smaller), drafter, device, size)
    found = replace(
        found,
        bound_bytes=_bound(start, drafter, device, size),
        needed_bytes=_needed(target, device, ask, size if not target.known else formulas),
        lost=_lost(found, target, drafter, ask),
    )
    if found.fits:
        return Solution(found)
    freed = replace(ask, n_ctx=None, kv=None, n_draft=None, n_ubatch=None, keep_drafter=False)
    if freed == ask:
        return Solution(found)
    nearest = _descend(
        *_start(target, drafter, device, freed), all_trim_steps(freed, drafter, smaller), drafter, device, size
    )
    return Solution(found, replace(nearest, needed_bytes=found.needed_bytes) if nearest.fits else None)


def untrimmed(target: ModelShape, drafter: ModelShape | None, device: Device, ask: PlanRequest) -> MemoryPlan:
    """The plan of these settings as they stand, whether it fits or not; a drafter that could draft is kept."""
    state, steps = _start(target, drafter, device, replace(ask, keep_drafter=True))
    return replace(plan(target, drafter, state.settings, device.limit, devices=device.accelerators), steps=tuple(steps))


def describe(plan: MemoryPlan) -> str:
    """The settings of a plan as options of the command."""
    settings = plan.settings
    words = [f"--ctx {settings.target.n_ctx}", f"--kv {settings.target.kv}"]
    words.append(f"--draft {shlex.quote(plan.drafter_reference or plan.drafter)}" if plan.drafter else "--draft none")
    if settings.n_draft:
        words.append(f"--n-draft {settings.n_draft}")
    return " ".join(words)


def refusal(solution: Solution) -> str:
    """One sentence for a plan that does not fit, with what to do."""
    if solution.plan.short_devices:
        short = solution.plan.short_devices[0]
        return (
            f"{solution.plan.target} needs {format_bytes(solution.plan.device_bytes(short.name))} of {short.name}, "
            f"which has {format_bytes(short.usable_bytes)} for it: choose fewer --gpu-layers, or leave them to the plan"
        )
    lacking = format_bytes(-solution.plan.headroom_bytes)
    kept = "the system's share and " if solution.plan.limit.reserve_bytes else ""
    head = (
        f"{solution.plan.target} with {kept}a margin needs {format_bytes(solution.plan.total_bytes)}, {lacking} more "
        f"than {solution.plan.limit.name} has"
    )
    if solution.nearest is None:
        return f"{head}, whatever is trimmed: choose a smaller model (`edgellm plan --mem SIZE` lists some)"
    nearest = solution.nearest
    quantisation = "" if nearest.quantisation == solution.plan.quantisation else f"{nearest.quantisation} with "
    return f"{head}; {quantisation}{describe(nearest)} would fit, with {format_bytes(nearest.headroom_bytes)} to spare"


def _start(
    target: ModelShape, drafter: ModelShape | None, device: Device, ask: PlanRequest
) -> tuple[State, list[Trim]]:
    """The settings before any trimming, with the two trims that cost nothing already made."""
    n_ctx = ask.n_ctx or min(N_CTX, target.n_ctx_train)
    n_draft = ask.n_draft if ask.n_draft is not None else (_longest(target) if drafter is not None or ask.copy else 0)
    kv, draft_kv = ask.kv or "f16", ask.kv or "f16"
    notes: list[Trim] = []
    rows = rows_for(n_draft, ask.n_sequences)
    n_ubatch = max(ask.n_ubatch or N_UBATCH, rows if ask.n_sequences > 1 else 0)
    n_ubatch = n_ctx if target.has_encoder else n_ubatch  # which reads all of its input at once
    main = ContextSettings(n_ctx, n_ubatch, rows, kv, n_threads=ask.n_threads, n_sequences=ask.n_sequences)
    main = replace(main, n_saved_states=saved_states(target, n_turns=N_TURN_STATES))
    settings = PairSettings(main, n_draft, None, ask.copy, ask.loading, ask.repack)
    if drafter is not None:
        if not fits_cache(drafter, draft_kv):
            draft_kv = "f16"
        n_rs_seq = draft_snapshots(n_draft) if drafter.keeps_snapshots else 0
        n, window = ask.n_sequences, min(n_ctx, drafter.n_ctx_train)
        own = ContextSettings(window, N_UBATCH_DRAFT, n, draft_kv, n_rs_seq, ask.n_threads, saved_states(drafter), n)
        settings = replace(settings, drafter=own)
        lent = placed(with_outputs(settings, target), target, drafter, device, ask)
        if ask.n_draft is None and not ask.keep_drafter and not gains(target, drafter, lent, device):
            notes.append(Trim("no draft model", 0, "it is not expected to gain anything on this device"))
            settings = replace(settings, drafter=None)
    settings = placed(with_outputs(settings, target), target, drafter, device, ask)
    return State(target, settings), [*_free_trims(target, drafter if settings.drafter else None, settings), *notes]


def _longest(target: ModelShape) -> int:
    """Drafts that a plan leaves room for: each token is a row of logits, and a copy of a recurrent state."""
    return 4 if target.is_recurrent else N_DRAFT_MOST


def _free_trims(target: ModelShape, drafter: ModelShape | None, settings: PairSettings) -> list[Trim]:
    """What llama.cpp's defaults would reserve beyond these settings; nothing is lost by not reserving it."""
    steps = []
    models = [("target", target, settings.target)]
    if drafter is not None and settings.drafter is not None:
        models.append(("drafter", drafter, settings.drafter))
    for role, shape, chosen in models:
        if not shape.known or shape.onnx is not None:
            continue
        wide = replace(chosen, n_ubatch=max(ENGINE_N_UBATCH, chosen.n_ubatch), n_outputs=ENGINE_N_UBATCH)
        fewer = replace(wide, n_outputs=chosen.n_outputs)
        saved = compute_bytes(shape, wide) - compute_bytes(shape, fewer)
        steps.append(Trim(f"{role}: logits of {ENGINE_N_UBATCH} -> {chosen.n_outputs} rows", saved, "none"))
        saved = compute_bytes(shape, fewer) - compute_bytes(shape, chosen)
        steps.append(Trim(f"{role}: batch of {wide.n_ubatch} -> {chosen.n_ubatch} tokens", saved, "none on a CPU"))
    return [step for step in steps if step.saved_bytes > 0]


def _descend(
    start: State,
    steps: Sequence[Trim],
    ladder: Sequence[TrimStep],
    drafter: ModelShape | None,
    device: Device,
    size: Sizer,
) -> MemoryPlan:
    """Down the ladder until it fits; then back up wherever a step was not needed."""

    def planned(state: State) -> MemoryPlan:
        return plan(state.target, drafter, state.settings, device.limit, sizer=size, devices=device.accelerators)

    def after(steps: Sequence[TrimStep]) -> State:
        state = start
        for step in steps:
            state = step.apply(state) or state
        return state

    taken: list[TrimStep] = []
    state, current = start, planned(start)
    for step in ladder:
        if current.fits:
            break
        changed = step.apply(state)
        if changed is None:
            continue
        smaller = planned(changed)
        if smaller.total_bytes < current.total_bytes:
            taken.append(step)
            state, current = changed, smaller
    if current.fits:
        for step in taken[-2::-1]:
            kept = [other for other in taken if other is not step]
            if planned(after(kept)).fits:
                taken = kept
    listed, state, current = list(steps), start, planned(start)
    for step in taken:
        changed = step.apply(state)
        if changed is None:
            continue
        smaller = planned(changed)
        saved = current.process_bytes - smaller.process_bytes
        listed.append(Trim(step.name(state, changed), saved, step.cost, step.tells))
        state, current = changed, smaller
    if state.settings.drafter is None:
        listed = [step for step in listed if not step.name.startswith("drafter:")]
    # Of an accelerator's speed nothing is known before it was measured; a worker says its own.
    remote = {each.name for each in device.accelerators if each.remote is not None}
    unknown = any(name not in remote for name, _ in state.settings.target.placed)
    speed = None if unknown else predict(state.target, drafter, state.settings, device)
    return replace(current, tokens_per_s=speed, steps=tuple(listed))


def _bound(start: State, drafter: ModelShape | None, device: Device, size: Sizer) -> int | None:
    """Bytes of the smallest plan in which the draft model still gains, the target's quality untouched."""
    if drafter is None or start.settings.drafter is None:
        return None
    state = start
    for step in drafting_trim_steps(PlanRequest(), drafter):
        changed = step.apply(state)
        if changed is None or changed.settings.drafter is None:
            continue
        if gains(changed.target, drafter, changed.settings, device):
            state = changed
    if not gains(state.target, drafter, state.settings, device):
        return None
    return plan(
        state.target, drafter, state.settings, device.limit, sizer=size, devices=device.accelerators
    ).required_bytes


def _needed(target: ModelShape, device: Device, ask: PlanRequest, size: Sizer) -> int:
    """The least budget that holds the target at its own quantisation, all that was left open trimmed."""

    def required(state: State) -> int:
        return plan(target, None, state.settings, device.limit, sizer=size, devices=device.accelerators).required_bytes

    state, _ = _start(target, None, device, ask)
    least = required(state)
    for step in all_trim_steps(ask, None, ()):
        changed = step.apply(state)
        if changed is not None and (smaller := required(changed)) < least:
            state, least = changed, smaller
    return least


def _lost(plan: MemoryPlan, target: ModelShape, drafter: ModelShape | None, ask: PlanRequest) -> tuple[str, ...]:
    """What was asked for and is not kept, a sentence each. All else is kept, or the plan does not fit."""
    lost = []
    if drafter is not None and plan.drafter is None and ask.keep_drafter:
        lost.append(f"{drafter.name} is not used as the drafter: it does not fit beside {target.name}")
    if ask.kv is not None and target.onnx is not None:
        lost.append(f"the cache of {target.name} is not of {ask.kv}: its type is part of the graph")
    return tuple(lost)
