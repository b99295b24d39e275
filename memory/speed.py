"""How fast a plan will roughly decode.

One token reads every weight once, so it takes bytes / bandwidth; a pass over several takes that or their arithmetic,
whichever is longer. A round of drafting k tokens yields (1 - a^(k+1)) / (1 - a) tokens at acceptance a (Leviathan et
al. 2023, arXiv:2211.17192). Copying from the conversation is not counted on: with it, fresh questions were answered at
1.00 to 1.02 times the plain speed. Whatever is assumed here gives way to measurements where there are any.
"""

from __future__ import annotations

from dataclasses import replace

from edgellm.memory.context import ContextSettings
from edgellm.memory.device import Device
from edgellm.memory.kv import cache_bytes
from edgellm.memory.plan import PairSettings, Speed
from edgellm.memory.shape import ModelShape

SAME_FAMILY = 0.80  # acceptance of a drafter of the target's family, greedy, measured on code and mathematics
OTHER_FAMILY = 0.65  # of a drafter with another vocabulary
EFFICIENCY = 0.7  # of a memory's bandwidth that reading weights reaches
ROUND_S = 0.0003  # our own work in a round: translation, bookkeeping


def pass_s(shape: ModelShape, settings_bytes: int, device: Device, n_tokens: int) -> float:
    """Seconds of one pass over `n_tokens`; `settings_bytes` is the cache, half of which is filled on average."""
    read = (shape.bytes_read(n_tokens) + settings_bytes / 2) / (device.bandwidth_bytes_s * EFFICIENCY)
    share = shape.bytes_read_per_token / max(shape.weight_bytes, 1)
    return max(read, n_tokens * shape.n_params * share / device.macs_s)


GRAPH_LAYER_BYTES = 19_000  # of a layer's description, which a worker is sent where a pass is of another width
INPUT_BYTES = 4_000  # of descriptions of what a pass begins with
UNMEASURED_BYTES_S = 100e6  # of a link whose speed nobody could measure


def placed_pass_s(shape: ModelShape, context: ContextSettings, device: Device, n_tokens: int) -> float:
    """Seconds of a pass over `n_tokens` where layers lie on workers too.

    Each worker costs a round trip: what goes in and the pass itself are sent in one go, and its last layer's rows come
    back. A pass of one token is described once, wider ones each time.
    """
    cache = cache_bytes(shape, context)
    here_s = pass_s(shape, cache, device, n_tokens)
    whole_s = here_s
    limits = {each.name: each for each in device.accelerators}
    for name, n_layers in context.placed:
        remote = limits[name].remote if name in limits else None
        if remote is None:
            continue
        share = n_layers / max(shape.n_layers, 1)
        if remote.bandwidth_bytes_s and remote.macs_s:
            there = replace(device, bandwidth_bytes_s=remote.bandwidth_bytes_s, macs_s=remote.macs_s)
            whole_s += share * (pass_s(shape, cache, there, n_tokens) - here_s)
        n_bytes = INPUT_BYTES + n_tokens * (8 * shape.n_embd + 2 * context.n_cells)
        n_bytes += n_layers * GRAPH_LAYER_BYTES if n_tokens > 1 else 0
        whole_s += remote.round_trip_s + n_bytes / (remote.link_bytes_s or UNMEASURED_BYTES_S)
    return whole_s


def predict(target: ModelShape, drafter: ModelShape | None, settings: PairSettings, device: Device) -> Speed:
    """Tokens a second with and without drafting, at the draft length within the plan's that pays best."""
    plain = 1 / placed_pass_s(target, settings.target, device, 1)
    best = plain
    for k in range(1, settings.n_draft + 1):
        verifying = placed_pass_s(target, settings.target, device, k + 1)
        if drafter is not None and settings.drafter is not None:
            drafting = k * pass_s(drafter, cache_bytes(drafter, settings.drafter), device, 1)
            best = max(best, _rate(acceptance(target, drafter), k, drafting + verifying + ROUND_S))
    return Speed(round(best, 2), "estimated", round(plain, 2))


def gains(target: ModelShape, drafter: ModelShape, settings: PairSettings, device: Device) -> bool:
    """Whether the draft model should bring more than the same settings without it."""
    alone = replace(settings, drafter=None)
    return predict(target, drafter, settings, device).value > predict(target, None, alone, device).value


def acceptance(target: ModelShape, drafter: ModelShape) -> float:
    """Assumed share of drafted tokens that the target keeps."""
    family = target.architecture[:4] == drafter.architecture[:4] and abs(target.n_vocab - drafter.n_vocab) <= 1024
    return SAME_FAMILY if family else OTHER_FAMILY


def _rate(accepted: float, n_draft: int, round_s: float) -> float:
    tokens: float = (1 - accepted ** (n_draft + 1)) / (1 - accepted)
    return tokens / round_s
