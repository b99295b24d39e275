"""Python environments of the exporters and of llama.cpp's converter, each with its own pinned packages: what they need
excludes each other, and the runtime needs neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import filelock

from edgellm.export.obtain.source import fingerprint
from edgellm.memory.children import SHORT_OF_MEMORY, end_of
from edgellm.memory.errors import EdgellmError
from edgellm.memory.folders import home
from edgellm.memory.units import format_bytes

Exporter = Literal["builder", "optimum"]
EXPORTERS: tuple[Exporter, ...] = ("builder", "optimum")
Tool = Literal["builder", "optimum", "llama_cpp"]

# Measured with the CPU build of torch.
DISK_BYTES: dict[Tool, int] = {"builder": 1_400_000_000, "optimum": 1_400_000_000, "llama_cpp": 1_200_000_000}
_READY = ".ready"


class ExporterError(EdgellmError, RuntimeError):
    """An exporter that is not there, could not be installed, or failed; the message has its last words."""


def requirements_of(tool: Tool) -> Path:
    """The pinned packages of a tool, as pip reads them."""
    return Path(__file__).with_name("exporters") / f"{tool}.txt"


def packages_of(tool: Tool) -> dict[str, str]:
    """The pinned packages by name: their versions."""
    lines = requirements_of(tool).read_text(encoding="utf-8").splitlines()
    pins = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {name: version for name, _, version in pins}


def is_installed(tool: Tool) -> bool:
    """Whether `environment` has nothing to install."""
    return (_folder(tool) / _READY).exists()


def environment(tool: Tool, *, ask: Callable[[str], bool]) -> Path:
    """The Python of a tool's own environment, created the first time.

    Args:
        ask: shown what is about to be installed and how large it is; False leaves everything as it is.

    Raises:
        ExporterError: the answer was no, the disk is too full, or pip failed.
    """
    folder, n_bytes = _folder(tool), DISK_BYTES[tool]
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / _READY).exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_suffix(".lock")):
        if (folder / _READY).exists():
            return python  # another process was first
        if not ask(
            f"the exporter `{tool}` needs an environment of its own in {folder}: about {format_bytes(n_bytes)} "
            "with the CPU build of torch, several times that where pip finds only the CUDA build; create it?"
        ):
            raise ExporterError(
                f"the exporter `{tool}` is not installed: say yes, give --yes, or name a Python that has it with "
                "--exporter-python"
            )
        free = shutil.disk_usage(folder.parent).free
        if free < n_bytes:
            raise ExporterError(
                f"{folder.parent} has {format_bytes(free)} free and the exporter needs {format_bytes(n_bytes)}: "
                "free some space, or set EDGELLM_HOME to another disk"
            )
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        _checked([sys.executable, "-m", "venv", str(folder)], "creating the environment")
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _checked([*command, "-r", str(requirements_of(tool))], f"installing the exporter `{tool}`")
        (folder / _READY).touch()
    return python


def _folder(tool: Tool) -> Path:
    return home() / "exporters" / f"{tool}-{fingerprint(requirements_of(tool).read_text(encoding='utf-8'))}"


def run_job(
    python: Path,
    job: Mapping[str, Any],
    what: str,
    *,
    log: Path,
    program: str,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """One job of a program below this module's folder, in such an environment; what it prints goes to `log`.

    The child ends with its standard input, which this process holds: it does not outlive the command.

    Args:
        on_event: given what the program reports before its answer, an object a line.

    Returns:
        The last object that it wrote.

    Raises:
        ExporterError: it failed.
    """
    # Isolated: neither the user's PYTHONPATH nor this package's folder, where modules bear the names of libraries.
    command = [str(python), "-I", str(Path(__file__).parent / program)]
    answer: dict[str, Any] = {}
    try:
        with log.open("ab") as errors:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=_quiet()
            )
    except OSError as error:
        raise ExporterError(f"{python} could not be started ({error.strerror}): is it a Python?") from error
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with contextlib.suppress(OSError):  # it may be gone already: how it ended says more
            child.stdin.write(json.dumps(job).encode() + b"\n")
            child.stdin.flush()
        for line in child.stdout:
            with contextlib.suppress(ValueError):  # what a library printed, or a line that was cut off
                said = json.loads(line)
                if isinstance(said, dict):
                    if on_event is not None and "event" in said:
                        on_event(said)
                    answer = said
        child.wait()
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
    if child.returncode or "error" in answer or "event" in answer or not answer:
        ended = end_of(child.returncode)
        reason = answer.get("error") or (f"{ended}; {SHORT_OF_MEMORY}" if ended else "") or _last_line(log)
        raise ExporterError(f"{what} failed: {reason or f'it ended with {child.returncode}'}")
    return answer


def _quiet() -> dict[str, str]:
    """This process's environment, in which the libraries ask no network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _checked(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise ExporterError(f"{what} failed: {(errors or lines)[-1]}")


def _last_line(log: Path) -> str:
    """The last exception that a log tells of; the last line where it tells of none."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raised = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|Exit|Interrupt)\b(: |$)", line)]
    return (raised or lines or [""])[-1][-500:]
