"""Models against devices: a plan for each pair of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgellm.app.shapes import Known, drafter_for, look_up, of_name, smaller_than

if TYPE_CHECKING:
    from edgellm.memory.device import Device
    from edgellm.memory.plan import MemoryPlan
    from edgellm.memory.plan_request import PlanRequest
    from edgellm.memory.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Matrix:
    """What does not fit is a cell too, not an error."""

    places: list[Device]
    rows: list[tuple[ModelShape, list[MemoryPlan]]]  # one plan a place

    def cells(self) -> list[dict[str, Any]]:
        """The documented objects."""
        return [
            _cell(target, place, plan)
            for target, plans in self.rows
            for place, plan in zip(self.places, plans, strict=True)
        ]


def matrix(devices: str, models: str | None, draft: str | None, ask: PlanRequest) -> Matrix:
    """One plan for each model and device.

    Args:
        devices: names with commas between, or "all".
        models: likewise; None for every target of the catalogue that has sizes.

    Raises:
        UnknownDevice, UnknownModel, UnknownShape: one of the names stands for nothing.
    """
    from edgellm.memory.solve import solve

    places = _places(devices)
    look, rows = functools.cache(look_up), []
    for target in _targets(models):
        drafter, smaller = drafter_for(target.shape, draft, look=look), smaller_than(target)
        shape = drafter.shape if drafter else None
        rows.append((target.shape, [solve(target.shape, shape, place, ask, smaller=smaller).plan for place in places]))
    return Matrix(places, rows)


def are_devices(names: str) -> bool:
    """Whether names with commas between can be meant as devices, at least one of which is known."""
    from edgellm.memory.device import known_devices

    known = {device.name for device in known_devices()} | {"all", "here"}
    return any(name.strip().casefold() in known for name in names.split(","))


def _places(names: str) -> list[Device]:
    from edgellm.memory.device import find_device, known_devices

    if names.casefold() == "all":
        return list(known_devices())
    return [find_device(name.strip()) for name in names.split(",") if name.strip()]


def _targets(models: str | None) -> list[Known]:
    from edgellm.export.obtain.catalogue import load_catalogue

    if models is not None:
        return [look_up(name.strip()) for name in models.split(",") if name.strip()]
    names = [entry.name for entry in load_catalogue() if entry.facts is not None and entry.role == "target"]
    return sorted(map(of_name, names), key=lambda target: target.shape.weight_bytes)


def _cell(target: ModelShape, place: Device, plan: MemoryPlan) -> dict[str, Any]:
    return {
        "model": target.name,
        "quantisation": plan.quantisation,
        "device": place.name,
        "fits": plan.fits,
        "total_bytes": plan.total_bytes,
        "limit_bytes": plan.limit_bytes,
        "drafter": plan.drafter,
        "n_ctx": plan.n_ctx,
        "kv": plan.settings.target.kv,
        "n_draft": plan.n_draft,
        "tokens_per_s": plan.tokens_per_s.value if plan.fits and plan.tokens_per_s else None,
    }
