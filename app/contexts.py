"""Memory against context: a model by the cache's type and the context's length, with and without its drafter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgellm.app.shapes import drafter_for, look_up

if TYPE_CHECKING:
    from edgellm.memory.context import KvType
    from edgellm.memory.device import Device
    from edgellm.memory.plan_request import PlanRequest
    from edgellm.memory.shape import ModelShape

CONTEXTS = (2048, 4096, 8192, 16_384, 32_768)  # tokens
KINDS: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True, slots=True)
class ContextCell:
    """What one plan takes, nothing trimmed."""

    model: str
    quantisation: str
    drafter: str | None
    kv: str
    n_ctx: int
    n_bytes: int
    fits: bool
    beyond_training: bool


@dataclass(frozen=True, slots=True)
class ContextLine:
    """One type of the cache over all contexts."""

    drafter: str | None
    kv: str
    cells: tuple[ContextCell, ...]


def context_lines(
    model: str, draft: str | None, ask: PlanRequest, place: Device, *, offline: bool = False
) -> list[ContextLine]:
    """Without the drafter first; types that a model's heads do not divide into are left out.

    Raises:
        UnknownShape: the cache of one of the models is not known.
    """
    from edgellm.memory.kv import fits_cache
    from edgellm.memory.shape import UnknownShape

    target = look_up(model, offline=offline)
    drafter = drafter_for(target.shape, draft, offline=offline)
    for known in (target, drafter):
        if known is not None and not known.shape.known:
            raise UnknownShape(f"the cache of {known.shape.architecture} is not known, so it cannot be drawn")
    shapes = [None, drafter.shape] if drafter is not None else [None]
    kinds = [kv for kv in KINDS if ask.kv in (None, kv) and fits_cache(target.shape, kv)]
    contexts = sorted({*CONTEXTS, *([ask.n_ctx] if ask.n_ctx else [])})
    lines = []
    for shape in shapes:
        for kv in kinds:
            cells = tuple(_cell(target.shape, shape, replace(ask, kv=kv, n_ctx=n_ctx), place) for n_ctx in contexts)
            lines.append(ContextLine(cells[0].drafter, kv, cells))
    return [line for line in lines if line.drafter or shapes[0] is None]


def _cell(target: ModelShape, drafter: ModelShape | None, ask: PlanRequest, place: Device) -> ContextCell:
    from edgellm.memory.solve import untrimmed

    plan = untrimmed(target, drafter, place, ask)
    assert ask.n_ctx is not None
    return ContextCell(
        model=target.name,
        quantisation=target.quantisation,
        drafter=plan.drafter,
        kv=plan.settings.target.kv,
        n_ctx=ask.n_ctx,
        n_bytes=plan.required_bytes,
        fits=plan.required_bytes <= place.usable_bytes,
        beyond_training=ask.n_ctx > target.n_ctx_train,
    )
