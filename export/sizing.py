"""The largest type of a model that a device's memory holds, by the planner's arithmetic."""

from __future__ import annotations

from typing import Any

from edgellm.export.obtain.source import ModelSource
from edgellm.export.read.facts import UnsupportedModel, read_config, read_document, text_settings
from edgellm.memory import plan as planner
from edgellm.memory.context import N_DRAFT_MOST, ContextSettings
from edgellm.memory.counts import from_config
from edgellm.memory.device import sized_device
from edgellm.memory.limits import N_UBATCH_DRAFT
from edgellm.memory.plan import MemoryPlan, PairSettings
from edgellm.memory.shape import ModelShape, UnknownShape, from_header
from edgellm.memory.split import read_model
from edgellm.memory.units import format_bytes

# From the most exact down; below Q3_K_M small models lose more than their size is worth.
CANDIDATES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M")
DRAFT_QUANT = "Q4_0"


def best_quant(target: ModelSource, draft: ModelSource | None, device_bytes: int, n_ctx: int) -> tuple[str, MemoryPlan]:
    """The type and its plan, the drafter (if any) in a small type of its own.

    Raises:
        DoesNotFit: not even the smallest type fits.
    """
    limit = sized_device(device_bytes).limit
    drafter = _shape(draft, DRAFT_QUANT) if draft else None
    settings = PairSettings(
        ContextSettings(n_ctx, n_outputs=N_DRAFT_MOST + 1),
        N_DRAFT_MOST,
        ContextSettings(n_ctx, n_ubatch=N_UBATCH_DRAFT) if drafter else None,
    )
    plan = None
    for quant in CANDIDATES:
        plan = planner.plan(_shape(target, quant), drafter, settings, limit)
        if plan.fits:
            return quant, plan
    assert plan is not None
    short = format_bytes(-plan.headroom_bytes)
    raise planner.DoesNotFit(f"{target.name} lacks {short} even as {CANDIDATES[-1]}: give more --mem or less --ctx")


def _shape(source: ModelSource, quant: str) -> ModelShape:
    if source.is_gguf:
        return from_header(read_model(source.path), source.name)
    try:
        return from_config(_config(source), quant, source.name)
    except UnknownShape as error:
        raise UnknownShape(
            f"{error.args[0].partition(';')[0]}, so that --mem cannot choose a type for it: export it with "
            f"--quant F16 first, and then its file with --mem"
        ) from error


def _config(source: ModelSource) -> dict[str, Any]:
    """The text model's settings; those of a family that llama.cpp's script converts as they are."""
    try:
        return read_config(source.path)[1]
    except UnsupportedModel:
        return text_settings(read_document(source.path))
