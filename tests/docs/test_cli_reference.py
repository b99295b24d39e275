"""docs/cli.md is what the command says of itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from doc_pages import ROOT

PROGRAM, PAGE = ROOT / "docs" / "generate_cli.py", ROOT / "docs" / "cli.md"


def check(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), "--check"], env={**os.environ, **variables}, capture_output=True, text=True
    )


def test_the_command_reference_is_not_stale() -> None:
    done = check()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "variables",
    [{"COLUMNS": "40"}, {"EDGELLM_CTX": "64", "EDGELLM_TEMP": "0.7"}, {"TERM": "dumb", "LC_ALL": "C", "SHELL": ""}],
    ids=["a narrow terminal", "settings of the user", "no shell"],
)
def test_it_does_not_depend_on_where_it_is_made(variables: dict[str, str]) -> None:
    assert check(**variables).returncode == 0


def test_every_command_and_every_option_is_in_it() -> None:
    import typer

    from edgellm.cli.main import app

    page = PAGE.read_text(encoding="utf-8")

    def walk(command: object, name: str) -> None:
        _, _, section = page.partition(f"\n## {name}\n")
        section = section.partition("\n## ")[0]
        assert section, f"{name} has no section"
        for parameter in command.params:  # type: ignore[attr-defined]
            is_shells = parameter.name in ("install_completion", "show_completion")
            if parameter.param_type_name == "option" and not is_shells and not parameter.hidden:
                assert parameter.opts[0] in section, f"{name} {parameter.opts[0]}"
        for word, subcommand in getattr(command, "commands", {}).items():
            walk(subcommand, f"{name} {word}")

    walk(typer.main.get_command(app), "edgellm")
