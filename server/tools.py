"""Tools between OpenAI's wire form and the records of `runtime`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.runtime.answer import Answer, Piece
from edgellm.runtime.request import BadRequest, read_tools
from edgellm.runtime.text.tools import NamedTool, Tool, ToolCall, ToolChoice

_OLD = {"functions": "tools", "function_call": "tool_choice"}
_CHOICES = "take auto, none, required or one function"


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """What a request says of tools; `Request` takes it by these names."""

    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True


def read_tool_settings(body: Mapping[str, Any]) -> ToolSettings:
    """`tools`, `tool_choice` and `parallel_tool_calls` of a request; null is as good as left out.

    Raises:
        BadRequest: one is of another form, or asks for what cannot be promised; the message says where.
    """
    for old, new in _OLD.items():
        if body.get(old) is not None:
            raise BadRequest(f"{old} is not read: send {new}")
    given = body.get("tools")
    given = () if given is None else given
    for i, tool in enumerate(given if isinstance(given, Sequence) else ()):
        _check_kind(f"tools[{i}]", tool)
    tools = read_tools(given)
    parallel = body.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise BadRequest("parallel_tool_calls is neither true nor false")
    return ToolSettings(tools, _choice(body.get("tool_choice"), tools), parallel is not False)


def message_of(answer: Answer) -> dict[str, Any]:
    """The assistant's message of an answer: text, null where there are calls alone, and the calls."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.tool_calls:
        message["content"] = answer.text or None
        message["tool_calls"] = [_call(call) for call in answer.tool_calls]
    return message


def call_deltas(piece: Piece) -> Iterator[dict[str, Any]]:
    """The deltas of a stream for a piece that is a call: its name once, then its arguments."""
    assert piece.call is not None
    call = _call(piece.call)
    call["function"]["arguments"] = ""
    yield {"tool_calls": [{"index": piece.index, **call}]}
    yield {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}


def _check_kind(where: str, tool: Any) -> None:
    if not isinstance(tool, Mapping):
        return
    if tool.get("type") != "function":
        raise BadRequest(f"{where}.type is {tool.get('type')!r}: only tools of type function are called here")


def _choice(given: Any, tools: Sequence[Tool]) -> ToolChoice:
    if given is None:
        return "auto"
    if given in ("auto", "none", "required"):
        if given == "required" and not tools:
            raise BadRequest("tool_choice is required and there are no tools: send tools")
        choice: ToolChoice = given
        return choice
    function = given.get("function") if isinstance(given, Mapping) and given.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise BadRequest(f"tool_choice is of no known form: {_CHOICES}")
    if all(tool.name != name for tool in tools):
        raise BadRequest(f"tool_choice.function.name {name!r} is none of the tools")
    return NamedTool(name)


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
