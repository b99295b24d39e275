"""`edgellm check` on real files: what it says of equal, different and unusable vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tiny_gguf import write_tiny
from typer.testing import CliRunner

from edgellm.cli.main import app
from edgellm.memory.gguf import read_header
from edgellm.runtime.backends.base import LoadError

MERGES = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("Ġ", "a"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """target.gguf, same.gguf (its vocabulary, padded), other.gguf (fewer merges, other ids), as.gguf (as large)."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny(folder / "target.gguf", n_layers=24, merges=MERGES)
    write_tiny(folder / "same.gguf", n_layers=1, n_vocab=352, merges=MERGES)
    write_tiny(folder / "other.gguf", n_layers=1, vocab="spm", merges=())
    write_tiny(folder / "as.gguf", n_layers=24, merges=MERGES, seed=1)
    return folder


def check(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["check", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_padded_vocabulary_is_the_same_and_shares_every_token(models: Path) -> None:
    report = check(str(models / "target.gguf"), str(models / "same.gguf"))
    assert report["same_vocabulary"]
    assert report["of_target"] == report["of_draft"] == 1.0
    assert report["target_to_draft"]["n_split"] == report["draft_to_target"]["n_split"] == 0
    assert report["measured"] is None
    assert report["verdict"].startswith("Fits: it drafts in the target's own vocabulary")


def test_tokens_that_one_vocabulary_lacks_are_counted_in_both_directions(models: Path) -> None:
    report = check(str(models / "target.gguf"), str(models / "other.gguf"))
    assert not report["same_vocabulary"]
    assert "differ" in report["reason"]
    # Of the five merges the other vocabulary has five of its own spelling: " t" and " a" as pieces, "he", "in", " the".
    assert report["n_shared"] == 256 + 5
    assert report["target_to_draft"] == {"n_split": 0, "mean_split": 0.0}
    assert 0 < report["of_draft"] <= 1.0
    assert report["bytes_ratio"] == pytest.approx(
        (models / "target.gguf").stat().st_size / (models / "other.gguf").stat().st_size
    )


def test_a_drafter_as_large_as_its_target_does_not_fit(models: Path) -> None:
    assert check(str(models / "target.gguf"), str(models / "as.gguf"))["verdict"].startswith("Does not fit")


def test_measuring_gives_the_acceptance_of_a_drafter_that_is_its_own_target(models: Path) -> None:
    target = str(models / "same.gguf")
    measured = check(target, target, "--measure")["measured"]
    assert measured["acceptance"] > 0.9
    assert 1.0 < measured["tokens_per_round"] <= measured["n_draft"] + 1


def test_people_get_a_table_and_a_verdict(models: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(models / "target.gguf"), str(models / "other.gguf")])
    lines = done.stdout.splitlines()
    assert lines[0].startswith("target ")
    assert lines[-1].startswith("Fits: it drafts through translation")


@pytest.mark.parametrize("broken", ["missing.gguf", "no-such-model"])
def test_a_model_that_is_not_there_is_a_usage_error(models: Path, broken: str) -> None:
    from edgellm.cli._errors import USAGE, exit_code

    done = CliRunner().invoke(app, ["check", str(models / "target.gguf"), broken])
    assert done.exception is not None
    assert exit_code(done.exception) == USAGE


def test_a_vocabulary_alone_fits_nothing(models: Path, tmp_path: Path) -> None:
    header = read_header(models / "target.gguf")
    writer = gguf.GGUFWriter(tmp_path / "words.gguf", "llama")
    reader = gguf.GGUFReader(models / "target.gguf")
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        writer.add_array(key, [word.decode() for word in header.array(key)])
    writer.add_token_types([int(kind) for kind in reader.fields["tokenizer.ggml.token_type"].contents()])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
        write()
    writer.close()
    done = CliRunner().invoke(app, ["check", str(models / "target.gguf"), str(tmp_path / "words.gguf")])
    assert isinstance(done.exception, LoadError)
    assert "holds a vocabulary only" in str(done.exception)
