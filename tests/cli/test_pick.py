"""`edgellm pick` as people run it: a table, a report for machines, a question on a terminal, and a model pulled."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub
from tiny_gguf import write_tiny
from typer.testing import CliRunner

from edgellm.app.picking import TASKS
from edgellm.cli.main import app
from edgellm.export.obtain import store
from edgellm.memory.gguf import read_header

ROOM = ("small", "--budget", "200MB")  # which only the tiny model fits


def pick(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["pick", *arguments], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def report(*arguments: str) -> dict[str, Any]:
    _, stdout, _ = pick(*arguments, "--json")
    made: dict[str, Any] = json.loads(stdout)
    return made


@pytest.fixture
def tiny(hub: LoopbackHub, catalogue: Callable[..., None], tmp_path: Path) -> bytes:
    """A model of the catalogue that a loopback Hub has."""
    path = write_tiny(tmp_path / "tiny-Q8_0.gguf", "llama", weights="Q8_0")
    facts = {
        "architecture": "llama", "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "n_embd": 64,
        "n_ff": 128, "n_vocab": 320, "n_merges": 5, "n_ctx_train": 32_768, "n_params": read_header(path).n_params,
        "tied": True,
    }  # fmt: skip
    file = {"quant": "Q8_0", "filename": path.name, "bytes": path.stat().st_size, "sources": [{"hf": "me/tiny-GGUF"}]}
    catalogue({"name": "tiny", "tasks": ["small"], "facts": facts, "files": [file]})
    hub.add_repo("me/tiny-GGUF", {path.name: path.read_bytes()})
    return path.read_bytes()


@pytest.mark.parametrize("task", TASKS)
def test_the_report_names_what_a_person_asks(task: str) -> None:
    made = report(task, "--mem", "8GB")
    assert made["task"] == task
    assert made["device"]["usable_bytes"] == 4_000_000_000
    for row in made["picks"]:
        assert {
            "reference",
            "licence",
            "n_bytes",
            "required_bytes",
            "n_ctx",
            "draft",
            "tokens_per_s",
            "here",
        } <= row.keys()
        assert row["required_bytes"] <= 4_000_000_000
    assert made["pulled"] is None
    code, stdout, stderr = pick(task, "--mem", "8GB")
    assert code == 0
    assert all(row["name"] in stdout and row["licence"] in stdout for row in made["picks"])
    assert "--yes takes the first" in stderr


def test_general_is_what_is_meant_where_nobody_says() -> None:
    assert report("--mem", "8GB")["task"] == "general"


def test_what_does_not_fit_exits_3_with_a_report_all_the_same() -> None:
    code, stdout, stderr = pick("code", "--budget", "100MB")
    assert (code, stdout) == (3, "")
    assert "no model of the catalogue for code fits" in stderr
    made = report("code", "--budget", "100MB")
    assert made["picks"] == []
    assert made["too_large"]


def test_yes_pulls_the_first(tiny: bytes) -> None:
    code, stdout, stderr = pick(*ROOM, "--yes")
    assert code == 0, stderr
    assert "tiny:Q8_0" in stdout
    model = store.locate("tiny")
    assert model is not None
    assert model.path.read_bytes() == tiny
    made = report(*ROOM, "--yes")
    assert [row["here"] for row in made["picks"]] == [True]
    assert made["pulled"]["target"]["path"] == str(model.path)


def test_nothing_is_pulled_where_nobody_can_be_asked(tiny: bytes, hub: LoopbackHub) -> None:
    assert pick(*ROOM)[0] == 0
    assert [row["here"] for row in report(*ROOM)["picks"]] == [False]
    assert hub.asked("resolve") == []


@pytest.mark.parametrize(("answer", "is_here"), [("1", True), ("", True), ("0", False), ("7", False)])
def test_a_terminal_is_asked(tiny: bytes, answer: str, is_here: bool) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgellm.cli", "pick", *ROOM], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"}, text=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"for none?" not in seen:
        seen += os.read(ours, 65_536)
    os.write(ours, f"{answer}\n".encode())
    while True:
        try:
            seen += os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    stdout, _ = process.communicate()
    assert "tiny:Q8_0" in stdout
    assert process.returncode == (2 if answer == "7" else 0), seen
    assert (store.locate("tiny") is not None) == is_here
    assert b"edgellm chat tiny" in seen or not is_here


def test_another_task_is_refused_with_those_there_are() -> None:
    from edgellm.app.defaults import BadSetting

    with pytest.raises(BadSetting, match="'poetry' is no task: take general, code, small, long"):
        pick("poetry")
