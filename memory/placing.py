"""How many layers of a pair go to accelerators: as many as were asked for, or as fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgellm.memory.buffers import estimate
from edgellm.memory.context import ContextSettings
from edgellm.memory.device import Device
from edgellm.memory.placement import DeviceLimit, n_layers_on
from edgellm.memory.plan import DEVICE_BYTES
from edgellm.memory.plan_lines import PairSettings
from edgellm.memory.plan_request import PlanRequest
from edgellm.memory.shape import ModelShape


def placed(
    settings: PairSettings, target: ModelShape, drafter: ModelShape | None, device: Device, ask: PlanRequest
) -> PairSettings:
    """The settings with as many layers on the accelerators as were asked for, or as they hold: the drafter's first."""
    limits = {each.name: each for each in device.accelerators}
    free = {each.name: each.usable_bytes - (0 if each.unified else DEVICE_BYTES) for each in device.accelerators}
    own = settings.drafter
    if drafter is not None and own is not None and ask.draft_device and not drafter.head_of:  # it lies with its target
        own = _place(drafter, own, ask.draft_device, ask.n_draft_gpu_layers, free, limits)
    main = settings.target
    if ask.main_device:
        main = _place(target, main, ask.main_device, ask.n_gpu_layers, free, limits)
    return replace(settings, target=main, drafter=own)


def _place(
    shape: ModelShape,
    context: ContextSettings,
    device: str,
    n_asked: int,
    free: dict[str, int],
    limits: Mapping[str, DeviceLimit],
) -> ContextSettings:
    """Takes out of `free` what it places."""
    n = n_layers_on(n_asked, shape.n_layers)
    if device in limits:
        context = replace(context, largest_bytes=limits[device].largest_bytes)
    while n and shape.known:
        context = replace(context, placed=((device, n),))
        on = estimate(shape, context).devices[0]
        n_bytes = on.weights_bytes + on.kv_bytes + on.compute_bytes
        if n_asked >= 0 or n_bytes <= free.get(device, 0):
            free[device] = free.get(device, 0) - n_bytes
            break
        n -= 1
    return replace(context, placed=((device, n),) if n else ())
