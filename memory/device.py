"""How much memory there is: on this machine, on a device by name, or a size that was given.

A device's memory (`--mem`) is not a program's: the system and other programs keep their share, and phones end programs
that take more than theirs. A budget (`--budget`) is a program's own.
"""

from __future__ import annotations

import difflib
import functools
import os
import platform
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from edgellm.memory.cpu import usable_cores
from edgellm.memory.plan import Limit
from edgellm.memory.units import MIB, format_bytes, parse_bytes

DeviceKind = Literal["phone", "board", "laptop", "gpu", "machine"]
CATALOGUE = Path(__file__).with_name("devices.toml")


class UnknownDevice(LookupError):
    """No device of that name; the message names the nearest ones."""


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
    near = difflib.get_close_matches(name.casefold(), by_name, 3, 0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UnknownDevice(f"no device is called {name!r}: {hint}`edgellm devices` lists them, --mem SIZE takes any size")


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
    """A device of which only the memory is known: a system keeps 512 MiB and a tenth of the rest."""
    usable = max(int((total_bytes - 512 * MIB) * 0.9), 0)
    return Device(
        name=f"a device of {format_bytes(total_bytes)}",
        description="only its memory is known",
        kind="board",
        total_bytes=total_bytes,
        usable_bytes=usable,
        bandwidth_bytes_s=25e9,
        macs_s=150e9,
        isa="arm",
        unified=False,
        source="assumed: 25 GB/s; the system keeps 512 MiB and 10 %",
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
        source=here.source,
    )


def cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """(limit, used) of this process's control group, version 2 or 1; None where there is no limit."""
    try:
        own = _own_groups()
    except OSError:
        own = {}
    for folder, limit_name, used_name in (
        *((path, "memory.max", "memory.current") for path in _upwards(root, own.get("", ""))),
        *(
            (path, "memory.limit_in_bytes", "memory.usage_in_bytes")
            for path in _upwards(root / "memory", own.get("memory", ""))
        ),
    ):
        try:
            limit = (folder / limit_name).read_text().strip()
            used = int((folder / used_name).read_text()) - _reclaimable(folder)
        except (OSError, ValueError):
            continue
        if limit.isdecimal() and int(limit) < 2**60:  # version 1 writes a huge number for none
            return int(limit), used
    return None


def _reclaimable(folder: Path) -> int:
    """Bytes of a group's use that are file pages nobody looked at lately: the system lets go of them when asked."""
    try:
        entries = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(entries.get("total_inactive_file", entries.get("inactive_file", 0)))


def _own_groups() -> dict[str, str]:
    """Controller -> path of this process's group; version 2 has one group and no controller's name."""
    groups: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _upwards(root: Path, path: str) -> list[Path]:
    """The group's folder and those above it, since a limit may stand on any of them."""
    folders = [root]
    for part in Path(path.lstrip("/")).parts:
        if part != os.pardir:
            folders.append(folders[-1] / part)
    return folders[::-1]


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
    )
