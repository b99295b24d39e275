"""`edgellm complete`: continuations on stdout, all else on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "x.gguf", "llama", weights="Q8_0")


def run(model: Path, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgellm.cli", "complete", str(model), "--ctx", "256", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)


def test_several_are_told_one_a_line_and_are_the_same_with_the_same_seed(model: Path) -> None:
    first, second = (run(model, "-p", "the hat", "--n", "3", "--seed", "5", "--max-tokens", "4") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert len(set(first.stdout.removesuffix("\n").split("\n"))) == 3
    assert first.stdout == second.stdout


def test_what_is_piped_in_is_gone_on_from_as_it_is(model: Path) -> None:
    done = run(model, "--json", "--temp", "0", text="the hat\n")
    made = json.loads(done.stdout)
    assert made["n_prompt"] == len(b"the hat\n") - 1  # "he" is one token; the line's end is another
    assert len(made["completions"]) == 1


def test_several_without_chance_are_a_sentence(model: Path) -> None:
    done = run(model, "-p", "x", "--n", "2", "--temp", "0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "several continuations need chance" in done.stderr


def test_a_model_that_keeps_one_text_draws_one_after_the_other(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "x.gguf", "granitehybrid", weights="Q8_0")
    anything = ("--temp", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0")
    done = run(path, "-p", "the hat", "--n", "3", "--seed", "5", *anything)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.removesuffix("\n").split("\n"))) == 3
