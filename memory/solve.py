"""The best plan within a budget, found by SpecMemo's order (arXiv:2506.01986): what speculation wastes goes first.

The ladder: rows of logits and batch sizes that nobody uses, the drafter's window and cache, the length of drafts, the
draft model itself (copying from the conversation stays), and only then what the answer's quality hangs on: the type
of the target's cache, the context, the target's quantisation. A rung that turns out not to be needed is given back.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgellm.memory.buffers import BufferSizes, Sizer, compute_bytes, estimate
from edgellm.memory.context import DRAFT_TOKENS_MOST, N_DRAFT_MOST, ContextSettings, KvType
from edgellm.memory.device import Device
from edgellm.memory.kv import check_cache, fits_cache
from edgellm.memory.plan import Loading, MemoryPlan, PairSettings, Step, plan
from edgellm.memory.shape import ModelShape
from edgellm.memory.speed import gains, predict
from edgellm.memory.units import format_bytes

DEFAULT_N_CTX = 4096  # tokens
N_UBATCH, N_UBATCH_DRAFT = 128, 64  # tokens; more buys no prompt speed on a CPU (architecture decision 7)
LEAST_CTX = 512
ENGINE_N_UBATCH = 512  # what llama.cpp takes, with logits reserved for each token, if it is not told otherwise


@dataclass(frozen=True, slots=True)
class Ask:
    """What a plan must keep to. None leaves a choice to the solver."""

    n_ctx: int | None = None
    kv: KvType | None = None
    n_draft: int | None = None
    n_ubatch: int | None = None
    copy: bool = True
    loading: Loading = "mapped"
    repack: bool = False
    n_threads: int = 2
    keep_drafter: bool = False  # the drafter was asked for: drop it only to fit


@dataclass(frozen=True, slots=True)
class Solution:
    """The plan, and, where it does not fit, the nearest one that would (None: nothing does)."""

    plan: MemoryPlan
    nearest: MemoryPlan | None = None


@dataclass(frozen=True, slots=True)
class _State:
    target: ModelShape
    settings: PairSettings


@dataclass(frozen=True, slots=True)
class _Rung:
    name: Callable[[_State, _State], str]
    apply: Callable[[_State], _State | None]  # None: nothing to gain
    cost: str
    tells: bool = False


def solve(
    target: ModelShape,
    drafter: ModelShape | None,
    device: Device,
    ask: Ask = Ask(),
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
    asked, drafter = drafter, drafter if drafter is not None and can_draft(drafter) else None
    start, steps = _start(target, drafter, device, ask)
    ladder = _ladder(ask, drafter, smaller)
    found = _descend(start, steps, ladder, drafter, device, size)
    found = replace(
        found,
        bound_bytes=_bound(start, drafter, device, size),
        needed_bytes=_needed(target, device, ask, size if not target.known else formulas),
        lost=_lost(found, target, asked, ask),
    )
    if found.fits:
        return Solution(found)
    freed = replace(ask, n_ctx=None, kv=None, n_draft=None, n_ubatch=None, keep_drafter=False)
    if freed == ask:
        return Solution(found)
    nearest = _descend(*_start(target, drafter, device, freed), _ladder(freed, drafter, smaller), drafter, device, size)
    return Solution(found, replace(nearest, needed_bytes=found.needed_bytes) if nearest.fits else None)


def untrimmed(target: ModelShape, drafter: ModelShape | None, device: Device, ask: Ask) -> MemoryPlan:
    """The plan of these settings as they stand, whether it fits or not; a drafter that could draft is kept."""
    drafter = drafter if drafter is not None and can_draft(drafter) else None
    state, steps = _start(target, drafter, device, replace(ask, keep_drafter=True))
    return replace(plan(target, drafter, state.settings, device.limit), steps=tuple(steps))


def can_draft(shape: ModelShape) -> bool:
    """Whether a model can take back what was drafted in vain."""
    return shape.can_rewind


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


def _start(target: ModelShape, drafter: ModelShape | None, device: Device, ask: Ask) -> tuple[_State, list[Step]]:
    """The settings before any trimming, with the two trims that cost nothing already made."""
    n_ctx = ask.n_ctx or min(DEFAULT_N_CTX, target.n_ctx_train)
    n_draft = ask.n_draft if ask.n_draft is not None else (_longest(target) if drafter is not None or ask.copy else 0)
    kv, draft_kv = ask.kv or "f16", ask.kv or "f16"
    notes: list[Step] = []
    if not target.can_rewind:
        drafter, n_draft = None, 0
        notes.append(Step("no drafting", 0, f"{target.architecture} keeps a state that cannot be cut back"))
    main = ContextSettings(n_ctx, ask.n_ubatch or N_UBATCH, n_draft + 1, kv, n_threads=ask.n_threads)
    settings = PairSettings(main, n_draft, None, ask.copy and target.can_rewind, ask.loading, ask.repack)
    if drafter is not None:
        if not fits_cache(drafter, draft_kv):
            draft_kv = "f16"
        n_rs_seq = _draft_snapshots(n_draft) if drafter.is_recurrent else 0
        own = ContextSettings(
            min(n_ctx, drafter.n_ctx_train), N_UBATCH_DRAFT, 1, draft_kv, n_rs_seq, n_threads=ask.n_threads
        )
        settings = replace(settings, drafter=own)
        if ask.n_draft is None and not ask.keep_drafter and not gains(target, drafter, settings, device):
            notes.append(Step("no draft model", 0, "it is not expected to gain anything on this device"))
            settings = replace(settings, drafter=None)
    settings = _with_outputs(settings, target)
    return _State(target, settings), [*_free_trims(target, drafter if settings.drafter else None, settings), *notes]


def _longest(target: ModelShape) -> int:
    """Drafts that a plan leaves room for: each token is a row of logits, and a copy of a recurrent state."""
    return 4 if target.is_recurrent else N_DRAFT_MOST


def _draft_snapshots(n_draft: int) -> int:
    """Copies of a hybrid drafter's state, with which it takes a round back: as the engine sets it up."""
    return max(n_draft * DRAFT_TOKENS_MOST, 1)


def _with_outputs(settings: PairSettings, target: ModelShape) -> PairSettings:
    """Rows of logits, batch and snapshots that this draft length needs."""
    rows = settings.n_draft + 1
    main = replace(
        settings.target,
        n_outputs=rows,
        n_ubatch=max(settings.target.n_ubatch, rows),
        n_rs_seq=rows if target.is_recurrent and target.can_rewind else 0,
    )
    own = settings.drafter
    if own is not None and own.n_rs_seq:
        own = replace(own, n_rs_seq=_draft_snapshots(settings.n_draft))
    return replace(settings, target=main, drafter=own)


def _free_trims(target: ModelShape, drafter: ModelShape | None, settings: PairSettings) -> list[Step]:
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
        steps.append(Step(f"{role}: logits of {ENGINE_N_UBATCH} -> {chosen.n_outputs} rows", saved, "none"))
        saved = compute_bytes(shape, fewer) - compute_bytes(shape, chosen)
        steps.append(Step(f"{role}: batch of {wide.n_ubatch} -> {chosen.n_ubatch} tokens", saved, "none on a CPU"))
    return [step for step in steps if step.saved_bytes > 0]


def _descend(
    start: _State,
    steps: Sequence[Step],
    ladder: Sequence[_Rung],
    drafter: ModelShape | None,
    device: Device,
    size: Sizer,
) -> MemoryPlan:
    """Down the ladder until it fits; then back up wherever a rung was not needed."""

    def planned(state: _State) -> MemoryPlan:
        return plan(state.target, drafter, state.settings, device.limit, sizer=size)

    def after(rungs: Sequence[_Rung]) -> _State:
        state = start
        for rung in rungs:
            state = rung.apply(state) or state
        return state

    taken: list[_Rung] = []
    state, current = start, planned(start)
    for rung in ladder:
        if current.fits:
            break
        changed = rung.apply(state)
        if changed is None:
            continue
        smaller = planned(changed)
        if smaller.total_bytes < current.total_bytes:
            taken.append(rung)
            state, current = changed, smaller
    if current.fits:
        for rung in taken[-2::-1]:
            kept = [other for other in taken if other is not rung]
            if planned(after(kept)).fits:
                taken = kept
    listed, state, current = list(steps), start, planned(start)
    for rung in taken:
        changed = rung.apply(state)
        if changed is None:
            continue
        smaller = planned(changed)
        saved = current.process_bytes - smaller.process_bytes
        listed.append(Step(rung.name(state, changed), saved, rung.cost, rung.tells))
        state, current = changed, smaller
    if state.settings.drafter is None:
        listed = [step for step in listed if not step.name.startswith("drafter:")]
    speed = predict(state.target, drafter, state.settings, device)
    return replace(current, tokens_per_s=speed, steps=tuple(listed))


def _bound(start: _State, drafter: ModelShape | None, device: Device, size: Sizer) -> int | None:
    """Bytes of the smallest plan in which the draft model still gains, the target's quality untouched."""
    if drafter is None or start.settings.drafter is None:
        return None
    state = start
    for rung in _drafting_rungs(Ask(), drafter):
        changed = rung.apply(state)
        if changed is None or changed.settings.drafter is None:
            continue
        if gains(changed.target, drafter, changed.settings, device):
            state = changed
    if not gains(state.target, drafter, state.settings, device):
        return None
    return plan(state.target, drafter, state.settings, device.limit, sizer=size).required_bytes


def _needed(target: ModelShape, device: Device, ask: Ask, size: Sizer) -> int:
    """The least budget that holds the target at its own quantisation, all that was left open trimmed."""

    def required(state: _State) -> int:
        return plan(target, None, state.settings, device.limit, sizer=size).required_bytes

    state, _ = _start(target, None, device, ask)
    least = required(state)
    for rung in _ladder(ask, None, ()):
        changed = rung.apply(state)
        if changed is not None and (smaller := required(changed)) < least:
            state, least = changed, smaller
    return least


def _lost(plan: MemoryPlan, target: ModelShape, drafter: ModelShape | None, ask: Ask) -> tuple[str, ...]:
    """What was asked for and is not kept, a sentence each. All else is kept, or the plan does not fit."""
    lost = []
    stateful = f"{target.name} keeps a state that cannot be cut back, so nothing is drafted for it"
    if drafter is not None and plan.drafter is None and ask.keep_drafter:
        if not can_draft(drafter):
            why = f"{drafter.architecture} keeps a state that cannot be cut back, so it cannot draft"
        else:
            why = f"it does not fit beside {target.name}" if target.can_rewind else stateful
        lost.append(f"{drafter.name} is not used as the drafter: {why}")
    elif ask.n_draft and not target.can_rewind:
        lost.append(f"there are no drafts of {ask.n_draft} tokens: {stateful}")
    if ask.kv is not None and target.onnx is not None:
        lost.append(f"the cache of {target.name} is not of {ask.kv}: its type is part of the graph")
    return tuple(lost)


def _ladder(ask: Ask, drafter: ModelShape | None, smaller: Sequence[ModelShape]) -> list[_Rung]:
    rungs = _drafting_rungs(ask, drafter)
    rungs.append(_Rung(lambda a, b: "draft model dropped, copying kept", _drop_drafter, "most of the speed-up", True))
    if ask.kv is None:
        rungs.append(_kv_rung("q8_0", "answers may differ in places"))
        rungs.append(_kv_rung("q4_0", "answers differ more often"))
    if ask.n_ctx is None:
        for n_ctx in (2048, 1024, LEAST_CTX):
            rungs.append(_context_rung(n_ctx))
    for shape in smaller:
        rungs.append(_quantisation_rung(shape))
    return rungs


def _drafting_rungs(ask: Ask, drafter: ModelShape | None) -> list[_Rung]:
    """What speculation and prompts give up before quality is touched."""
    rungs = [_batch_rung("drafter", 32, "the drafter reads prompts a quarter slower")]
    if ask.n_draft is None:
        rungs.append(_length_rung(8))
    if ask.n_ubatch is None:
        rungs.append(_batch_rung("target", 64, "prompts about 20 % slower"))
        rungs.append(_batch_rung("target", 32, "prompts about 30 % slower"))
    for window in (2048, 1024, 512):
        rungs.append(_window_rung(window))
    if drafter is not None and fits_cache(drafter, "q8_0"):
        rungs.append(_draft_kv_rung())
    if ask.n_draft is None:
        rungs += [_length_rung(n_draft) for n_draft in (4, 2)]
    return rungs


def _batch_rung(role: str, n_ubatch: int, cost: str) -> _Rung:
    def settings_of(state: _State) -> ContextSettings | None:
        return state.settings.target if role == "target" else state.settings.drafter

    def apply(state: _State) -> _State | None:
        chosen = settings_of(state)
        if chosen is None or max(n_ubatch, chosen.n_outputs) >= chosen.n_ubatch:
            return None
        less = replace(chosen, n_ubatch=max(n_ubatch, chosen.n_outputs))
        return replace(
            state,
            settings=replace(state.settings, target=less)
            if role == "target"
            else replace(state.settings, drafter=less),
        )

    def name(before: _State, after: _State) -> str:
        a, b = settings_of(before), settings_of(after)
        return f"{role}: batch of {a.n_ubatch if a else 0} -> {b.n_ubatch if b else 0} tokens"

    return _Rung(name, apply, cost)


def _drafter_rung(
    name: Callable[[ContextSettings, ContextSettings], str],
    change: Callable[[ContextSettings], ContextSettings],
    cost: str,
) -> _Rung:
    def apply(state: _State) -> _State | None:
        own = state.settings.drafter
        if own is None or change(own) == own:
            return None
        return replace(state, settings=replace(state.settings, drafter=change(own)))

    def named(before: _State, after: _State) -> str:
        a, b = before.settings.drafter, after.settings.drafter
        return name(a, b) if a and b else ""

    return _Rung(named, apply, cost)


def _window_rung(window: int) -> _Rung:
    return _drafter_rung(
        lambda a, b: f"drafter: window of {a.n_ctx:,} -> {b.n_ctx:,} tokens",
        lambda own: replace(own, n_ctx=min(own.n_ctx, window)),
        "drafts forget what is further back",
    )


def _draft_kv_rung() -> _Rung:
    return _drafter_rung(
        lambda a, b: f"drafter: cache {a.kv} -> {b.kv}",
        lambda own: replace(own, kv="q8_0") if own.kv == "f16" else own,
        "drafts may be accepted less often; answers unchanged",
    )


def _length_rung(n_draft: int) -> _Rung:
    def apply(state: _State) -> _State | None:
        if state.settings.n_draft <= n_draft:
            return None
        return replace(state, settings=_with_outputs(replace(state.settings, n_draft=n_draft), state.target))

    return _Rung(
        lambda a, b: f"draft length {a.settings.n_draft} -> {b.settings.n_draft}", apply, "fewer tokens a round"
    )


def _drop_drafter(state: _State) -> _State | None:
    if state.settings.drafter is None:
        return None
    return replace(state, settings=replace(state.settings, drafter=None))


def _kv_rung(kv: KvType, cost: str) -> _Rung:
    def apply(state: _State) -> _State | None:
        if state.target.onnx is not None or not fits_cache(state.target, kv):  # a graph's type is part of it
            return None
        main = replace(state.settings.target, kv=kv)
        return None if main == state.settings.target else replace(state, settings=replace(state.settings, target=main))

    return _Rung(lambda a, b: f"target: cache {a.settings.target.kv} -> {kv}", apply, cost, tells=True)


def _context_rung(n_ctx: int) -> _Rung:
    def apply(state: _State) -> _State | None:
        settings = state.settings
        if settings.target.n_ctx <= n_ctx:
            return None
        own = settings.drafter
        return replace(
            state,
            settings=replace(
                settings,
                target=replace(settings.target, n_ctx=n_ctx),
                drafter=replace(own, n_ctx=min(own.n_ctx, n_ctx)) if own else None,
            ),
        )

    return _Rung(
        lambda a, b: f"context {a.settings.target.n_ctx:,} -> {n_ctx:,} tokens", apply, "a shorter conversation", True
    )


def _quantisation_rung(shape: ModelShape) -> _Rung:
    def apply(state: _State) -> _State | None:
        return None if shape.weight_bytes >= state.target.weight_bytes else replace(state, target=shape)

    return _Rung(
        lambda a, b: f"target: {a.target.quantisation} -> {b.target.quantisation}", apply, "a coarser model", tells=True
    )
