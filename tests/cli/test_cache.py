"""`edgellm cache`: what was learnt is shown, moved and deleted; sizes are data, talk is on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from draft_adapters import adapter_for, quantised_tiny
from typer.testing import CliRunner

from edgellm.cli import _errors
from edgellm.cli.cache import _MEANING
from edgellm.cli.main import app
from edgellm.memory.folders import home
from edgellm.runtime.distillation.adopted import Adopted
from edgellm.runtime.learning import persistence
from edgellm.runtime.learning.persistence import BadArchive, SavedStore
from edgellm.runtime.parallel.prefix_files import PrefixFiles

run = CliRunner().invoke


@pytest.fixture
def kept() -> Path:
    """A store of three tokens."""
    folder = home() / "learned"
    store = SavedStore(persistence.sealed(folder, "store", "model.gguf 0123", print), 100)
    store.index.extend([-1, 5, 6])
    store.save()
    return folder


def test_what_is_kept_is_shown(kept: Path) -> None:
    shown = json.loads(run(app, ["cache", "show", "--json"]).stdout)
    assert shown["folder"] == str(kept)
    (file,) = shown["files"]
    assert (file["kind"], file["of"], file["entries"]) == ("store", "model.gguf 0123", 3)
    assert file["bytes"] == Path(file["path"]).stat().st_size
    assert "model.gguf" in run(app, ["cache", "show"]).stdout


def test_every_kind_is_told_in_words() -> None:
    assert set(_MEANING) == set(persistence.KINDS)


def test_it_is_exported_cleared_and_imported(kept: Path, tmp_path: Path) -> None:
    archive = tmp_path / "learned.zip"
    assert run(app, ["cache", "export", str(archive)]).exit_code == 0
    assert run(app, ["cache", "clear"]).exit_code == 0
    assert json.loads(run(app, ["cache", "show", "--json"]).stdout)["files"] == []
    assert run(app, ["cache", "import", str(archive)]).exit_code == 0
    assert len(json.loads(run(app, ["cache", "show", "--json"]).stdout)["files"]) == 1


def test_what_drafters_learnt_is_shown_and_deleted_and_told_to_be_a_file_of_its_own(tmp_path: Path) -> None:
    base = quantised_tiny(tmp_path / "small.gguf")
    adopted = Adopted(home() / "adapted")
    found = adopted.adopt("0123", adapter_for(base), base)
    assert found.adapter is not None
    (pair,) = json.loads(run(app, ["cache", "show", "--json"]).stdout)["adapters"]
    assert (pair["target"], pair["draft"], pair["adapter"]["n_tokens"]) == ("tiny-target", "tiny-drafter", 12_345)
    assert pair["bytes"] > base.stat().st_size
    shown = " ".join(run(app, ["cache", "show"]).stdout.split())
    assert "12,345 tokens that tiny-drafter learnt from tiny-target: 2.76 -> 3.04 tokens a pass" in shown
    exported = run(app, ["cache", "export", str(tmp_path / "learned.zip")])
    assert f"{found.adapter.path} is not in it" in " ".join(exported.stderr.split())
    adopted.take_back("0123", found.draft_sha256, "slower here")
    assert "taken back on" in run(app, ["cache", "show"]).stderr
    adopted.adopt("0123", adapter_for(base, 0.2), base)
    assert "1 adapter of drafters deleted" in run(app, ["cache", "clear"]).stderr
    assert json.loads(run(app, ["cache", "show", "--json"]).stdout)["adapters"] == []


def test_beginnings_that_a_server_kept_are_shown_and_deleted() -> None:
    folder = home() / "prefixes"
    PrefixFiles(folder, 10**6, print).write("a" * 64, bytes(1000))
    shown = json.loads(run(app, ["cache", "show", "--json"]).stdout)["prefixes"]
    assert shown == {"folder": str(folder), "files": 1, "bytes": next(folder.glob("*.prefix")).stat().st_size}
    assert "pieces of long beginnings" in run(app, ["cache", "show"]).stdout
    assert "1 files deleted" in run(app, ["cache", "clear"]).stderr
    assert list(folder.iterdir()) == []


def test_an_archive_that_is_none_is_a_failure_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"nothing")
    result = run(app, ["cache", "import", str(tmp_path / "x.zip")])
    assert isinstance(result.exception, BadArchive)
    assert _errors.exit_code(result.exception) == _errors.FAILED
