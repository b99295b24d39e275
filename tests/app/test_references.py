"""Which files a pair stands for: the drafter that is recommended, here, small enough, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from loopback_hub import LoopbackHub, Repo
from tiny_gguf import write_tiny

from edgellm.app import references
from edgellm.app.defaults import DEFAULT_DRAFTER, DEFAULT_TARGET
from edgellm.app.shapes import look_up
from edgellm.cli._listener import TERMINAL
from edgellm.export.obtain import store
from edgellm.memory.gguf import read_header
from edgellm.memory.shape import UnknownShape, from_header

resolve_pair = partial(references.resolve_pair, listener=TERMINAL)


def entry(name: str, data: bytes, drafters: list[str]) -> dict[str, object]:
    file = {"quant": "Q8_0", "filename": f"{name}.gguf", "bytes": len(data), "sources": [{"hf": f"us/{name}"}]}
    words = {"name": name, "family": "tiny", "licence": "MIT", "repo": f"us/{name}"}
    return words | {"drafters": drafters, "files": [file]}


@pytest.fixture
def served(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The default pair by name, 1000 and 100 bytes; a second drafter; one as large as the target."""
    files = {
        DEFAULT_TARGET: (b"GGUF" + bytes(996), ["large", DEFAULT_DRAFTER, "second"]),
        DEFAULT_DRAFTER: (b"GGUF" + bytes(96), []),
        "second": (b"GGUF" + bytes(46), []),
        "large": (b"GGUF" + bytes(900), []),
    }
    models = [entry(name, data, drafters) for name, (data, drafters) in files.items()]
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    monkeypatch.setenv("EDGELLM_CATALOGUE", str(path))
    hub.repos |= {f"us/{name}": Repo({f"{name}.gguf": data}) for name, (data, _) in files.items()}
    return hub


def test_the_default_pair_is_announced_with_size_and_licence_before_anything_is_asked_of_a_server(
    served: LoopbackHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(references, "resolve", refuse)
    with pytest.raises(KeyboardInterrupt):
        resolve_pair(None, None)
    notice = capsys.readouterr().err
    assert f"{DEFAULT_TARGET} (1000 B, licence MIT)" in notice
    assert f"{DEFAULT_DRAFTER} (100 B, licence MIT)" in notice
    assert not served.requests


def test_the_default_pair_is_pulled_and_later_silent(served: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    target, drafter = resolve_pair(None, None)
    assert target.name == DEFAULT_TARGET
    assert drafter is not None
    assert drafter.name == DEFAULT_DRAFTER
    capsys.readouterr()
    assert resolve_pair(None, None, offline=True) == (target, drafter)
    assert capsys.readouterr().err == ""


def test_a_recommended_drafter_that_is_here_comes_before_a_better_one_that_is_not(served: LoopbackHub) -> None:
    store.pull("second")
    assert resolve_pair(DEFAULT_TARGET, None)[1] == store.locate("second")


def test_no_drafter_is_taken_where_none_is_asked_for(served: LoopbackHub) -> None:
    assert resolve_pair(None, "None")[1] is None
    assert store.locate(DEFAULT_DRAFTER) is None


def test_a_file_is_known_by_its_name_and_one_that_is_not_gets_the_default_drafter(
    served: LoopbackHub, tmp_path: Path
) -> None:
    store.pull("second")
    for name, expected in ((f"{DEFAULT_TARGET}.gguf", "second"), ("other.gguf", DEFAULT_DRAFTER)):
        path = tmp_path / name
        path.write_bytes(b"GGUF" + bytes(996))
        drafter = resolve_pair(str(path), None)[1]
        assert drafter is not None
        assert drafter.name == expected


def test_a_target_that_is_no_larger_than_any_drafter_gets_none(served: LoopbackHub, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    assert resolve_pair(str(path), None)[1] is None


def test_a_drafter_that_cannot_be_had_is_done_without_unless_it_was_asked_for(
    served: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    store.pull(DEFAULT_TARGET)
    del served.repos[f"us/{DEFAULT_DRAFTER}"]
    assert resolve_pair(DEFAULT_TARGET, None)[1] is None
    assert "warning: no drafter" in capsys.readouterr().err
    with pytest.raises(store.PullError):
        resolve_pair(DEFAULT_TARGET, DEFAULT_DRAFTER)


def test_a_model_whose_sizes_the_catalogue_does_not_know_is_planned_from_its_header_on_the_hub(
    hub: LoopbackHub, catalogue: Callable[..., None], tmp_path: Path
) -> None:
    path = write_tiny(tmp_path / "m-Q8_0.gguf", "qwen35", weights="Q8_0")
    file = {"quant": "Q8_0", "filename": path.name, "sources": [{"hf": "me/m-GGUF"}]}
    catalogue({"name": "unsized", "files": [file]})
    with pytest.raises(UnknownShape, match=r"no sizes for unsized: `edgellm plan unsized` reads them from the Hub"):
        look_up("unsized", offline=True)
    with pytest.raises(UnknownShape, match=r"its header cannot be read .*: `edgellm pull unsized` brings the file"):
        look_up("unsized")
    hub.add_repo("me/m-GGUF", {path.name: path.read_bytes()})
    known = look_up("unsized")
    assert (known.reference, known.shape.name, known.is_open) == ("unsized:Q8_0", "unsized", True)
    assert replace(known.shape, name="x") == from_header(read_header(path), "x")
