"""Items of a response's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgellm.runtime.text.tools import ToolCall


def message_item(id: str, text: str, status: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    content = [part_of("message", text, logprobs)]
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def thought_item(id: str, text: str, status: str) -> dict[str, Any]:
    content = [part_of("reasoning", text)]
    return {"id": id, "type": "reasoning", "status": status, "summary": [], "content": content}


def call_item(id: str, call: ToolCall) -> dict[str, Any]:
    made = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"id": id, "type": "function_call", "status": "completed", **made}


def part_of(kind: str, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The one part of an item."""
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
