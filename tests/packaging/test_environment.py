"""`install/environment.py`, which sets up before anything is there: what it asks for, what it says, how it fails."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / "install/environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_engine_comes_last_and_nothing_is_left_out(environment: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    small, engine = environment.dependencies()
    assert sorted([*small, engine]) == sorted(project["dependencies"])
    assert engine.startswith("llama-cpp-python==")


def test_what_cmake_is_told_to_include_is_there(environment: ModuleType) -> None:
    (include,) = [each for each in environment.CMAKE_ARGS.split() if "_INCLUDE=" in each]
    assert "LLAMA_BUILD_COMMON OFF" in Path(include.partition("=")[2]).read_text(encoding="utf-8")


def test_a_release_leaves_out_of_the_engine_what_the_environment_does(environment: ModuleType) -> None:
    workflow = (ROOT / ".github/workflows/wheels.yml").read_text(encoding="utf-8")
    assert environment.WHEEL_EXCLUDE in workflow
    assert environment.CMAKE_ARGS.split()[0] in workflow


def test_a_command_that_fails_tells_its_last_lines(environment: ModuleType) -> None:
    with pytest.raises(environment.Failed, match="no such wheel"):
        list(environment.run([sys.executable, "-c", "import sys; print('no such wheel'); sys.exit(3)"]))


def test_the_line_says_what_is_compiled_and_what_is_fetched(
    environment: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    line = environment.Line()
    line.parts["fetching"] = "3 MiB of 5 MiB"
    line.show("compiling", "3 of 83 files")
    assert capsys.readouterr().err == "compiling: 3 of 83 files, fetching: 3 MiB of 5 MiB\n"


def test_where_packages_cannot_be_had_it_ends_with_pips_reason_and_an_error(tmp_path: Path) -> None:
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, str(ROOT / "install/environment.py"), str(tmp_path / "venv")]
    done = subprocess.run(command, env={**os.environ, **nowhere}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No matching distribution found" in done.stderr
    assert "Traceback" not in done.stderr
