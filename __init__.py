"""edgellm: a small model drafts, a larger one decides, and its answers are its own.

    import edgellm

    with edgellm.load("qwen2.5-coder-1.5b-instruct") as engine:
        answer = engine.generate([{"role": "user", "content": "Why is the sky blue?"}], max_tokens=200)
        for text in answer:
            print(text, end="", flush=True)
        print(answer.answer.stats.tokens_per_s)

`ChatSession` is a conversation on an engine. Nothing heavy is imported before a name is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.app.idle_adapting import adapt_while_idle as adapt_while_idle
    from edgellm.app.loading import load as load
    from edgellm.app.next_training import IdleBounds as IdleBounds
    from edgellm.app.plans import plan as plan
    from edgellm.memory.adapter import Lora as Lora
    from edgellm.memory.plan import MemoryPlan as MemoryPlan
    from edgellm.runtime.answer import Answer as Answer
    from edgellm.runtime.answer import Piece as Piece
    from edgellm.runtime.answer import Stats as Stats
    from edgellm.runtime.bringup.planning import EngineOptions as EngineOptions
    from edgellm.runtime.conversation import ChatSession as ChatSession
    from edgellm.runtime.engine import Engine as Engine
    from edgellm.runtime.generation import Generation as Generation
    from edgellm.runtime.request import BadRequest as BadRequest
    from edgellm.runtime.request import Request as Request
    from edgellm.runtime.sampling import Sampling as Sampling
    from edgellm.runtime.text.template import Message as Message
    from edgellm.runtime.text.tools import Tool as Tool
    from edgellm.runtime.text.tools import ToolCall as ToolCall
    from edgellm.server.embedded import Server as Server

    __version__: str

_HOMES = {
    "Answer": "runtime.answer",
    "BadRequest": "runtime.request",
    "ChatSession": "runtime.conversation",
    "Engine": "runtime.engine",
    "EngineOptions": "runtime.bringup.planning",
    "Generation": "runtime.generation",
    "IdleBounds": "app.next_training",
    "Lora": "memory.adapter",
    "MemoryPlan": "memory.plan",
    "Message": "runtime.text.template",
    "Piece": "runtime.answer",
    "Request": "runtime.request",
    "Sampling": "runtime.sampling",
    "Server": "server.embedded",
    "Stats": "runtime.answer",
    "Tool": "runtime.text.tools",
    "ToolCall": "runtime.text.tools",
    "adapt_while_idle": "app.idle_adapting",
    "load": "app.loading",
    "plan": "app.plans",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Load a name's home when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("edgellm")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
