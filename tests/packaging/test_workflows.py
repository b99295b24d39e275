"""What cannot be run here names things that are here, and asks for no more rights than it uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def steps_of(path: Path) -> Iterator[dict[str, Any]]:
    for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
        yield from job.get("steps", [])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_reads_only_unless_a_job_says_why_not(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job or "uses" in job for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_an_action_is_taken_at_a_version(path: Path) -> None:
    used = [step["uses"] for step in steps_of(path) if "uses" in step]
    assert used
    assert all(re.search(r"@(v\d|release/v\d|[0-9a-f]{40}$)", name) for name in used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_is_there(path: Path) -> None:
    commands = [step["run"] for step in steps_of(path) if "run" in step]
    targets = {target for command in commands for target in re.findall(r"\bmake ([a-z-]+)", command)}
    assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in targets)
    named = {name for command in commands for name in re.findall(r"\b[\w./-]+\.(?:py|lock|toml|md)\b", command)}
    assert all((ROOT / name).exists() for name in named - {"notes.md"})


def test_windows_which_has_no_make_runs_the_tests_as_make_does() -> None:
    flags = re.search(r"^PYTEST := \$\(BIN\)/pytest (.*)$", MAKEFILE, re.MULTILINE)
    assert flags
    commands = [step.get("run", "") for step in steps_of(ROOT / ".github/workflows/test.yml")]
    assert f"python -m pytest {flags[1].replace('$(JOBS)', 'auto')}" in commands
