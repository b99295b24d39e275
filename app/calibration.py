"""What plans really took on this machine: measured by `plan --calibrate`, kept for later plans."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.app.listener import SILENCE, Listener

if TYPE_CHECKING:
    from edgellm.memory.plan import MemoryPlan
    from edgellm.runtime.bringup.calibrate import Measurement

VERSION = 1
KEPT = 200  # measurements; the oldest go first


def run(plan: MemoryPlan, target: Path | None, drafter: Path | None, listener: Listener = SILENCE) -> Measurement:
    """Run a plan in a process of its own and keep what it took.

    Raises:
        UnknownShape: the models are not on this machine.
        LoadError: the run failed.
    """
    from filelock import FileLock

    from edgellm.app.adapters import loras
    from edgellm.memory import files
    from edgellm.memory.shape import UnknownShape
    from edgellm.runtime.bringup.calibrate import measure

    if target is None or (plan.drafter and drafter is None):
        raise UnknownShape(f"{plan.target} and its drafter must be here to be measured: run `edgellm pull` first")
    listener.note("measuring the plan on this machine …")
    measured = measure(target, drafter if plan.drafter else None, plan, loras=loras(plan.loras))
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        kept = {**_read(path), _key(plan): asdict(measured)}
        document = {"version": VERSION, "measurements": dict(list(kept.items())[-KEPT:])}
        files.write(path, json.dumps(document, indent=2).encode())
    return measured


def find(plan: MemoryPlan) -> Measurement | None:
    """What the same plan took here, if it was ever measured."""
    found = _read(_path()).get(_key(plan))
    if found is None:
        return None
    from edgellm.runtime.bringup.calibrate import Measurement

    try:
        return Measurement(**{name: found[name] for name in Measurement.__dataclass_fields__})
    except (KeyError, TypeError):
        return None


def with_speed(plan: MemoryPlan, measured: Measurement) -> MemoryPlan:
    """The plan with the speed that it really has."""
    from edgellm.memory.plan import Speed

    return replace(plan, tokens_per_s=Speed(measured.tokens_per_s, "measured", measured.plain_tokens_per_s))


def sentence(plan: MemoryPlan, measured: Measurement) -> str:
    from edgellm.memory.units import format_bytes

    error = measured.predicted_bytes / measured.peak_bytes - 1
    return (
        f"measured here: {format_bytes(measured.peak_bytes)} at most, "
        f"{format_bytes(measured.predicted_bytes)} predicted ({error:+.1%})"
    )


def _path() -> Path:
    from edgellm.memory.folders import home

    return home() / "calibration.json"


def _read(path: Path) -> dict[str, Any]:
    """Measurements by key; none where the file is missing, damaged or of another version: they can be made again."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return dict(data["measurements"]) if data["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _key(plan: MemoryPlan) -> str:
    """A processor, two models and every setting that decides a size or a speed."""
    from edgellm.memory.cpu import cpu_name

    parts: list[Any] = [cpu_name(), plan.target, plan.quantisation, plan.drafter, asdict(plan.settings)]
    parts += [plan.loras] if plan.loras else []
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
