"""How many cores a process may really use."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from pathlib import Path

import psutil

_FAST = 0.6  # of the largest core's capacity: below it, a core keeps the others waiting at every barrier


def usable_cores(devices: Path = Path("/sys/devices")) -> int:
    """Physical cores of the fast kind, less what affinity and cgroup quotas take away; at least 1.

    Hyper-threads do not help products that saturate the vector units, so they are not counted, and neither are the
    efficiency cores of a processor with two kinds: the work of a pass is dealt out evenly, so the slowest ends it.
    """
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS and Windows have no affinity mask to ask
        n_cores = min(physical, _performance_cores_of_macos() or physical)
    else:
        cpus = (allowed & fast_cpus(devices)) or allowed
        n_cores = min(physical, _distinct_cores(devices, cpus))
    return max(1, min(n_cores, cgroup_cores() or n_cores))


def fast_cpus(devices: Path = Path("/sys/devices")) -> set[int]:
    """Numbers of the logical processors of fast cores, as Linux tells; all that it lists where they are alike.

    Intel's hybrids have a list of their own (`cpu_core`); ARM's say each core's capacity, 1,024 for the largest.
    """
    listed = _cpu_list(devices / "cpu_core/cpus")
    if listed:
        return listed
    capacity = {}
    for path in (devices / "system/cpu").glob("cpu[0-9]*"):
        try:
            capacity[int(path.name[3:])] = int((path / "cpu_capacity").read_text())
        except (OSError, ValueError):
            capacity[int(path.name[3:])] = 1024
    largest = max(capacity.values(), default=0)
    return {cpu for cpu, size in capacity.items() if size >= _FAST * largest}


def _distinct_cores(devices: Path, cpus: set[int]) -> int:
    """How many cores these logical processors are; one each where the system does not say which are siblings."""
    cores = set()
    for cpu in cpus:
        siblings = _cpu_list(devices / f"system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(min(siblings, default=cpu))
    return len(cores)


def _cpu_list(path: Path) -> set[int]:
    """Linux's way to write sets of processors: `0-3,8`; empty where there is none."""
    found: set[int] = set()
    try:
        for part in filter(None, path.read_text().strip().split(",")):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return set()
    return found


def _performance_cores_of_macos() -> int | None:
    if sys.platform != "darwin":
        return None
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    system = ctypes.CDLL(None)
    failed = system.sysctlbyname(b"hw.perflevel0.physicalcpu", ctypes.byref(value), ctypes.byref(size), None, 0)
    return value.value if not failed and value.value > 0 else None  # Intel Macs have one kind, and no such name


def cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Cores that the CPU quotas of this process's control groups allow, rounded up; None where there is no quota."""
    try:
        own = own_groups()
    except OSError:
        own = {}
    shares = [_share(folder / "cpu.max") for folder in upwards(root, own.get("", ""))]
    for folder in upwards(root / "cpu", own.get("cpu", "")):
        shares.append(_share(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"))
    quotas = [share for share in shares if share is not None]
    return max(1, math.ceil(min(quotas))) if quotas else None


def _share(*paths: Path) -> float | None:
    """Cores of one group's quota, from a file of both numbers or from a file for each."""
    try:
        quota, period = map(int, " ".join(path.read_text() for path in paths).split())
        return quota / period if quota > 0 and period > 0 else None
    except (OSError, ValueError):
        return None


def own_groups() -> dict[str, str]:
    """Controller -> path of this process's control group; version 2 has one group and no controller's name.

    Raises:
        OSError: the system has no control groups.
    """
    groups: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def upwards(root: Path, path: str) -> list[Path]:
    """The group's folder and those above it, since a limit may stand on any of them."""
    folders = [root]
    for part in Path(path.lstrip("/")).parts:
        if part != os.pardir:
            folders.append(folders[-1] / part)
    return folders[::-1]


def cpu_name() -> str:
    """What the processor calls itself."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> str:
    """The instruction sets that the system lists; "" where it lists none."""
    return _cpuinfo("flags", "features")


def _cpuinfo(*names: str) -> str:
    """What the first processor says under one of these names; "" where it says nothing."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(names):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
