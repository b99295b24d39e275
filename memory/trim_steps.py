"""The steps of the ladder that a plan is trimmed by, in SpecMemo's order (arXiv:2506.01986).

Each step changes one setting and says what it costs; `solve.py` decides which are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgellm.memory.context import DRAFT_TOKENS_MOST, ContextSettings, KvType, rows_for
from edgellm.memory.kv import fits_cache, saved_states
from edgellm.memory.plan import PairSettings
from edgellm.memory.plan_request import PlanRequest
from edgellm.memory.shape import ModelShape

LEAST_CTX = 512


@dataclass(frozen=True, slots=True)
class State:
    target: ModelShape
    settings: PairSettings


@dataclass(frozen=True, slots=True)
class TrimStep:
    name: Callable[[State, State], str]
    apply: Callable[[State], State | None]  # None: nothing to gain
    cost: str
    tells: bool = False


def draft_snapshots(n_draft: int) -> int:
    """Copies of a hybrid drafter's state, with which it takes a round back: as the engine sets it up."""
    return max(n_draft * DRAFT_TOKENS_MOST, 1)


def with_outputs(settings: PairSettings, target: ModelShape) -> PairSettings:
    """Rows of logits, batch and snapshots that this draft length needs."""
    rows = rows_for(settings.n_draft, settings.target.n_sequences)
    main = replace(
        settings.target,
        n_outputs=rows,
        n_ubatch=max(settings.target.n_ubatch, rows),
        n_rs_seq=rows if target.keeps_snapshots else 0,
    )
    own = settings.drafter
    if own is not None and own.n_rs_seq:
        own = replace(own, n_rs_seq=draft_snapshots(settings.n_draft))
    return replace(settings, target=main, drafter=own)


def all_trim_steps(ask: PlanRequest, drafter: ModelShape | None, smaller: Sequence[ModelShape]) -> list[TrimStep]:
    steps = drafting_trim_steps(ask, drafter)
    steps.append(
        TrimStep(lambda a, b: "draft model dropped, copying kept", _drop_drafter, "most of the speed-up", True)
    )
    if ask.kv is None:
        steps.append(_trim_kv("q8_0", "answers may differ in places"))
        steps.append(_trim_kv("q4_0", "answers differ more often"))
    if ask.n_ctx is None:
        for n_ctx in (2048, 1024, LEAST_CTX):
            steps.append(_trim_context(n_ctx))
    for shape in smaller:
        steps.append(_trim_quantisation(shape))
    return steps


def drafting_trim_steps(ask: PlanRequest, drafter: ModelShape | None) -> list[TrimStep]:
    """What speculation and prompts give up before quality is touched."""
    steps = [_trim_states(), _trim_batch("drafter", 32, "the drafter reads prompts a quarter slower")]
    if ask.n_draft is None:
        steps.append(_trim_length(8))
    if ask.n_ubatch is None:
        steps.append(_trim_batch("target", 64, "prompts about 20 % slower"))
        steps.append(_trim_batch("target", 32, "prompts about 30 % slower"))
    for window in (2048, 1024, 512):
        steps.append(_trim_window(window))
    if drafter is not None and drafter.known and fits_cache(drafter, "q8_0"):
        steps.append(_trim_draft_kv())
    if ask.n_draft is None:
        steps += [_trim_length(n_draft) for n_draft in (4, 2)]
    return steps


def _trim_states() -> TrimStep:
    def apply(state: State) -> State | None:
        main, least = state.settings.target, saved_states(state.target)
        if main.n_saved_states <= least:
            return None
        return replace(state, settings=replace(state.settings, target=replace(main, n_saved_states=least)))

    return TrimStep(
        lambda a, b: f"target: {a.settings.target.n_saved_states} -> {b.settings.target.n_saved_states} saved states",
        apply,
        "a conversation that is taken up elsewhere than at its end is read again",
    )


def _trim_batch(role: str, n_ubatch: int, cost: str) -> TrimStep:
    def settings_of(state: State) -> ContextSettings | None:
        return state.settings.target if role == "target" else state.settings.drafter

    def apply(state: State) -> State | None:
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

    def name(before: State, after: State) -> str:
        a, b = settings_of(before), settings_of(after)
        return f"{role}: batch of {a.n_ubatch if a else 0} -> {b.n_ubatch if b else 0} tokens"

    return TrimStep(name, apply, cost)


def _trim_drafter(
    name: Callable[[ContextSettings, ContextSettings], str],
    change: Callable[[ContextSettings], ContextSettings],
    cost: str,
) -> TrimStep:
    def apply(state: State) -> State | None:
        own = state.settings.drafter
        if own is None or change(own) == own:
            return None
        return replace(state, settings=replace(state.settings, drafter=change(own)))

    def named(before: State, after: State) -> str:
        a, b = before.settings.drafter, after.settings.drafter
        return name(a, b) if a and b else ""

    return TrimStep(named, apply, cost)


def _trim_window(window: int) -> TrimStep:
    return _trim_drafter(
        lambda a, b: f"drafter: window of {a.n_ctx:,} -> {b.n_ctx:,} tokens",
        lambda own: replace(own, n_ctx=min(own.n_ctx, window)),
        "drafts forget what is further back",
    )


def _trim_draft_kv() -> TrimStep:
    return _trim_drafter(
        lambda a, b: f"drafter: cache {a.kv} -> {b.kv}",
        lambda own: replace(own, kv="q8_0") if own.kv == "f16" else own,
        "drafts may be accepted less often; answers unchanged",
    )


def _trim_length(n_draft: int) -> TrimStep:
    def apply(state: State) -> State | None:
        if state.settings.n_draft <= n_draft:
            return None
        return replace(state, settings=with_outputs(replace(state.settings, n_draft=n_draft), state.target))

    return TrimStep(
        lambda a, b: f"draft length {a.settings.n_draft} -> {b.settings.n_draft}", apply, "fewer tokens a round"
    )


def _drop_drafter(state: State) -> State | None:
    if state.settings.drafter is None:
        return None
    return replace(state, settings=replace(state.settings, drafter=None))


def _trim_kv(kv: KvType, cost: str) -> TrimStep:
    def apply(state: State) -> State | None:
        # A graph's type is part of it; of a model that is not known nobody knows whether its heads divide into blocks.
        if state.target.onnx is not None or not state.target.known or not fits_cache(state.target, kv):
            return None
        main = replace(state.settings.target, kv=kv)
        return None if main == state.settings.target else replace(state, settings=replace(state.settings, target=main))

    return TrimStep(lambda a, b: f"target: cache {a.settings.target.kv} -> {kv}", apply, cost, tells=True)


def _trim_context(n_ctx: int) -> TrimStep:
    def apply(state: State) -> State | None:
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

    return TrimStep(
        lambda a, b: f"context {a.settings.target.n_ctx:,} -> {n_ctx:,} tokens", apply, "a shorter conversation", True
    )


def _trim_quantisation(shape: ModelShape) -> TrimStep:
    def apply(state: State) -> State | None:
        return None if shape.weight_bytes >= state.target.weight_bytes else replace(state, target=shape)

    return TrimStep(
        lambda a, b: f"target: {a.target.quantisation} -> {b.target.quantisation}", apply, "a coarser model", tells=True
    )
