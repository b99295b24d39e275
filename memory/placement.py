"""On which devices a model's layers lie, and how many of them an accelerator's memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.memory.units import MIB

AUTO, PROCESSOR = "auto", "cpu"

AcceleratorKind = Literal["gpu", "integrated", "software", "worker"]
"""gpu: memory of its own; integrated: shares the machine's; software: a GPU's interface computed by the processor;
worker: another process or machine."""

# Of an accelerator's free memory, what a plan leaves to the driver and to the screen.
_KEPT_SHARE, _KEPT_BYTES = 0.05, 128 * MIB


class UnknownAccelerator(EdgellmError, LookupError):
    """No accelerator of that name is here; the message lists those that are."""

    exit_code = USAGE


@dataclass(frozen=True, slots=True)
class Remote:
    """The way to a worker, and how fast it is; 0: not known."""

    round_trip_s: float
    link_bytes_s: float
    bandwidth_bytes_s: float  # of its memory
    macs_s: float
    same_bits: bool  # it multiplies by our kernels, as this machine does


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device beside the processor that the engine can compute on."""

    name: str  # the engine's: Vulkan0
    description: str
    kind: AcceleratorKind
    free_bytes: int
    total_bytes: int
    driver: str = ""  # of which bits and times depend; "": not known
    largest_bytes: int = 0  # of one tensor that its programs can address; 0: not known
    remote: Remote | None = None  # of a worker

    @property
    def unified(self) -> bool:
        """Its memory is the machine's own."""
        return self.kind in ("integrated", "software")

    @property
    def usable_bytes(self) -> int:
        """What a plan may take of it. A worker lends what it can spare."""
        if self.kind == "worker":
            return self.free_bytes
        return max(self.free_bytes - max(int(self.total_bytes * _KEPT_SHARE), _KEPT_BYTES), 0)

    @property
    def limit(self) -> DeviceLimit:
        return DeviceLimit(
            self.name, self.description, self.usable_bytes, self.unified, self.remote, self.largest_bytes
        )


@dataclass(frozen=True, slots=True)
class DeviceLimit:
    """What a plan may take of an accelerator's memory."""

    name: str
    description: str
    usable_bytes: int
    unified: bool  # what it takes is the machine's memory too
    remote: Remote | None = None  # of a worker
    largest_bytes: int = 0  # of one tensor that its programs can address; 0: not known


def chosen(name: str, here: Sequence[Accelerator]) -> Accelerator | None:
    """The accelerator of that name; None: the processor.

    Args:
        name: `auto` takes the one with most memory, never one that the processor plays; `cpu` takes none.

    Raises:
        UnknownAccelerator: there is none of that name.
    """
    folded = name.casefold()
    if folded == AUTO:
        real = [each for each in here if each.kind in ("gpu", "integrated")]
        return max(real, key=lambda each: (each.kind == "gpu", each.usable_bytes), default=None)
    if folded == PROCESSOR:
        return None
    for each in here:
        if each.name.casefold() == folded:
            return each
    known = f"there are {', '.join(['cpu', *(each.name for each in here)])}" if here else (
        "this llama.cpp sees no GPU (docs/gpu.md says how it is built for one)"
    )  # fmt: skip
    raise UnknownAccelerator(f"no device is called {name!r}: {known}")


def n_layers_on(n_asked: int, n_layers: int) -> int:
    """Layers beside the processor, the output head counted as the last, as the engine counts; -1: all."""
    return n_layers + 1 if n_asked < 0 else min(n_asked, n_layers + 1)
