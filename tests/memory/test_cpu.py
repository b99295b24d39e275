"""Cores that a pass may be dealt out to: the fast kind, each once, of those that this process may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgellm.memory import cpu

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="macOS and Windows list no processors")


def machine(devices: Path, siblings: list[str], capacity: list[int] | None = None, fast: str = "") -> Path:
    """A folder as Linux has it: of each logical processor its core's, and what is known of their kinds."""
    for i, group in enumerate(siblings):
        folder = devices / f"system/cpu/cpu{i}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology/thread_siblings_list").write_text(f"{group}\n")
        if capacity:
            (folder / "cpu_capacity").write_text(f"{capacity[i]}\n")
    if fast:
        (devices / "cpu_core").mkdir()
        (devices / "cpu_core/cpus").write_text(f"{fast}\n")
    return devices


@pytest.mark.parametrize(
    ("siblings", "capacity", "fast", "allowed", "found"),
    [
        (["0", "1", "2", "3"], None, "", {0, 1, 2, 3}, 4),
        (["0-1", "0-1", "2-3", "2-3"], None, "", {0, 1, 2, 3}, 2),  # hyper-threads
        (["0,2", "1,3", "0,2", "1,3"], None, "", {0, 2}, 1),  # bound to the two of one core
        (["0-1", "0-1", "2", "3", "4", "5"], None, "0-1", set(range(6)), 1),  # one fast core and four slow ones
        (["0", "1", "2", "3"], [1024, 1024, 400, 400], "", {0, 1, 2, 3}, 2),  # a phone
        (["0", "1", "2", "3"], [1024, 800, 800, 250], "", {0, 1, 2, 3}, 3),
        (["0", "1", "2", "3"], [1024, 1024, 400, 400], "", {2, 3}, 2),  # bound to the slow ones: better than none
        (["0", "1"], None, "damaged", {0, 1}, 2),
        ([], None, "", {0, 1, 2}, 3),  # a system that tells nothing
    ],
)
def test_cores_that_carry_a_pass(
    siblings: list[str],
    capacity: list[int] | None,
    fast: str,
    allowed: set[int],
    found: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    monkeypatch.setattr(cpu.psutil, "cpu_count", lambda logical: 64)
    monkeypatch.setattr(cpu, "cgroup_cores", lambda: None)
    assert cpu.usable_cores(machine(tmp_path, siblings, capacity, fast)) == found


def test_a_quota_below_one_core_leaves_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "own_groups", lambda: {"": "/box"})
    (tmp_path / "box").mkdir()
    (tmp_path / "box/cpu.max").write_text("30000 100000")
    quota = cpu.cgroup_cores(tmp_path)
    monkeypatch.setattr(cpu, "cgroup_cores", lambda: quota)
    assert cpu.usable_cores() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own list")
def test_this_machine_has_a_core() -> None:
    assert 1 <= cpu.usable_cores() <= len(os.sched_getaffinity(0))
    assert cpu.fast_cpus() & os.sched_getaffinity(0)
