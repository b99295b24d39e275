"""How much memory there is: on this machine, on a device by name, or a size that was given.

A device's memory (`--mem`) is not a program's: the system and other programs keep their share, and phones end programs
that take more than theirs. A budget (`--budget`) is a program's own.
"""

from __future__ import annotations

import difflib
import functools
import platform
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from edgellm.memory import units
from edgellm.memory.cpu import own_groups as _own_groups
from edgellm.memory.cpu import upwards, usable_cores
from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.memory.placement import DeviceLimit
from edgellm.memory.plan import Limit
from edgellm.memory.units import MIB, format_bytes, is_decimal, parse_bytes

DeviceKind = Literal["phone", "board", "laptop", "gpu", "machine"]
CATALOGUE = Path(__file__).with_name("devices.toml")
SHARE = 0.5  # of a device's memory that one program may take, where nothing more is known: 2 GB of a 4 GB phone


class UnknownDevice(EdgellmError, LookupError):
    """No device of that name; the message names the nearest ones."""

    exit_code = USAGE


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan needs to know of a device."""

    name: str
    description: str
    kind: DeviceKind
    total_bytes: int
    usable_bytes: int  # what one program may really take
    bandwidth_bytes_s: float  # of the memory that holds the weights, by its data sheet
    macs_s: float  # 8-bit multiply-adds a second that inference reaches: an assumption, for estimates alone
    isa: Literal["x86", "arm"]
    unified: bool  # CPU and accelerator share this memory
    source: str  # where the figures are from
    words: tuple[str, ...] = ()  # what else people call such a device
    decimal: bool = False  # its memory is sold in GB of 10^9 bytes
    accelerators: tuple[DeviceLimit, ...] = ()  # that layers may be placed on, beside the processor

    @property
    def limit(self) -> Limit:
        return Limit(self.name, self.total_bytes, self.total_bytes - self.usable_bytes)


@functools.cache
def known_devices() -> tuple[Device, ...]:
    """The catalogue that ships with the package."""
    with CATALOGUE.open("rb") as file:
        return tuple(_device(entry) for entry in tomllib.load(file)["device"])


def find_device(name: str) -> Device:
    """A device of the catalogue, or `here`.

    Raises:
        UnknownDevice: none is called that.
    """
    if name.casefold() == "here":
        return this_machine()
    by_name = {device.name: device for device in known_devices()}
    if device := by_name.get(name.casefold()):
        return device
    near = _near(name.casefold())
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UnknownDevice(f"no device is called {name!r}: {hint}`edgellm devices` lists them, --mem SIZE takes any size")


def _near(name: str) -> list[str]:
    """Devices that go by this word (`pixel` is an Android phone), else those spelt like it."""
    words = set(re.findall(r"[a-z]+", name))
    akin = [device.name for device in known_devices() if words & {*device.words, *re.findall(r"[a-z]+", device.name)}]
    spelt = difflib.get_close_matches(name, [device.name for device in known_devices()], 3, 0.4)
    return [near for near in spelt if near in akin] or akin[:5] or spelt


def this_machine(root: Path = Path("/sys/fs/cgroup")) -> Device:
    """This machine, with what is free now: the system's own figure or the control group's, whichever is less."""
    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    name, allowed = "this machine", cgroup_memory(root)
    reserve = min(total // 20, 512 * MIB)  # so that the system keeps breathing
    if allowed is not None and allowed[0] < total:
        total, free = allowed[0], min(free, max(allowed[0] - allowed[1], 0))
        name, reserve = "this container", total // 100  # the system itself lives outside
    isa: Literal["x86", "arm"] = "arm" if platform.machine().lower() in ("arm64", "aarch64") else "x86"
    n_cores = usable_cores()
    return Device(
        name=name,
        description=f"{n_cores} cores, {format_bytes(total)}, {format_bytes(free)} free",
        kind="machine",
        total_bytes=total,
        usable_bytes=max(free - reserve, 0),
        bandwidth_bytes_s=min(17e9 * n_cores, 60e9),  # measured: 2 cores of a server decode at 24 GB/s, 70 % of 34
        macs_s=60e9 * n_cores,  # measured: eight tokens of a 1.5B model in 0.1 s on two cores with AVX2, by our kernels
        isa=isa,
        unified=platform.system() == "Darwin" and isa == "arm",
        source="asked of the system; bandwidth assumed",
    )


def sized_device(total_bytes: int) -> Device:
    """A device of which only the memory is known: a program gets half, as on a phone."""
    return Device(
        name=f"a device of {format_bytes(total_bytes)}",
        description="only its memory is known",
        kind="board",
        total_bytes=total_bytes,
        usable_bytes=int(total_bytes * SHARE),
        bandwidth_bytes_s=25e9,
        macs_s=150e9,
        isa="arm",
        unified=False,
        decimal=units.answers_in_decimal(),
        source="assumed: a program gets half of the memory, as on a phone, at 25 GB/s (--device NAME knows more, "
        "--budget SIZE is the program's own)",
    )


def budget_device(budget_bytes: int) -> Device:
    """This machine's speed with a program's own budget."""
    here = this_machine()
    return Device(
        name=f"a budget of {format_bytes(budget_bytes)}",
        description="a program's own budget",
        kind=here.kind,
        total_bytes=budget_bytes,
        usable_bytes=budget_bytes,
        bandwidth_bytes_s=here.bandwidth_bytes_s,
        macs_s=here.macs_s,
        isa=here.isa,
        unified=here.unified,
        decimal=units.answers_in_decimal(),
        source=here.source,
    )


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit that somebody set on this process's memory, and what is used of it."""

    where: str
    limit_bytes: int
    used_bytes: int


def cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """(limit, used) of this process's control groups, version 2 and 1; None where there is no limit.

    Every group on the way down binds: the limit is the smallest, and what is left of it is the least that any leaves.
    """
    limits = cgroup_limits(root)
    if not limits:
        return None
    least = min(limit.limit_bytes for limit in limits)
    return least, least - min(max(limit.limit_bytes - limit.used_bytes, 0) for limit in limits)


def cgroup_limits(root: Path = Path("/sys/fs/cgroup")) -> list[MemoryLimit]:
    """Each limit of each control group that this process is in, the innermost group first."""
    try:
        own = _own_groups()
    except OSError:
        own = {}
    return [
        limit
        for folder, names in (
            *((folder, _VERSION_2) for folder in upwards(root, own.get("", ""))),
            *((folder, _VERSION_1) for folder in upwards(root / "memory", own.get("memory", ""))),
        )
        for limit in _limits(folder, names)
    ]


def address_limit() -> MemoryLimit | None:
    """The limit on this process's address space (`ulimit -v`), which every mapping counts against."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    return MemoryLimit("ulimit -v", soft, int(psutil.Process().memory_info().vms))


_VERSION_2 = (("memory.max", "memory.high"), "memory.current")  # above `high` a group is slowed down to a crawl
_VERSION_1 = (("memory.limit_in_bytes",), "memory.usage_in_bytes")
_NO_LIMIT = 2**60  # version 1 writes a huge number for none


def _limits(folder: Path, names: tuple[tuple[str, ...], str]) -> list[MemoryLimit]:
    """Of one group, each limit that it sets."""
    entries = _entries(folder / "memory.stat")
    limits = {str(folder / name): _number(folder / name) for name in names[0]}
    if names is _VERSION_1:
        limits[f"hierarchical_memory_limit in {folder / 'memory.stat'}"] = entries.get("hierarchical_memory_limit")
    used = max((_number(folder / names[1]) or 0) - _reclaimable(entries), 0)
    return [
        MemoryLimit(where, limit, used) for where, limit in limits.items() if limit is not None and limit < _NO_LIMIT
    ]


def _reclaimable(entries: dict[str, int]) -> int:
    """Bytes of a group's use that the system lets go of when asked: file pages nobody looked at lately, and half of
    the others and of its own caches, as it reckons itself (MemAvailable)."""

    def of(name: str) -> int:
        return entries.get(f"total_{name}", entries.get(name, 0))

    return of("inactive_file") + (of("active_file") + of("slab_reclaimable")) // 2


def _number(path: Path) -> int | None:
    """What a file of the control group says; None for `max`, and where it is missing or unreadable."""
    try:
        text = path.read_text().strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isascii() and text.isdecimal() else None


def _entries(path: Path) -> dict[str, int]:
    """Lines of a name and a number; others are passed over."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError):
        return {}
    pairs = [line.split() for line in lines]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isascii() and pair[1].isdecimal()}


def _device(entry: dict[str, Any]) -> Device:
    total = parse_bytes(entry["memory"])
    return Device(
        name=entry["name"],
        description=entry["description"],
        kind=entry["kind"],
        total_bytes=total,
        usable_bytes=parse_bytes(entry["usable"]),
        bandwidth_bytes_s=entry["bandwidth_gb_s"] * 1e9,
        macs_s=entry["gmacs"] * 1e9,
        isa=entry["isa"],
        unified=entry.get("unified", False),
        source=entry["source"],
        words=tuple(entry.get("words", ())),
        decimal=is_decimal(entry["memory"]),
    )
