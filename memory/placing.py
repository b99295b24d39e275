"""How many layers of a pair go to accelerators: as many as were asked for, or as fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgellm.memory.buffers import estimate
from edgellm.memory.context import ContextSettings
from edgellm.memory.device import Device
from edgellm.memory.placement import AUTO, DeviceLimit, n_layers_on
from edgellm.memory.plan import DEVICE_BYTES, plan
from edgellm.memory.plan_lines import PairSettings, model_lines
from edgellm.memory.plan_request import PlanRequest
from edgellm.memory.shape import ModelShape
from edgellm.memory.speed import pass_s

MOST_DRAFT_S = 0.010  # of a drafter's pass on the processor, with which it is left there


def placed(
    settings: PairSettings, target: ModelShape, drafter: ModelShape | None, device: Device, ask: PlanRequest
) -> PairSettings:
    """The settings with as many layers on the accelerators as were asked for, or as they hold: the drafter's first."""
    limits = {each.name: each for each in device.accelerators}
    free = {each.name: each.usable_bytes - (0 if each.unified else DEVICE_BYTES) for each in device.accelerators}
    own = settings.drafter
    if drafter is not None and own is not None and not drafter.head_of:  # which lies with its target
        where = _draft_device(drafter, own, device, ask)
        own = _place(drafter, own, where, ask.n_draft_gpu_layers, free, limits) if where else own
    main = settings.target
    if ask.workers:
        return _lend(replace(settings, drafter=own), target, drafter, device, ask)
    if ask.main_device:
        main = _place(target, main, ask.main_device, ask.n_gpu_layers, free, limits)
    return replace(settings, target=main, drafter=own)


def _draft_device(drafter: ModelShape, own: ContextSettings, device: Device, ask: PlanRequest) -> str:
    """The accelerator of the drafter's layers; "": the processor, where it drafts while the target's GPU verifies."""
    if ask.draft_device != AUTO:
        return ask.draft_device
    here_s = pass_s(drafter, 0, device, 1) if drafter.known else 0.0
    return "" if here_s <= MOST_DRAFT_S else ask.main_device


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


def _lend(
    settings: PairSettings, target: ModelShape, drafter: ModelShape | None, device: Device, ask: PlanRequest
) -> PairSettings:
    """The settings with as many of the target's last layers on workers as were asked for, or as do not fit here.

    Each further worker costs the way to it in every pass, and no layer is computed sooner for it. So they are as few as
    hold the layers, the nearest first.
    """
    found = {each.name: each for each in device.accelerators}
    near = sorted((found[name] for name in ask.workers if name in found), key=_way_s)
    if not target.known:
        return settings
    lent = settings
    for n in [min(ask.n_gpu_layers, target.n_layers)] if ask.n_gpu_layers >= 0 else range(target.n_layers + 1):
        parts = _parts(settings, target, near, n, whole=ask.n_gpu_layers >= 0)
        if parts is None:
            break
        lent = replace(settings, target=replace(settings.target, placed=parts, head_stays=bool(parts)))
        if plan(target, drafter, lent, device.limit, devices=device.accelerators).headroom_bytes >= 0:
            break
    return lent


def _way_s(worker: DeviceLimit) -> float:
    """Seconds that a pass of one token takes longer for a worker."""
    remote = worker.remote
    return remote.round_trip_s + _PASS_BYTES / (remote.link_bytes_s or _PASS_BYTES) if remote else 0.0


_PASS_BYTES = 2**16  # of one pass, about


def _parts(
    settings: PairSettings, shape: ModelShape, workers: Sequence[DeviceLimit], n_layers: int, *, whole: bool
) -> tuple[tuple[str, int], ...] | None:
    """So many layers over these workers in turn, each as full as it may be; None where they do not hold them.

    Args:
        whole: the last takes what is left all the same, and the plan says that it does not fit.
    """
    parts: list[tuple[str, int]] = []
    for worker in workers:
        n = n_layers
        while (
            n
            and not (whole and worker is workers[-1])
            and _lent_bytes(settings, shape, worker.name, n) > worker.usable_bytes
        ):
            n -= 1
        if n:
            parts.append((worker.name, n))
        n_layers -= n
    return None if n_layers else tuple(parts)


def _lent_bytes(settings: PairSettings, shape: ModelShape, name: str, n: int) -> int:
    context = replace(settings.target, placed=((name, n),), head_stays=True)
    sizes = estimate(shape, context)
    return sum(line.n_bytes for line in model_lines("target", shape, context, sizes, settings) if line.device == name)
