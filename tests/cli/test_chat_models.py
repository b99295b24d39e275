"""Which files a pair stands for: the drafter that is recommended, here, small enough, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from loopback_hub import LoopbackHub, Repo

from edgellm.cli import _models
from edgellm.export.obtain import store


def entry(name: str, data: bytes, drafters: list[str]) -> dict[str, object]:
    file = {"quant": "Q8_0", "filename": f"{name}.gguf", "bytes": len(data), "sources": [{"hf": f"us/{name}"}]}
    words = {"name": name, "family": "tiny", "licence": "MIT", "repo": f"us/{name}"}
    return words | {"drafters": drafters, "files": [file]}


@pytest.fixture
def served(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The default pair by name, 1000 and 100 bytes; a second drafter; one as large as the target."""
    files = {
        _models.DEFAULT_TARGET: (b"GGUF" + bytes(996), ["large", _models.DEFAULT_DRAFTER, "second"]),
        _models.DEFAULT_DRAFTER: (b"GGUF" + bytes(96), []),
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

    monkeypatch.setattr(_models, "resolve", refuse)
    with pytest.raises(KeyboardInterrupt):
        _models.resolve_pair(None, None)
    notice = capsys.readouterr().err
    assert f"{_models.DEFAULT_TARGET} (1000 B, licence MIT)" in notice
    assert f"{_models.DEFAULT_DRAFTER} (100 B, licence MIT)" in notice
    assert not served.requests


def test_the_default_pair_is_pulled_and_later_silent(served: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    target, drafter = _models.resolve_pair(None, None)
    assert target.name == _models.DEFAULT_TARGET
    assert drafter is not None
    assert drafter.name == _models.DEFAULT_DRAFTER
    capsys.readouterr()
    assert _models.resolve_pair(None, None, offline=True) == (target, drafter)
    assert capsys.readouterr().err == ""


def test_a_recommended_drafter_that_is_here_comes_before_a_better_one_that_is_not(served: LoopbackHub) -> None:
    store.pull("second")
    assert _models.resolve_pair(_models.DEFAULT_TARGET, None)[1] == store.locate("second")


def test_no_drafter_is_taken_where_none_is_asked_for(served: LoopbackHub) -> None:
    assert _models.resolve_pair(None, "None")[1] is None
    assert store.locate(_models.DEFAULT_DRAFTER) is None


def test_a_file_is_known_by_its_name_and_one_that_is_not_gets_the_default_drafter(
    served: LoopbackHub, tmp_path: Path
) -> None:
    store.pull("second")
    for name, expected in ((f"{_models.DEFAULT_TARGET}.gguf", "second"), ("other.gguf", _models.DEFAULT_DRAFTER)):
        path = tmp_path / name
        path.write_bytes(b"GGUF" + bytes(996))
        drafter = _models.resolve_pair(str(path), None)[1]
        assert drafter is not None
        assert drafter.name == expected


def test_a_target_that_is_no_larger_than_any_drafter_gets_none(served: LoopbackHub, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    assert _models.resolve_pair(str(path), None)[1] is None


def test_a_drafter_that_cannot_be_had_is_done_without_unless_it_was_asked_for(
    served: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    store.pull(_models.DEFAULT_TARGET)
    del served.repos[f"us/{_models.DEFAULT_DRAFTER}"]
    assert _models.resolve_pair(_models.DEFAULT_TARGET, None)[1] is None
    assert "warning: no drafter" in capsys.readouterr().err
    with pytest.raises(store.PullError):
        _models.resolve_pair(_models.DEFAULT_TARGET, _models.DEFAULT_DRAFTER)
