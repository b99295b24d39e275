"""What fits a machine best: models of the catalogue for a task, ranked by their plans, and what is chosen pulled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgellm.app.defaults import BadSetting
from edgellm.app.listener import SILENCE, Listener
from edgellm.app.shapes import Known, drafter_for, look_up, with_references

if TYPE_CHECKING:
    from edgellm.export.obtain.catalogue import ModelEntry
    from edgellm.export.obtain.store import ModelFile
    from edgellm.memory.device import Device
    from edgellm.memory.plan import MemoryPlan
    from edgellm.memory.plan_request import PlanRequest

Task = Literal["general", "code", "small", "long"]
TASKS: tuple[Task, ...] = get_args(Task)

MIN_TOKENS_PER_S = 5.0
"""People read about so fast: what a plan expects to be slower comes behind all that is not."""
MIN_N_CTX = 2048
"""Tokens of a conversation of some turns: what fits with less comes behind all that does not."""
SMALL_BYTES = 1_500_000_000
"""A small model takes at most so much memory, its cache and its drafter included."""
CONTEXTS = (131_072, 65_536, 32_768, 16_384, 8192, 4096)
"""Contexts in tokens that are tried for long texts, the longest first."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A model that fits, as it would run."""

    entry: ModelEntry
    plan: MemoryPlan
    is_here: bool

    def to_json(self) -> dict[str, Any]:
        """Sizes in bytes; null where the catalogue does not know them."""
        speed, entry = self.plan.tokens_per_s, self.entry
        return {
            "reference": self.plan.target_reference,
            "name": entry.name,
            "quant": self.plan.quantisation,
            "summary": entry.summary,
            "licence": entry.licence,
            "here": self.is_here,
            "n_bytes": entry.files[0].n_bytes,
            "required_bytes": self.plan.required_bytes,
            "n_ctx": self.plan.n_ctx,
            "kv": self.plan.settings.target.kv,
            "draft": self.plan.drafter_reference,
            "tokens_per_s": speed.value if speed else None,
            "plain_tokens_per_s": speed.plain if speed else None,
        }


@dataclass(frozen=True, slots=True)
class Picks:
    """All that fit, the best first, and what was not ranked."""

    task: Task
    fitting: list[Pick]
    too_large: list[str]
    unknown: dict[str, str]  # name -> why nobody can say whether it fits


def task_of(word: str) -> Task:
    """Raises BadSetting: there is no such task."""
    named = word.casefold().replace("_", "-").removesuffix("-context").removesuffix(" context")
    if named not in TASKS:
        raise BadSetting(f"{word!r} is no task: take {', '.join(TASKS)}")
    return named


def best_for(task: Task, place: Device, ask: PlanRequest) -> Picks:
    """The models of the catalogue that fit a place, by the numbers of their plans. No server is asked.

    A larger model goes before a smaller one; for long texts a longer context before that. What is slower than reading,
    or has no room for a conversation, comes last.
    """
    from edgellm.export.obtain import store
    from edgellm.export.obtain.catalogue import load_catalogue
    from edgellm.memory.errors import EdgellmError

    look = functools.cache(functools.partial(look_up, offline=True))
    found = Picks(task, [], [], {})
    for entry in load_catalogue():
        if not entry.files or not _serves(entry, task):
            continue
        try:
            plan = _plan_of(entry, task, place, ask, look)
        except EdgellmError as error:
            found.unknown[entry.name] = str(error)
            continue
        if not plan.fits or (task == "small" and plan.required_bytes > SMALL_BYTES):
            found.too_large.append(entry.name)
        else:
            found.fitting.append(Pick(entry, plan, store.locate(entry.name) is not None))
    found.fitting.sort(key=functools.partial(_merit, task=task), reverse=True)
    return found


def pull(pick: Pick, *, token: str | None = None, listener: Listener = SILENCE) -> tuple[ModelFile, ModelFile | None]:
    """Bring a model here with the drafter that its plan has. Raises as `store.pull`."""
    from edgellm.export.obtain import store

    target = store.pull(str(pick.plan.target_reference), token=token, progress=listener.progress())
    draft = pick.plan.drafter_reference
    return target, store.pull(draft, token=token, progress=listener.progress()) if draft else None


def _serves(entry: ModelEntry, task: Task) -> bool:
    return bool(set(entry.tasks) & {"general", "code"}) if task == "long" else task in entry.tasks


def _plan_of(
    entry: ModelEntry, task: Task, place: Device, ask: PlanRequest, look: Callable[[str], Known]
) -> MemoryPlan:
    """With as long a context as fits, where the task is long texts and none was asked for."""
    from edgellm.memory.solve import solve

    target = look(entry.name)
    drafter = drafter_for(target.shape, None, look=look)
    shape = drafter.shape if drafter else None

    def solved(request: PlanRequest) -> MemoryPlan:
        return with_references(solve(target.shape, shape, place, request).plan, target, drafter)

    if task == "long" and ask.n_ctx is None:
        for n_ctx in CONTEXTS:
            if n_ctx <= target.shape.n_ctx_train and (plan := solved(replace(ask, n_ctx=n_ctx))).fits:
                return plan
    return solved(ask)


def _merit(pick: Pick, task: Task) -> tuple[Any, ...]:
    speed = pick.plan.tokens_per_s
    is_fast = speed is None or speed.value >= MIN_TOKENS_PER_S
    n_ctx = pick.plan.n_ctx
    return (n_ctx >= MIN_N_CTX, is_fast, n_ctx if task == "long" else 0, pick.plan.lines[0].n_bytes)
