"""The rooms and which may import which. A new edge is a decision: change ALLOWED in the same commit."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED: dict[str, set[str]] = {
    "memory": set(),
    "export": {"memory"},
    "runtime": {"memory"},
    "app": {"memory", "export", "runtime"},
    "server": {"memory", "runtime", "app"},
    "cli": {"memory", "export", "runtime", "app", "server"},
}
# A heavy library is imported by its adapter alone.
ADAPTERS = {
    "llama_cpp": {
        "export/convert/engine_program.py",
        "runtime/backends/llama_process.py",
        "runtime/backends/llama_context.py",
        "runtime/backends/llama_cpp.py",
        "runtime/backends/llama_encoder.py",
        "runtime/backends/llama_heads.py",
        "runtime/backends/llama_log.py",
        "runtime/backends/llama_model.py",
        "runtime/backends/llama_nextn.py",
        "runtime/backends/llama_sequences.py",
        "runtime/backends/llama_states.py",
        "runtime/backends/llama_tokenizer.py",
        "runtime/backends/sequence_states.py",
        "runtime/bringup/extra_buffers.py",
        "runtime/bringup/library.py",
        "runtime/bringup/probe.py",
        "runtime/workers/server.py",
    },
    "onnxruntime": {
        "export/onnx/hosts/host.py",
        "export/onnx/onnx_bundle.py",
        "export/onnx/onnx_job.py",
        "runtime/backends/onnx_cache.py",
        "runtime/backends/onnx_runtime.py",
    },
    "tokenizers": {
        "export/onnx/hosts/host.py",
        "export/onnx/onnx_job.py",
        "export/check/fidelity.py",
        "runtime/backends/hub_tokenizer.py",
    },
    "starlette": {
        "cli/serve.py",  # asks whether it is there
        "server/application.py",
        "server/bodies.py",
        "server/errors.py",
        "server/guard.py",
        "server/page.py",
        "server/request_log.py",
        "server/service.py",
        "server/streaming.py",
    },
    "uvicorn": {"cli/serve.py", "server/listening.py"},
    "llguidance": {"runtime/text/guidance.py"},
    "torch": {"export/convert/converter_job.py", "export/onnx/onnx_job.py"},
    "transformers": {"export/convert/converter_job.py", "export/onnx/onnx_job.py"},
}


def modules_imported_by(source: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: imports are absolute"
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
    return names


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_downwards(room: str) -> None:
    for source in (ROOT / room).rglob("*.py"):
        rooms = {name.split(".")[1] for name in modules_imported_by(source) if name.startswith("edgellm.")}
        assert rooms <= ALLOWED[room] | {room}, source


@pytest.mark.parametrize("library", ADAPTERS)
def test_heavy_libraries_are_imported_by_their_adapters_alone(library: str) -> None:
    importers = {
        source.relative_to(ROOT).as_posix()
        for room in ALLOWED
        for source in (ROOT / room).rglob("*.py")
        if any(name.split(".")[0] == library for name in modules_imported_by(source))
    }
    assert importers <= ADAPTERS[library]


def test_no_files_import_each_other_in_a_circle() -> None:
    """Whatever an import stands in: the file, a function, or TYPE_CHECKING."""
    files = {
        ".".join(["edgellm", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
        for room in ALLOWED
        for path in (ROOT / room).rglob("*.py")
    }
    edges = {name: files_imported_by(path, files) - {name} for name, path in files.items()}
    while leaves := {name for name, wanted in edges.items() if not wanted & edges.keys()}:
        for name in leaves:
            del edges[name]
    assert circles_of(edges) == []


def files_imported_by(source: Path, files: Mapping[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & files.keys() or {str(node.module)} & files.keys()
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & files.keys()
    return found


def circles_of(edges: Mapping[str, set[str]]) -> list[set[str]]:
    """Sets of names that all lead to each other."""

    def reached(start: str) -> set[str]:
        seen, waiting = set[str](), [start]
        while waiting:
            for name in edges.get(waiting.pop(), set()) & edges.keys() - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    ahead = {name: reached(name) for name in edges}
    circles: list[set[str]] = []
    for name, names in ahead.items():
        if name in names and not any(name in circle for circle in circles):
            circles.append({other for other in names if name in ahead[other]})
    return circles


def test_a_circle_is_seen() -> None:
    assert circles_of({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()}) == [{"a", "b", "c"}]


def test_every_package_ships() -> None:
    """setuptools cannot discover mapped packages, and an editable install hides a forgotten one."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(["edgellm", *init.parent.relative_to(ROOT).parts])
        for room in ALLOWED
        for init in (ROOT / room).rglob("__init__.py")
    }
    assert listed == found | {"edgellm"}


def test_no_python_file_but_the_api_lies_at_the_root() -> None:
    """It would ship inside the wheel as edgellm/<name>.py."""
    assert {path.name for path in ROOT.glob("*.py")} == {"setup.py", "__init__.py"}


def test_policy_prints_nothing_exits_never_and_reads_no_command_line() -> None:
    for source in (ROOT / "app").rglob("*.py"):
        libraries = {name.split(".")[0] for name in modules_imported_by(source)}
        assert libraries.isdisjoint({"argparse", "click", "prompt_toolkit", "rich", "typer"}), source
        tree = ast.parse(source.read_text(encoding="utf-8"))
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert called.isdisjoint({"print", "input", "exit", "quit", "sys.exit", "os._exit"}), source
        named = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert named.isdisjoint({"sys.stdout", "sys.stderr", "sys.stdin", "sys.argv", "SystemExit"}), source
