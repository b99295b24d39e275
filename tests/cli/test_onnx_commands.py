"""ONNX folders wherever a command takes a model: named by path, planned, checked and talked with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_gguf import write_tiny
from tiny_onnx import write_tiny_onnx
from typer.testing import CliRunner

from edgellm.cli.main import app
from edgellm.export.obtain import store

BUDGET = ["--budget", "2GiB", "--draft", "none"]


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_a_folder_with_a_graph_is_a_model(tmp_path: Path) -> None:
    folder = write_tiny_onnx(tmp_path / "tiny-int4")
    found = store.locate(str(folder))
    assert found is not None
    assert (found.name, found.path) == ("tiny-int4", folder)
    assert found.n_bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_it_answers(tmp_path: Path) -> None:
    folder = write_tiny_onnx(tmp_path / "tiny")
    answer = json.loads(run("chat", folder, "--draft", "none", "-p", "the heat", "-n", 5, "--ctx", 200, "--json"))
    assert answer["stats"]["n_new"] == 5


def test_it_is_benched_with_a_drafter_of_the_other_engine(tmp_path: Path) -> None:
    folder, gguf = write_tiny_onnx(tmp_path / "tiny"), write_tiny(tmp_path / "draft.gguf", "llama")
    report = json.loads(run("bench", folder, "--draft", gguf, "--limit", 2, "--max-tokens", 12, "--ctx", 250, "--json"))
    assert report["overall"]["identical"] == report["overall"]["n_prompts"] == 2
    assert report["machine"]["onnxruntime"]


def test_it_is_planned_with_the_type_of_its_own_cache(tmp_path: Path) -> None:
    folder = write_tiny_onnx(tmp_path / "tiny")
    assert "cache float32" in run("plan", folder, *BUDGET)
    assert json.loads(run("plan", folder, *BUDGET, "--json"))["fits"]


def test_a_pair_across_engines_is_checked(tmp_path: Path) -> None:
    folder, gguf = write_tiny_onnx(tmp_path / "tiny"), write_tiny(tmp_path / "draft.gguf", "llama")
    report = json.loads(run("check", folder, gguf, "--json"))
    assert report["target"]["architecture"] == "onnx"
    assert report["n_shared"] > 200


@pytest.mark.parametrize(
    "arguments",
    [
        ("--format", "tar"),
        ("--format", "onnx", "--quant", "Q4_K_M"),
        ("--format", "onnx", "--exporter", "other", "--yes"),
        ("--format", "onnx", "--trim-vocab", "0.5"),
    ],
    ids=["format", "type", "exporter", "option-of-gguf"],
)
def test_options_of_one_format_are_not_taken_for_the_other(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = CliRunner().invoke(app, ["export", str(tmp_path), *arguments])
    assert done.exit_code == 2, done.output
