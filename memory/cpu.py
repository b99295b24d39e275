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
    """Cores that the cgroup's CPU quota allows, rounded up; None where there is no quota."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return max(1, math.ceil(int(quota) / int(period)))


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_flags() -> str:
    """The instruction sets that the system lists; "" where it lists none."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
