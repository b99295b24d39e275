"""Pulling from the Hub, against a real server on the loopback: whole, resumed, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from loopback_hub import LoopbackHub
from pulls import FILE, HF, REPO, SHA256, WEIGHTS, Catalogue, Watcher, catalogue_entry, files_below

from edgellm.export.obtain import store
from edgellm.export.obtain.naming import BadReference
from edgellm.export.obtain.store import PullError

pytestmark = pytest.mark.usefixtures("impatience")


def test_a_model_of_the_catalogue_comes_from_the_hub_and_stays_in_its_cache(
    hub: LoopbackHub, catalogue: Catalogue, private_folders: Path
) -> None:
    repo = hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(catalogue_entry(HF))
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
    catalogue(catalogue_entry(HF))
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
    catalogue(catalogue_entry(HF))
    watcher = Watcher()
    assert store.pull("tiny", progress=watcher).path.read_bytes() == WEIGHTS
    assert [request.range for request in hub.asked(FILE)] == [None, "bytes=100000-"]
    assert watcher.n_bytes == len(WEIGHTS)


def test_what_a_failed_pull_brought_is_kept_for_the_next(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(catalogue_entry(HF))
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
    catalogue(catalogue_entry(HF))
    watcher = Watcher()
    assert store.pull("tiny", progress=watcher).path.read_bytes() == WEIGHTS
    assert watcher.n_bytes == len(WEIGHTS)


def test_an_overlong_partial_file_is_thrown_away(hub: LoopbackHub, catalogue: Catalogue, private_folders: Path) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(catalogue_entry(HF))
    blobs = private_folders / "hf" / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{SHA256}.incomplete").write_bytes(b"x" * (len(WEIGHTS) + 1))
    assert store.pull("tiny").path.read_bytes() == WEIGHTS


def test_a_short_outage_is_waited_out(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    hub.fault(f"resolve/main/{FILE}", status=503, method="GET", times=1)
    catalogue(catalogue_entry(HF))
    assert store.pull("tiny").path.read_bytes() == WEIGHTS


def test_wrong_bytes_leave_nothing_behind(hub: LoopbackHub, catalogue: Catalogue, private_folders: Path) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    hub.fault(f"resolve/main/{FILE}", flip=True, method="GET")
    catalogue(catalogue_entry(HF))
    with pytest.raises(PullError, match=f"the Hub \\({REPO}\\): the file's sha256 is .* where {SHA256[:12]}"):
        store.pull("tiny")
    assert store.installed() == []
    assert files_below(private_folders) == []


def test_another_file_under_the_name_is_refused_before_it_is_fetched(hub: LoopbackHub, catalogue: Catalogue) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    catalogue(catalogue_entry(HF, sha256="0" * 64))
    with pytest.raises(PullError, match="where 000000000000"):
        store.pull("tiny")
    catalogue(catalogue_entry(HF, bytes=17))
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
    catalogue(catalogue_entry(HF))
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
