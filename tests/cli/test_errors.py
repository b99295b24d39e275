"""Every failure that a user can meet is one sentence with a documented exit code."""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_address import NOWHERE

from edgellm.cli import _errors
from edgellm.memory.errors import DOES_NOT_FIT, FAILED, USAGE, EdgellmError

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("app", "cli", "export", "memory", "runtime", "server")
# A program that another Python runs, without edgellm in it, is named *_job.py: it cannot derive from our base.
FOREIGN = "_job.py"


def exception_classes() -> Iterator[tuple[str, str]]:
    """(module, class) of every class of the rooms that has an exception among its ancestors."""
    found: dict[str, tuple[str, list[str]]] = {}
    for room in ROOMS:
        for source in sorted((ROOT / room).rglob("*.py")):
            if source.name.endswith(FOREIGN):
                continue
            module = ".".join(["edgellm", *source.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    found[node.name] = (module, [ast.unparse(base).rpartition(".")[2] for base in node.bases])

    def is_exception(name: str) -> bool:
        known = getattr(builtins, name, None)
        if isinstance(known, type):
            return issubclass(known, BaseException)
        return name in found and any(map(is_exception, found[name][1]))

    yield from ((module, name) for name, (module, _) in found.items() if is_exception(name))


CLASSES = list(exception_classes())


def test_the_walk_finds_the_classes() -> None:
    assert {"BadSize", "SourceError", "DoesNotFit", "ContextFull", "OutputError"} <= {name for _, name in CLASSES}


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_every_class_has_an_exit_code_and_says_what_it_means(module: str, name: str) -> None:
    kind = getattr(importlib.import_module(module), name)
    assert issubclass(kind, EdgellmError), f"{module}.{name} derives from memory.errors.EdgellmError"
    assert kind.exit_code in (FAILED, USAGE, DOES_NOT_FIT)
    assert kind.__doc__, f"{module}.{name} says when it is raised"


def test_a_failure_of_a_library_is_a_sentence_and_a_bug_is_not() -> None:
    import filelock
    import httpx2
    import jinja2
    import yaml

    for error in (filelock.Timeout("x.lock"), httpx2.InvalidURL("no"), jinja2.TemplateSyntaxError("no", 1)):
        assert _errors.exit_code(error) == FAILED
        assert "\n" not in _errors.sentence(error)
    assert _errors.sentence(httpx2.ReadTimeout("")) == "httpx2: ReadTimeout"
    assert _errors.sentence(yaml.YAMLError("a\n  b")) == "yaml: a b"
    assert [_errors.exit_code(bug) for bug in (KeyError("x"), ValueError("x"), AssertionError())] == [None] * 3


MODEL = "nobody/nothing"
ALONE = [("export", MODEL), ("pull", MODEL), ("plan", MODEL), ("show", MODEL), ("chat", MODEL, "--prompt", "hi")]
OTHERS = [
    ("export", MODEL, "--format", "onnx"),
    ("export", MODEL, "--base", "nobody/base"),
    ("export", f"{MODEL}:Q8_0"),
    ("check", MODEL, "nobody/else"),
    ("bench", MODEL),
    ("imatrix", MODEL, "--text", os.devnull),
    ("rm", MODEL, "--yes"),
]
WITH = {
    "export": ["--json", "--jsonl"],
    "pull": ["--json", "--offline"],
    "plan": ["--json", "--offline"],
    "show": ["--json"],
    "chat": ["--json", "--jsonl", "--offline"],
}


@pytest.mark.parametrize(
    "arguments",
    [*ALONE, *((*command, option) for command in ALONE for option in WITH[command[0]]), *OTHERS],
    ids=" ".join,
)
def test_a_hub_out_of_reach_is_one_sentence(arguments: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgellm.cli", *arguments]
    done = subprocess.run(
        command,
        env=os.environ | {"HF_ENDPOINT": NOWHERE},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == FAILED, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize(
    "variables",
    [{"HF_ENDPOINT": "nonsense"}, {"HF_ENDPOINT": "http://[::1"}, {"HTTPS_PROXY": "nonsense://x", "HTTP_PROXY": "y"}],
    ids=str,
)
def test_an_address_that_is_none_is_one_sentence(variables: dict[str, str], tmp_path: Path) -> None:
    for arguments in (["pull", MODEL], ["export", MODEL]):
        done = subprocess.run(
            [sys.executable, "-m", "edgellm.cli", *arguments],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
        )
        assert done.returncode == FAILED, done.stderr
        assert len(done.stderr.splitlines()) == 1
