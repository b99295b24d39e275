"""How many cores a process may really use."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

import psutil


def usable_cores() -> int:
    """Physical cores, less what affinity and cgroup quotas take away; at least 1.

    Hyper-threads do not help products that saturate the vector units, so they are not counted.
    """
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity mask to ask
        allowed = physical
    return max(1, min(physical, allowed, cgroup_cores() or physical))


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
