"""A plan: what a target and its drafter will take, line by line, and whether that fits.

Each line carries its formula with the numbers put in. The runtime allocates what the plan says, so a plan also holds
every setting that decides a size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgellm.memory.buffer_sizes import Sizer
from edgellm.memory.buffers import estimate
from edgellm.memory.errors import DOES_NOT_FIT, EdgellmError
from edgellm.memory.placement import DeviceLimit
from edgellm.memory.plan_lines import Line as Line
from edgellm.memory.plan_lines import Loading as Loading
from edgellm.memory.plan_lines import PairSettings as PairSettings
from edgellm.memory.plan_lines import candidates, model_lines
from edgellm.memory.shape import ModelShape
from edgellm.memory.units import MIB, format_bytes

VERSION = 1

# Measured on Linux x86-64, CPython 3.11, numpy 2.4, llama-cpp-python 0.3.36 (docs/memory.md says how).
RUNTIME_BASE_BYTES = 50 * MIB  # interpreter, numpy, the engine's libraries
ERROR_SHARE = 0.026  # the worst that a prediction was off (docs/memory.md); a plan fits only with this to spare
# What an accelerator's driver takes beside what it is asked for, by an NVIDIA card's through Vulkan (docs/gpu.md).
DRIVER_BYTES, DEVICE_BYTES = 181 * MIB, 184 * MIB  # of the machine's memory, and of its own
WORKER_BYTES = 8 * MIB  # of a worker's engine: passes as they are described, and what was sent but is not in its place
SLACK_BYTES = 5 * MIB  # a context's graph descriptions, and the heap's holes


class PlanError(EdgellmError, ValueError):
    """A stored plan that cannot be read."""


class DoesNotFit(EdgellmError, RuntimeError):
    """The plan is larger than the budget; the message names the nearest plan that would fit."""

    exit_code = DOES_NOT_FIT


@dataclass(frozen=True, slots=True)
class Limit:
    """How much there is."""

    name: str
    total_bytes: int
    reserve_bytes: int = 0  # of the total: what the system and other programs keep


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second while decoding. `plain` is the same target without drafting."""

    value: float
    kind: Literal["measured", "estimated"]
    plain: float


@dataclass(frozen=True, slots=True)
class Trim:
    """One step of the ladder that led here."""

    name: str
    saved_bytes: int
    cost: str
    tells: bool = False  # answers may be others, shorter or slower for it: a summary must not keep it to itself


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    target: str
    drafter: str | None
    quantisation: str
    lines: tuple[Line, ...]
    limit: Limit
    settings: PairSettings
    exact: bool  # buffers came from the engine itself
    tokens_per_s: Speed | None = None
    steps: tuple[Trim, ...] = ()
    bound_bytes: int | None = None  # the least budget with which a draft model still gains
    needed_bytes: int | None = None  # the least budget that holds this target at all, whatever the device
    lost: tuple[str, ...] = ()  # what was asked for and is not kept, a sentence each
    target_reference: str | None = None  # what finds the files again: a path, or a name and its type
    drafter_reference: str | None = None
    target_obtain: str | None = None  # how to make it, where nobody offers it at this type
    drafter_obtain: str | None = None
    loras: tuple[str, ...] = ()  # adapters of the target, as `--lora` names them
    draft_adapter: str | None = None  # of the drafter, as `--draft-adapter` names it; None: the one that is in use then
    devices: tuple[DeviceLimit, ...] = ()  # beside the processor, that layers are placed on

    @property
    def limit_bytes(self) -> int:
        return self.limit.total_bytes

    @property
    def total_bytes(self) -> int:
        """Of the machine's own memory."""
        apart = {device.name for device in self.devices if not device.unified}
        return sum(line.n_bytes for line in self.lines if line.device not in apart)

    def device_bytes(self, name: str) -> int:
        """What lies on an accelerator."""
        return sum(line.n_bytes for line in self.lines if line.device == name)

    @property
    def short_devices(self) -> tuple[DeviceLimit, ...]:
        """The accelerators that do not hold what is placed on them."""
        return tuple(each for each in self.devices if self.device_bytes(each.name) > each.usable_bytes)

    @property
    def required_bytes(self) -> int:
        """A budget that this program keeps to, the margin included."""
        return self.total_bytes - self.limit.reserve_bytes

    @property
    def process_bytes(self) -> int:
        """What this program itself is expected to hold at its peak."""
        return self.required_bytes - self.margin_bytes

    @property
    def margin_bytes(self) -> int:
        """What predictions were off by at worst."""
        return sum(line.n_bytes for line in self.lines if line.name == "margin")

    @property
    def changes(self) -> tuple[str, ...]:
        """The trims that tell."""
        return tuple(step.name for step in self.steps if step.tells)

    @property
    def headroom_bytes(self) -> int:
        return self.limit_bytes - self.total_bytes

    @property
    def fits(self) -> bool:
        return self.headroom_bytes >= 0 and not self.short_devices

    @property
    def generation_bytes(self) -> int:
        """Everything that generating needs beyond the weights: caches, temporaries, logits, candidates."""
        return sum(line.n_bytes for line in self.lines if line.name.partition(" on ")[0] in GENERATION_LINES)

    @property
    def n_ctx(self) -> int:
        return self.settings.target.n_ctx

    @property
    def n_draft(self) -> int:
        return self.settings.n_draft

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values; `stored.plan_from_json` reads it back."""
        settings = self.settings
        return {
            "lost": list(self.lost),
            "changes": list(self.changes),
            "version": VERSION,
            "target": self.target,
            "target_reference": self.target_reference,
            "drafter_reference": self.drafter_reference,
            "target_obtain": self.target_obtain,
            "loras": list(self.loras),
            "draft_adapter": self.draft_adapter,
            "drafter_obtain": self.drafter_obtain,
            "drafter": self.drafter,
            "quantisation": self.quantisation,
            "fits": self.fits,
            "limit_bytes": self.limit_bytes,
            "reserve_bytes": self.limit.reserve_bytes,
            "limit_name": self.limit.name,
            "total_bytes": self.total_bytes,
            "process_bytes": self.process_bytes,
            "margin_bytes": self.margin_bytes,
            "required_bytes": self.required_bytes,
            "needed_bytes": self.needed_bytes,
            "generation_bytes": self.generation_bytes,
            "headroom_bytes": self.headroom_bytes,
            "bound_bytes": self.bound_bytes,
            "lines": [asdict(line) for line in self.lines],
            "n_ctx": settings.target.n_ctx,
            "n_draft": settings.n_draft,
            "kv": settings.target.kv,
            "n_ubatch": settings.target.n_ubatch,
            "n_outputs": settings.target.n_outputs,
            "n_threads": settings.target.n_threads,
            "n_sequences": settings.target.n_sequences,
            "n_rs_seq": settings.target.n_rs_seq,
            "n_saved_states": settings.target.n_saved_states,
            "placed": [list(part) for part in settings.target.placed],
            "head_stays": settings.target.head_stays,
            "largest_bytes": settings.target.largest_bytes,
            "devices": [asdict(device) for device in self.devices],
            "drafter_settings": asdict(settings.drafter) if settings.drafter else None,
            "copy": settings.copy,
            "loading": settings.loading,
            "repack": settings.repack,
            "exact": self.exact,
            "tokens_per_s": asdict(self.tokens_per_s) if self.tokens_per_s else None,
            "steps": [asdict(step) for step in self.steps],
        }


_PARTS = ("cache", "states", "compute", "logits")
GENERATION_LINES = {"candidates", *(f"{role} {part}" for role in ("target", "drafter") for part in _PARTS)}


def plan(
    target: ModelShape,
    drafter: ModelShape | None,
    settings: PairSettings,
    limit: Limit,
    *,
    sizer: Sizer = estimate,
    devices: Sequence[DeviceLimit] = (),
) -> MemoryPlan:
    """Every line of a pair under these settings, on the machine and on those of `devices` that layers are placed on.

    Raises:
        UnsupportedCache: a cache type that a model's heads do not divide into.
    """
    lines: list[Line] = []
    sizes = [sizer(target, settings.target, settings.repack)]
    lines += model_lines("target", target, settings.target, sizes[0], settings)
    if drafter is not None and settings.drafter is not None:
        sizes.append(sizer(drafter, settings.drafter, settings.repack))
        lines += model_lines("drafter", drafter, settings.drafter, sizes[1], settings)
    lines.append(candidates(target, settings, spells=drafter is not None and not drafter.head_of))
    lines.append(Line("runtime", RUNTIME_BASE_BYTES, "interpreter, numpy and the engine's libraries, measured"))
    used = _used(settings, devices)
    for each in used:
        if each.remote is not None:
            lines.append(Line(f"passes on {each.name}", WORKER_BYTES, "their descriptions, measured", each.name))
            continue
        lines.append(Line(f"driver of {each.name}", DRIVER_BYTES, "its library and compiled programs, measured"))
        if not each.unified:
            lines.append(Line(f"driver on {each.name}", DEVICE_BYTES, "its own, measured", each.name))
    graphs = target.onnx is not None or (
        drafter is not None and drafter.onnx is not None and settings.drafter is not None
    )
    error = ERROR_SHARE
    if graphs:
        from edgellm.memory import onnx_plan  # reading graphs is a tenth of a short command's time

        error = onnx_plan.ERROR_SHARE
        lines.append(Line("runtime onnxruntime", onnx_plan.LIBRARY_BYTES, "its library, measured"))
    lines.append(Line("unaccounted", len(sizes) * SLACK_BYTES, f"{format_bytes(SLACK_BYTES)} a context"))
    apart = {device.name for device in used if not device.unified}
    process_bytes = sum(line.n_bytes for line in lines if line.device not in apart)
    margin = math.ceil(process_bytes * error)
    lines.append(Line("margin", margin, f"{error:.1%}, the worst that predictions were off"))
    if limit.reserve_bytes:
        lines.append(
            Line("system reserve", limit.reserve_bytes, f"kept for the system and other programs: {limit.name}")
        )
    kept_drafter = drafter.name if drafter is not None and settings.drafter is not None else None
    exact = all(size.exact for size in sizes)
    return MemoryPlan(
        target.name, kept_drafter, target.quantisation, tuple(lines), limit, settings, exact, devices=used
    )


def _used(settings: PairSettings, devices: Sequence[DeviceLimit]) -> tuple[DeviceLimit, ...]:
    """Those that layers are placed on."""
    names = {name for context in (settings.target, settings.drafter) if context for name, n in context.placed if n}
    return tuple(device for device in devices if device.name in names)
