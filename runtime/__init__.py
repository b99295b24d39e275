"""Token ids in, token ids out; answers to requests on top. Imports `memory` alone of the other rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.memory.adapter import Lora as Lora
    from edgellm.runtime.answer import Answer as Answer
    from edgellm.runtime.answer import Stats as Stats
    from edgellm.runtime.bringup.load import load as load
    from edgellm.runtime.bringup.planning import EngineOptions as EngineOptions
    from edgellm.runtime.conversation import ChatSession as ChatSession
    from edgellm.runtime.engine import Engine as Engine
    from edgellm.runtime.request import Request as Request
    from edgellm.runtime.sampling import Sampling as Sampling

_HOMES = {
    "Answer": "request",
    "ChatSession": "conversation",
    "Request": "request",
    "Stats": "request",
    "Engine": "engine",
    "EngineOptions": "bringup.planning",
    "load": "bringup.load",
    "Lora": "bringup.planning",
    "Sampling": "sampling",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Load the engine's libraries when they are first asked for, not when a planner asks for a sibling module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
