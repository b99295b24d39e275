"""Python environments of the exporters, each with its own pinned packages: what they need excludes each other, and the
runtime needs neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import filelock

from edgellm.export.source import fingerprint
from edgellm.memory.folders import home
from edgellm.memory.units import format_bytes

Exporter = Literal["builder", "optimum"]
EXPORTERS: tuple[Exporter, ...] = ("builder", "optimum")

DISK_BYTES = 1_400_000_000  # of either, measured with the CPU build of torch
_READY = ".ready"
_JOB = Path(__file__).with_name("onnx_job.py")


class ExporterError(RuntimeError):
    """An exporter that is not there, could not be installed, or failed; the message has its last words."""


def requirements_of(exporter: Exporter) -> Path:
    """The pinned packages of an exporter, as pip reads them."""
    return Path(__file__).with_name("exporters") / f"{exporter}.txt"


def environment(exporter: Exporter, *, ask: Callable[[str], bool]) -> Path:
    """The Python of an exporter's own environment, created the first time.

    Args:
        ask: shown what is about to be installed and how large it is; False leaves everything as it is.

    Raises:
        ExporterError: the answer was no, the disk is too full, or pip failed.
    """
    requirements = requirements_of(exporter)
    folder = home() / "exporters" / f"{exporter}-{fingerprint(requirements.read_text(encoding='utf-8'))}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / _READY).exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_suffix(".lock")):
        if (folder / _READY).exists():
            return python  # another process was first
        if not ask(
            f"the exporter `{exporter}` needs an environment of its own in {folder}: about {format_bytes(DISK_BYTES)} "
            "with the CPU build of torch, several times that where pip finds only the CUDA build; create it?"
        ):
            raise ExporterError(
                f"the exporter `{exporter}` is not installed: say yes, give --yes, or name a Python that has it with "
                "--exporter-python"
            )
        free = shutil.disk_usage(folder.parent).free
        if free < DISK_BYTES:
            raise ExporterError(
                f"{folder.parent} has {format_bytes(free)} free and the exporter needs {format_bytes(DISK_BYTES)}: "
                "free some space, or set EDGELLM_HOME to another disk"
            )
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        _checked([sys.executable, "-m", "venv", str(folder)], "creating the environment")
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _checked([*command, "-r", str(requirements)], f"installing the exporter `{exporter}`")
        (folder / _READY).touch()
    return python


def run_job(python: Path, job: dict[str, Any], what: str, *, log: Path) -> dict[str, Any]:
    """One job of `onnx_job.py` in that environment; what it prints goes to `log`.

    Raises:
        ExporterError: it failed.
    """
    # Isolated: neither the user's PYTHONPATH nor this package's folder, where modules bear the names of libraries.
    command = [str(python), "-I", str(_JOB)]
    try:
        with log.open("ab") as errors:
            done = subprocess.run(
                command, input=json.dumps(job).encode(), stdout=subprocess.PIPE, stderr=errors, check=False
            )
    except OSError as error:
        raise ExporterError(f"{python} could not be started ({error.strerror}): is it a Python?") from error
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        answer = {}
    if done.returncode or "error" in answer or not answer:
        reason = answer.get("error") or _last_line(log) or f"it ended with {done.returncode}"
        raise ExporterError(f"{what} failed: {reason}")
    return answer


def _checked(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise ExporterError(f"{what} failed: {(errors or lines)[-1]}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][-500:] if lines else ""
