"""Limits: control groups, devices by name, sizes as given."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.memory import cpu, device
from edgellm.memory.device import (
    UnknownDevice,
    budget_device,
    cgroup_memory,
    find_device,
    known_devices,
    sized_device,
    this_machine,
)
from edgellm.memory.units import GIB, parse_bytes


def group(folder: Path, names: tuple[str, str], limit: str, used: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(used + "\n")
    return folder


V2, V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.fixture(autouse=True)
def no_group_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_own_groups", lambda: {"": "/pod/box", "memory": "/pod/box"})


def test_a_limit_of_version_2_is_found_on_the_group_or_above_it(tmp_path: Path) -> None:
    group(tmp_path / "pod", V2, str(3 * GIB), str(GIB))
    group(tmp_path / "pod" / "box", V2, "max", "5")
    assert cgroup_memory(tmp_path) == (3 * GIB, GIB)


def test_a_limit_of_version_1_is_found_and_its_huge_none_is_none(tmp_path: Path) -> None:
    group(tmp_path / "memory" / "pod" / "box", V1, str(2**63 - 4096), "7")
    assert cgroup_memory(tmp_path) is None
    group(tmp_path / "memory" / "pod2", V1, "1", "1")
    (tmp_path / "memory" / "pod" / "box" / V1[0]).write_text(str(2 * GIB))
    assert cgroup_memory(tmp_path) == (2 * GIB, 7)


def test_pages_of_files_that_can_be_let_go_are_free(tmp_path: Path) -> None:
    for names, root, key in ((V2, tmp_path / "v2", "inactive_file"), (V1, tmp_path / "v1", "total_inactive_file")):
        folder = root / "memory" / "pod" / "box" if names is V1 else root / "pod" / "box"
        group(folder, names, str(2 * GIB), str(GIB))
        active = key.replace("inactive", "active")
        (folder / "memory.stat").write_text(f"{active} {GIB // 4}\n{key} {GIB // 2}\ndamaged\nother x\n")
        assert cgroup_memory(root) == (2 * GIB, GIB // 2 - GIB // 8)


@pytest.mark.parametrize(
    ("own", "above", "found"),
    [
        ((8, 1), (2, 1.5), (2, 1.5)),  # a slice above is smaller
        ((4, 0), (4.5, 4), (4, 3.5)),  # others have taken what a group above allows
        ((None, 1), (2, 1), (2, 1)),
        ((4, 1), (None, 1), (4, 1)),
        ((4, 5), (None, 5), (4, 4)),  # lowered below what is held: nothing is left
        ((0, 0), (None, 0), (0, 0)),
    ],
)
def test_every_group_on_the_way_binds(
    own: tuple[float | None, float], above: tuple[float | None, float], found: tuple[float, float], tmp_path: Path
) -> None:
    for names, root in ((V2, tmp_path / "v2"), (V1, tmp_path / "v1")):
        top = root / "memory" / "pod" if names is V1 else root / "pod"
        for folder, (limit, used) in ((top / "box", own), (top, above)):
            unlimited = "max" if names is V2 else str(0x7FFFFFFFFFFF0000)
            group(folder, names, unlimited if limit is None else str(int(limit * GIB)), str(int(used * GIB)))
        assert cgroup_memory(root) == (int(found[0] * GIB), int(found[1] * GIB))


def test_a_group_that_is_slowed_down_is_limited(tmp_path: Path) -> None:
    group(tmp_path / "pod" / "box", V2, str(8 * GIB), "0")
    (tmp_path / "pod" / "box" / "memory.high").write_text(str(2 * GIB))
    assert cgroup_memory(tmp_path) == (2 * GIB, 0)
    group(tmp_path / "memory" / "pod" / "box", V1, str(4 * GIB), "0")
    (tmp_path / "memory" / "pod" / "box" / "memory.stat").write_text(f"hierarchical_memory_limit {GIB}\n")
    assert cgroup_memory(tmp_path) == (GIB, 0)


def test_the_smallest_quota_of_cores_on_the_way_binds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "own_groups", lambda: {"": "/pod/box"})
    (tmp_path / "pod" / "box").mkdir(parents=True)
    for text, found in (
        ("max 100000", None),
        ("150000 100000", 2),
        ("400000 100000", 4),
        ("damaged", None),
        ("1 0", None),
    ):
        (tmp_path / "pod" / "cpu.max").write_text(text)
        assert cpu.cgroup_cores(tmp_path) == found
    (tmp_path / "pod" / "box" / "cpu.max").write_text("90000 100000")
    assert cpu.cgroup_cores(tmp_path) == 1


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_memory(tmp_path) is None


def test_a_container_is_planned_by_its_limit(tmp_path: Path) -> None:
    group(tmp_path / "pod" / "box", V2, str(GIB), str(GIB // 4))
    here = this_machine(tmp_path)
    assert here.name == "this container"
    assert here.total_bytes == GIB
    assert 0 < here.usable_bytes < 3 * GIB // 4
    assert 0 < this_machine().usable_bytes < this_machine().total_bytes


def test_a_device_is_more_than_its_programs_may_take_and_a_budget_is_not() -> None:
    size = parse_bytes("6GB")
    assert sized_device(size).limit.reserve_bytes > 512 * 2**20
    assert budget_device(size).limit.reserve_bytes == 0
    assert sized_device(parse_bytes("6GiB")).usable_bytes > sized_device(size).usable_bytes


def test_the_catalogue_of_devices_is_whole() -> None:
    names = [entry.name for entry in known_devices()]
    assert len(names) == len(set(names)) >= 16
    for entry in known_devices():
        assert 0 < entry.usable_bytes < entry.total_bytes, entry.name
        assert entry.bandwidth_bytes_s > 1e9, entry.name
        assert entry.source, entry.name


def test_a_misspelt_device_is_answered_with_its_neighbours() -> None:
    assert find_device("Raspberry-Pi-5-8GB").total_bytes == 8 * GIB
    with pytest.raises(UnknownDevice, match="raspberry-pi-5-8gb"):
        find_device("raspberrypi5-8gb")
