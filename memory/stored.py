"""A stored plan, read back: every number within what can be run, every word one of those that are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

from edgellm.memory.context import KV_BLOCKS, ContextSettings, KvType
from edgellm.memory.gguf import shown
from edgellm.memory.hparams import MAX_LAYERS
from edgellm.memory.limits import N_CTX_MAX, N_DRAFT_MAX, N_PARALLEL_MAX, N_UBATCH_MAX
from edgellm.memory.placement import DeviceLimit
from edgellm.memory.plan import VERSION, Limit, Line, Loading, MemoryPlan, PairSettings, PlanError, Speed, Trim

MOST_THREADS = 1024
_CONTEXT_KEYS = ("n_ctx", "n_ubatch", "n_outputs", "kv", "n_rs_seq", "n_threads")
# That older plans lack.
_LATER_KEYS: dict[str, Any] = {
    "n_sequences": 1, "n_saved_states": 0, "placed": (), "head_stays": False, "largest_bytes": 0,
}  # fmt: skip


def plan_from_json(data: Mapping[str, Any]) -> MemoryPlan:
    """A plan as `MemoryPlan.to_json` wrote it.

    Raises:
        PlanError: another version, or not a plan.
    """
    if data.get("version") != VERSION:
        raise PlanError(f"this is no plan of version {VERSION}: write it again with `edgellm plan --save FILE`")
    try:
        return _plan(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise PlanError(f"the plan is damaged ({what}): write it again with `edgellm plan --save FILE`") from error


def _plan(data: Mapping[str, Any]) -> MemoryPlan:
    """Raises KeyError, TypeError, ValueError, AttributeError: an entry that is missing or no such thing."""
    drafter = data["drafter_settings"]
    if (drafter is None) != (data["drafter"] is None):
        raise ValueError("a drafter and its settings go together")
    n_draft = _count(data["n_draft"], most=N_DRAFT_MAX)
    later = {key: data.get(key, default) for key, default in _LATER_KEYS.items()}
    target = _context({key: data[key] for key in _CONTEXT_KEYS} | later)
    if target.n_outputs <= n_draft and n_draft:
        raise ValueError(f"drafts of {n_draft} tokens need more than {target.n_outputs} rows of logits")
    settings = PairSettings(
        target=target,
        n_draft=n_draft,
        drafter=_context(drafter) if drafter is not None else None,
        copy=_flag(data["copy"]),
        loading=cast(Loading, _one_of(data["loading"], ("mapped", "copied", "packed"))),
        repack=_flag(data["repack"]),
    )
    speed = data.get("tokens_per_s")
    return MemoryPlan(
        target=_text(data["target"]),
        drafter=None if data["drafter"] is None else _text(data["drafter"]),
        quantisation=_text(data["quantisation"]),
        lines=tuple(_line(x) for x in data["lines"]),
        limit=Limit(_text(data["limit_name"]), _count(data["limit_bytes"]), _count(data["reserve_bytes"])),
        settings=settings,
        exact=_flag(data["exact"]),
        tokens_per_s=None if speed is None else _speed(speed),
        steps=tuple(_step(x) for x in data["steps"]),
        bound_bytes=None if data["bound_bytes"] is None else _count(data["bound_bytes"]),
        needed_bytes=None if data.get("needed_bytes") is None else _count(data["needed_bytes"]),
        lost=tuple(_text(sentence) for sentence in data.get("lost", ())),
        target_reference=_optional(data.get("target_reference")),
        drafter_reference=_optional(data.get("drafter_reference")),
        target_obtain=_optional(data.get("target_obtain")),
        drafter_obtain=_optional(data.get("drafter_obtain")),
        draft_adapter=_optional(data.get("draft_adapter")),
        loras=tuple(_text(reference) for reference in data.get("loras", ())),
        devices=tuple(_device(x) for x in data.get("devices", ())),
    )


def _line(data: Mapping[str, Any]) -> Line:
    return Line(_text(data["name"]), _count(data["n_bytes"]), _text(data["formula"]), _text(data.get("device", "")))


def _device(data: Mapping[str, Any]) -> DeviceLimit:
    return DeviceLimit(
        _text(data["name"]),
        _text(data["description"]),
        _count(data["usable_bytes"]),
        _flag(data["unified"]),
        largest_bytes=_count(data.get("largest_bytes", 0)),
    )


def _step(data: Mapping[str, Any]) -> Trim:
    saved, tells = data["saved_bytes"], _flag(data.get("tells", False))
    if isinstance(saved, bool) or not isinstance(saved, int):
        raise ValueError(f"{shown(saved)} is no count")
    return Trim(_text(data["name"]), saved, _text(data["cost"]), tells)


def _speed(data: Mapping[str, Any]) -> Speed:
    kind = cast(Literal["measured", "estimated"], _one_of(data["kind"], ("measured", "estimated")))
    value, plain = float(data["value"]), float(data["plain"])
    if not (math.isfinite(value) and math.isfinite(plain)):
        raise ValueError("a speed is no number")
    return Speed(value, kind, plain)


def _context(data: Mapping[str, Any]) -> ContextSettings:
    settings = ContextSettings(
        n_ctx=_count(data["n_ctx"], least=1, most=N_CTX_MAX),
        n_ubatch=_count(data["n_ubatch"], least=1, most=N_UBATCH_MAX),
        n_outputs=_count(data["n_outputs"], least=1, most=N_UBATCH_MAX),
        kv=cast(KvType, _one_of(data["kv"], tuple(KV_BLOCKS))),
        n_rs_seq=_count(data["n_rs_seq"], most=N_UBATCH_MAX),
        n_saved_states=_count(data.get("n_saved_states", 0), most=N_UBATCH_MAX),
        n_threads=_count(data["n_threads"], least=1, most=MOST_THREADS),
        n_sequences=_count(data.get("n_sequences", 1), least=1, most=N_PARALLEL_MAX),
        head_stays=_flag(data.get("head_stays", False)),
        placed=tuple((_text(name), _count(n, most=MAX_LAYERS + 1)) for name, n in data.get("placed", ())),
        largest_bytes=_count(data.get("largest_bytes", 0)),
    )
    if settings.n_outputs > settings.n_ubatch:
        raise ValueError(f"{settings.n_outputs} rows of logits do not come out of a batch of {settings.n_ubatch}")
    return settings


def _count(value: Any, *, least: int = 0, most: int = 2**62) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{shown(value)} is no count")
    if not least <= value <= most:
        raise ValueError(f"{shown(value)} is not between {least:,} and {most:,}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{shown(value)} is no text")
    return value


def _optional(value: Any) -> str | None:
    return None if value is None else _text(value)


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{shown(value)} is none of {', '.join(known)}")
    return str(value)
