"""The body of POST /messages and /messages/count_tokens, in Anthropic's form."""

from __future__ import annotations

import threading
from typing import Any

from edgellm.app.constraints import constraint_of_response_format
from edgellm.app.serving import Served
from edgellm.runtime.backends.base import PromptTooLong
from edgellm.runtime.constraint import Constraint
from edgellm.runtime.request import BadRequest, Request
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.server.anthropic_messages import read_blocks
from edgellm.server.calls import Call
from edgellm.server.chat_call import named
from edgellm.server.common_fields import MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TOKENS, check_think, read_sampling
from edgellm.server.errors import invalid
from edgellm.server.fields import Fields
from edgellm.server.tools import read_tool_settings

_HARMLESS = ("metadata", "service_tier", "cache_control", "inference_geo")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def read_anthropic(fields: Fields, served: Served, model: str, default: Sampling) -> Call:
    """
    Raises:
        ApiError: a field is of another form, or asks for what is not to be had.
    """
    messages = read_blocks(fields)
    is_stream = bool(fields.flag("stream"))
    stops = fields.texts("stop_sequences", n_most=MAX_STOPS, n_characters=MAX_STOP_CHARACTERS)
    settings: dict[str, Any] = {
        "sampling": read_sampling(fields, default),
        "stop": tuple(filter(None, stops)),
        "max_tokens": fields.whole("max_tokens", 1, MAX_TOKENS),
        "n_draft": fields.whole("n_draft", 0, MAX_TOKENS),
        "constraint": _read_format(fields, served),
    }
    settings |= _read_thinking(fields, served)
    settings |= _read_tools(fields)
    fields.end(_HARMLESS)
    try:
        request = Request(messages, **settings)
    except BadRequest as error:
        raise named(error) from error
    return Call(served, model, (request,), is_stream=is_stream)


def counted(fields: Fields, served: Served) -> dict[str, Any]:
    """The answer of POST /messages/count_tokens."""
    call = read_anthropic(fields, served, served.name, GREEDY)
    try:
        return {"input_tokens": served.generate(call.requests[0], cancel=threading.Event()).prepare()}
    except PromptTooLong as error:
        if error.at_least:
            raise
        return {"input_tokens": error.n_prompt}


def _read_thinking(fields: Fields, served: Served) -> dict[str, Any]:
    thinking = fields.object("thinking")
    if thinking is None:
        return {}
    kind = thinking.text("type")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise thinking.refuse("type", "must be enabled, disabled or adaptive")
    thinking.text("display")  # a thought is told whole
    n_most = thinking.whole("budget_tokens", 1, MAX_TOKENS)
    thinking.end()
    think = {"enabled": True, "disabled": False}.get(kind)
    check_think(thinking, served, think, "type")
    return {"think": think, "think_budget": n_most}


def _read_tools(fields: Fields) -> dict[str, Any]:
    """What `Request` takes of tools. Raises ApiError."""
    given, choice = fields.take("tools"), fields.object("tool_choice")
    tools = [_nested(fields, i, tool) for i, tool in enumerate(given)] if isinstance(given, list) else given
    body: dict[str, Any] = {"tools": tools}
    if choice is not None:
        body["parallel_tool_calls"] = not choice.flag("disable_parallel_tool_use")
        kind, name = choice.text("type"), choice.text("name")
        choice.end()
        body["tool_choice"] = {"type": "function", "function": {"name": name}}
        if kind != "tool":
            body["tool_choice"] = _CHOICES.get(kind or "", kind or "")
    try:
        found = read_tool_settings(body)
    except BadRequest as error:
        raise named(error) from error
    return {name: getattr(found, name) for name in ("tools", "tool_choice", "parallel_tool_calls")}


def _nested(fields: Fields, i: int, given: Any) -> dict[str, Any]:
    """A tool as chat has it."""
    if not isinstance(given, dict):
        raise fields.refuse(f"tools[{i}]", "is no object")
    tool = Fields(given, f"tools[{i}].")
    if tool.text("type") not in (None, "custom"):
        raise tool.refuse("type", "must be custom: only the client's own tools are called here")
    tool.take("cache_control")
    function = {"name": tool.take("name"), "description": tool.take("description")}
    function |= {"parameters": tool.take("input_schema"), "strict": tool.flag("strict")}
    tool.end()
    return {"type": "function", "function": function}


def _read_format(fields: Fields, served: Served) -> Constraint | None:
    """A JSON schema that the text is held to. Raises ApiError."""
    output = fields.object("output_config")
    if output is None:
        return None
    form = output.object("format")
    output.end()
    if form is None:
        return None
    if form.text("type") != "json_schema":
        raise form.refuse("type", "must be json_schema")
    schema = form.take("schema")
    form.end()
    try:
        return constraint_of_response_format(
            {"type": "json_schema", "json_schema": {"schema": schema}}, served.vocabulary
        )
    except BadRequest as error:
        said = str(error).replace("response_format.json_schema", "output_config.format", 1)
        raise invalid(said, "output_config.format") from error
