"""A model in several files is one model: named by any part, brought, shown, exported and removed whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_parts import relabelled, split
from loopback_hub import LoopbackHub, Request
from pulls import Catalogue, Watcher
from tiny_gguf import write_tiny

from edgellm.export.convert.gguf_copy import join
from edgellm.export.convert.imatrix import fingerprint_of
from edgellm.export.obtain import naming, store
from edgellm.export.obtain.catalogue import CatalogueError, find
from edgellm.export.obtain.naming import BadReference
from edgellm.export.obtain.store import NotHere, PullError
from edgellm.memory.gguf import GgufError, read_header
from edgellm.memory.split import joint_sha256, model_bytes, model_name, part_name, parts_of, read_model, read_parts

pytestmark = pytest.mark.usefixtures("impatience")

REPO = "me/m-GGUF"
Fault = Callable[[list[Path], Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("whole") / "m-Q8_0.gguf", "qwen3", weights="Q8_0")


@pytest.fixture(params=[2, 3, 9])
def parts(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> list[Path]:
    return split(whole, tmp_path / "m", request.param)


def as_files(parts: list[Path], folder: str = "") -> dict[str, bytes]:
    return {f"{folder}{part.name}": part.read_bytes() for part in parts}


def asked(hub: LoopbackHub, method: str | None = None, where: str = "") -> list[Request]:
    """What was asked of the repository."""
    return [one for one in hub.requests if REPO in one.path and where in one.path and method in (None, one.method)]


def test_the_parts_are_read_as_the_whole_file(whole: Path, parts: list[Path]) -> None:
    one, several = read_header(whole), read_model(parts[0])
    assert {(t.name, t.shape, t.type) for t in one.tensors} == {(t.name, t.shape, t.type) for t in several.tensors}
    assert fingerprint_of(*read_parts(parts[0])) == fingerprint_of(one)
    assert several.file_bytes == sum(part.stat().st_size for part in parts)


def test_joined_parts_are_the_whole_file_again(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    join(parts[0], tmp_path / "joined.gguf")
    assert (tmp_path / "joined.gguf").read_bytes() == whole.read_bytes()


def test_any_part_and_the_folder_name_the_model(parts: list[Path]) -> None:
    found = store.locate(str(parts[0]))
    assert found is not None
    assert (found.path, found.name, found.quant, found.files) == (parts[0], "m-Q8_0", "Q8_0", parts)
    assert found.n_bytes == sum(part.stat().st_size for part in parts)
    for reference in (*parts, parts[0].parent):
        assert store.locate(str(reference)) == found


def test_a_folder_with_several_models_lists_them(parts: list[Path], whole: Path) -> None:
    shutil.copy(whole, parts[0].with_name("other.gguf"))
    with pytest.raises(BadReference, match=rf"several models: name one of {parts[0].name}, other\.gguf"):
        naming.parse(str(parts[0].parent))


def missing(parts: list[Path], whole: Path) -> object:
    return parts[1].unlink()


def without_the_first(parts: list[Path], whole: Path) -> object:
    return parts[0].unlink()


def truncated(parts: list[Path], whole: Path) -> object:
    return parts[1].write_bytes(parts[1].read_bytes()[:-40])


def empty(parts: list[Path], whole: Path) -> object:
    return parts[1].write_bytes(b"")


def no_gguf(parts: list[Path], whole: Path) -> object:
    return parts[1].write_bytes(b"<html>" + parts[1].read_bytes()[6:])


def duplicated(parts: list[Path], whole: Path) -> object:
    return shutil.copy(parts[0], parts[1])


def misnumbered(parts: list[Path], whole: Path) -> object:
    return parts[2].write_bytes(parts[1].read_bytes())


def of_a_wider_model(parts: list[Path], whole: Path) -> object:
    wide = write_tiny(parts[0].parent.parent / "wide.gguf", "qwen3", weights="Q8_0", n_embd=128)
    return parts[1].write_bytes(split(wide, parts[0].parent.parent / "wide", 3)[1].read_bytes())


def of_a_deeper_model(parts: list[Path], whole: Path) -> object:
    deep = write_tiny(parts[0].parent.parent / "deep.gguf", "qwen3", weights="Q8_0", n_layers=6)
    return parts[2].write_bytes(split(deep, parts[0].parent.parent / "deep", 3)[2].read_bytes())


def of_a_model_in_more_files(parts: list[Path], whole: Path) -> object:
    return parts[1].write_bytes(split(whole, parts[0].parent.parent / "four", 4)[1].read_bytes())


def a_whole_model(parts: list[Path], whole: Path) -> object:
    return shutil.copy(whole, parts[1])


def of_other_tensors(parts: list[Path], whole: Path) -> object:
    return relabelled(parts[2], parts[1], 2)


FAULTS: list[tuple[Fault, str]] = [
    (missing, r"m-Q8_0-00002-of-00003\.gguf is missing beside m-Q8_0-00001-of-00003\.gguf: .* all 3 files"),
    (without_the_first, r"m-Q8_0-00001-of-00003\.gguf is missing beside m-Q8_0-00002-of-00003\.gguf"),
    (truncated, r"00002-of-00003\.gguf is truncated"),
    (empty, r"00002-of-00003\.gguf is not a GGUF file"),
    (no_gguf, r"00002-of-00003\.gguf is not a GGUF file"),
    (duplicated, r"00002-of-00003\.gguf is part 1 of 3 by its header, under the name of part 2"),
    (misnumbered, r"00003-of-00003\.gguf is part 2 of 3 by its header, under the name of part 3"),
    (of_a_wider_model, r"00002-of-00003\.gguf is a part of another model than m-Q8_0-00001-of-00003\.gguf"),
    (of_a_deeper_model, r"00003-of-00003\.gguf is a part of another model than m-Q8_0-00001-of-00003\.gguf"),
    (of_a_model_in_more_files, r"00002-of-00003\.gguf is a part of another model, one in 4 files"),
    (a_whole_model, r"00002-of-00003\.gguf does not say which part of a model it is"),
    (of_other_tensors, r"00003-of-00003\.gguf holds '.*', which m-Q8_0-00002-of-00003\.gguf holds too"),
]


def located(path: Path) -> Path:
    found = store.locate(str(path))
    assert found is not None
    return found.path


@pytest.mark.parametrize(("fault", "says"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_part_that_is_wrong_is_named(fault: Fault, says: str, whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path / "m", 3)
    fault(parts, whole)
    with pytest.raises(GgufError, match=says) as told:
        read_model(located(parts[1] if fault is without_the_first else parts[0]))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("filename", "said"),
    [
        ("m-00001-of-00002.gguf", ("m", 1, 2)),
        ("m-00002-of-00002.gguf", ("m", 2, 2)),
        ("m-00001-of-00001.gguf", None),
        ("m-00003-of-00002.gguf", None),
        ("m-00000-of-00002.gguf", None),
        ("m-00001-of-99999.gguf", None),
        ("m-1-of-2.gguf", None),
        ("m.gguf", None),
    ],
)
def test_a_name_says_which_part_it_is(filename: str, said: tuple[str, int, int] | None) -> None:
    part = part_name(filename)
    assert (part and (part.stem, part.number, part.count)) == said


def test_a_whole_model_may_be_called_like_a_part(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path / "m-00002-of-00003.gguf"))
    found = store.locate(str(path))
    assert found is not None
    assert (found.path, found.parts, model_name(found.path)) == (path, (), "m")
    assert read_model(path).tensors == read_header(whole).tensors
    assert (parts_of(path), model_bytes(path)) == ([path], whole.stat().st_size)


@pytest.mark.parametrize("folder", ["", "Q8_0/"])
def test_all_parts_are_pulled_from_one_commit(hub: LoopbackHub, parts: list[Path], folder: str) -> None:
    repo = hub.add_repo(REPO, as_files(parts, folder), licence="mit")
    watcher = Watcher()
    model = store.pull(REPO, progress=watcher)
    assert [path.read_bytes() for path in model.files] == [part.read_bytes() for part in parts]
    assert (model.quant, model.revision, model.licence) == ("Q8_0", repo.commit, "mit")
    assert model.n_bytes == sum(part.stat().st_size for part in parts)
    assert model.sha256 == joint_sha256([str(part.sha256) for part in model.parts])
    assert f"{len(parts)} files" in watcher.notes[0]
    n_requests = len(asked(hub))
    for reference in (REPO, f"{REPO}:Q8_0", f"{REPO}:{parts[-1].name}", f"hf.co/{REPO}:{folder}{parts[0].name}"):
        assert store.pull(reference) == model
    assert store.installed() == [model]
    assert len(asked(hub)) == n_requests


def test_what_another_program_left_in_the_hubs_cache_is_taken_over(hub: LoopbackHub, parts: list[Path]) -> None:
    hub.add_repo(REPO, as_files(parts))
    store.pull(REPO)
    (store.lock_path()).unlink()
    assert store.installed() == []
    model = store.pull(REPO, offline=True)
    assert [path.read_bytes() for path in model.files] == [part.read_bytes() for part in parts]


def test_an_interrupted_pull_goes_on_at_the_part_and_the_byte(hub: LoopbackHub, parts: list[Path]) -> None:
    hub.add_repo(REPO, as_files(parts))
    cut = hub.fault(parts[1].name, cut_at=100, method="GET", times=1)
    gone = hub.fault(parts[1].name, cut_at=0, method="GET")
    with pytest.raises(PullError, match=rf"{parts[1].name}: 127\.0\.0\.1 is out of reach"):
        store.pull(REPO)
    assert store.locate(REPO) is None
    hub.faults.remove(gone)
    assert cut.times == 0
    n_requests = len(asked(hub, "GET", "/resolve/"))
    model = store.pull(REPO)
    assert [path.read_bytes() for path in model.files] == [part.read_bytes() for part in parts]
    later = asked(hub, "GET", "/resolve/")[n_requests:]
    assert [one.range for one in later if parts[1].name in one.path] == ["bytes=100-"]
    assert not [one for one in later if parts[0].name in one.path]


def test_a_part_that_comes_corrupted_is_named_and_never_taken(hub: LoopbackHub, parts: list[Path]) -> None:
    hub.add_repo(REPO, as_files(parts))
    fault = hub.fault(parts[-1].name, flip=True, method="GET")
    with pytest.raises(PullError, match=rf"{parts[-1].name}: the file's sha256 is"):
        store.pull(REPO)
    hub.faults.remove(fault)
    assert store.pull(REPO).files[-1].read_bytes() == parts[-1].read_bytes()


def test_a_part_that_is_damaged_later_is_fetched_again_alone(hub: LoopbackHub, parts: list[Path]) -> None:
    hub.add_repo(REPO, as_files(parts))
    model = store.pull(REPO)
    model.files[1].write_bytes(b"GGUF")
    assert store.locate(REPO) is None
    assert f"{parts[1].name} has 4 bytes instead of" in store.lost()[0]
    n_requests = len(asked(hub, "GET", "/resolve/"))
    assert store.pull(REPO) == model
    assert model.files[1].read_bytes() == parts[1].read_bytes()
    assert {Path(one.path).name for one in asked(hub, "GET", "/resolve/")[n_requests:]} == {parts[1].name}


def test_offline_the_part_that_is_missing_is_named(hub: LoopbackHub, parts: list[Path]) -> None:
    hub.add_repo(REPO, as_files(parts, "Q8_0/"))
    model = store.pull(REPO)
    model.files[1].unlink()
    with pytest.raises(NotHere, match=rf"^{parts[1].name} of {REPO} is not on this machine: run `edgellm pull {REPO}`"):
        store.pull(REPO, offline=True)


def test_a_repository_that_lacks_a_part_says_which(hub: LoopbackHub, parts: list[Path]) -> None:
    hub.add_repo(REPO, as_files(parts[:-1]))
    with pytest.raises(BadReference, match=rf"{REPO} lacks {parts[-1].name}"):
        store.pull(REPO)


@pytest.mark.parametrize("damage", [False, True])
def test_all_parts_go_together(hub: LoopbackHub, parts: list[Path], damage: bool) -> None:
    hub.add_repo(REPO, as_files(parts, "Q8_0/") | {"other-Q4_0.gguf": b"GGUF" * 500})
    model, other = store.pull(f"{REPO}:Q8_0"), store.pull(f"{REPO}:Q4_0")
    blobs = [path.resolve() for path in model.files]
    if damage:
        model.files[0].unlink()
    assert set(store.files_of(f"{REPO}:Q8_0")) == set(model.files[1:] if damage else model.files)
    store.remove(f"{REPO}:Q8_0")
    assert not any(path.exists() for path in (*model.files, *blobs[damage:]))
    assert not model.path.parent.exists()
    assert store.installed() == [other]
    with pytest.raises(NotHere):
        store.remove(f"{REPO}:Q8_0")


def test_what_an_interrupted_pull_left_is_removed(hub: LoopbackHub, parts: list[Path], private_folders: Path) -> None:
    hub.add_repo(REPO, as_files(parts))
    hub.fault(parts[-1].name, cut_at=100, method="GET", times=1)
    hub.fault(parts[-1].name, cut_at=0, method="GET")
    with pytest.raises(PullError):
        store.pull(REPO)
    store.remove(REPO)
    assert not list((private_folders / "hf").rglob("*.gguf"))
    assert not list((private_folders / "hf").rglob("*.incomplete"))


def in_catalogue(parts: list[Path], **changes: object) -> dict[str, object]:
    file = {"quant": "Q8_0", "filename": parts[0].name, "sources": [{"hf": REPO, "file": f"Q8_0/{parts[0].name}"}]}
    return {"name": "tiny", "aliases": ["t"], "files": [file | changes]}


def test_a_model_of_the_catalogue_may_be_in_parts(
    hub: LoopbackHub, catalogue: Catalogue, parts: list[Path], whole: Path
) -> None:
    hub.add_repo(REPO, as_files(parts, "Q8_0/"))
    sizes = [part.stat().st_size for part in parts]
    catalogue(in_catalogue(parts, bytes=sizes))
    file = find("t").files[0]
    assert (file.n_bytes, file.sha256, len(file.parts)) == (sum(sizes), None, len(parts))
    model = store.pull("t")
    assert model.files[-1].read_bytes() == parts[-1].read_bytes()
    assert store.locate("tiny") == model
    catalogue(in_catalogue(parts, bytes=[*sizes[:-1], sizes[-1] + 1]))
    store.remove("tiny")
    with pytest.raises(PullError, match=rf"{parts[-1].name}: its file has .* bytes where .* were expected"):
        store.pull("tiny")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"filename": "m-00002-of-00002.gguf"}, "is not the first part"),
        ({"bytes": 5}, "bytes has to be a list of 2"),
        ({"sha256": ["0" * 64]}, "sha256 has to be a list of 2"),
        ({"sources": [{"hf": REPO, "file": "m.gguf"}]}, "different numbers of parts"),
        ({"sources": [{"hf": REPO, "file": "../m-00001-of-00002.gguf"}]}, "not allowed"),
        ({"sources": [{"pypi": "p==1", "member": "m"}]}, "packages do not carry"),
    ],
)
def test_an_entry_in_parts_out_of_format_is_named(
    catalogue: Catalogue, changes: dict[str, object], reason: str
) -> None:
    catalogue(in_catalogue([Path("m-00001-of-00002.gguf")], **changes))
    with pytest.raises(CatalogueError, match=reason):
        find("tiny")


def test_a_record_that_names_files_elsewhere_is_refused(hub: LoopbackHub, parts: list[Path]) -> None:
    hub.add_repo(REPO, as_files(parts))
    store.pull(REPO)
    text = store.lock_path().read_text()
    entries = json.loads(text)
    next(iter(entries["models"].values()))["parts"][1]["filename"] = "../../../../../etc/passwd"
    store.lock_path().write_text(json.dumps(entries))
    with pytest.raises(PullError, match="is damaged"):
        store.installed()
