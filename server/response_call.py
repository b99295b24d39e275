"""The body of POST /responses; nothing is kept between two of them."""

from __future__ import annotations

from typing import Any

from edgellm.app.constraints import constraint_of_response_format
from edgellm.app.serving import Served
from edgellm.runtime.constraint import Constraint
from edgellm.runtime.logprobs import MAX_TOP
from edgellm.runtime.request import BadRequest, Request
from edgellm.runtime.sampling import Sampling
from edgellm.server.calls import Call
from edgellm.server.chat_call import named
from edgellm.server.common_fields import (
    HARMLESS,
    MAX_TOKENS,
    check_think,
    read_effort,
    read_include_usage,
    read_sampling,
)
from edgellm.server.errors import invalid
from edgellm.server.fields import Fields
from edgellm.server.response_input import read_input
from edgellm.server.tools import read_tool_settings

_KEPT = ("previous_response_id", "conversation", "store", "background")
_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = ("reasoning.encrypted_content", _LOGPROBS)  # of the first there is none; a thought is told as it is
_ECHOED = ("instructions", "metadata", "user", "safety_identifier", "prompt_cache_key", "service_tier")
_FUNCTION = ("name", "description", "parameters", "strict")


def read_response(fields: Fields, served: Served, model: str, default: Sampling) -> Call:
    """
    Raises:
        ApiError: a field is of another form, or asks for what is not to be had.
    """
    echoed = {name: fields.peek(name) for name in (*_ECHOED, "tools", "tool_choice", "text", "reasoning")}
    echoed["top_logprobs"] = fields.peek("top_logprobs") or 0
    for name in _KEPT:
        if fields.take(name) not in (None, False):
            raise fields.refuse(name, "is not to be had: nothing is kept here; send the whole conversation as input")
    messages = read_input(fields)
    is_stream = bool(fields.flag("stream"))
    read_include_usage(fields, is_stream=is_stream)
    sampling = read_sampling(fields, default)
    n_most = fields.whole("max_output_tokens", 1, MAX_TOKENS)
    settings: dict[str, Any] = {
        "max_tokens": n_most,
        "think": _read_think(fields, served),
        "think_budget": fields.whole("think_budget", 0, MAX_TOKENS),
        "n_draft": fields.whole("n_draft", 0, MAX_TOKENS),
        "n_logprobs": _read_logprobs(fields),
    }
    settings |= _read_tools(fields)
    settings["constraint"] = _read_text(fields, served)
    _read_rest(fields)
    fields.end(HARMLESS)
    try:
        request = Request(messages, sampling=sampling, **settings)
    except BadRequest as error:
        raise named(error, "input" if not messages else None) from error
    echoed |= {
        "parallel_tool_calls": request.parallel_tool_calls,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_output_tokens": n_most,
    }
    return Call(served, model, (request,), is_stream=is_stream, settings=echoed)


def _read_think(fields: Fields, served: Served) -> bool | None:
    reasoning = fields.object("reasoning")
    if reasoning is None:
        return None
    effort = read_effort(reasoning, "effort")
    for name in ("summary", "generate_summary"):  # a thought is told whole
        reasoning.take(name)
    reasoning.end()
    think = None if effort is None else effort != "none"
    check_think(reasoning, served, think, "effort")
    return think


def _read_tools(fields: Fields) -> dict[str, Any]:
    """What `Request` takes of tools, whose objects are flat here. Raises ApiError."""
    tools, choice = fields.take("tools"), fields.take("tool_choice")
    if isinstance(tools, list):
        tools = [_nested(fields, i, tool) for i, tool in enumerate(tools)]
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    try:
        found = read_tool_settings(
            {"tools": tools, "tool_choice": choice, "parallel_tool_calls": fields.take("parallel_tool_calls")}
        )
    except BadRequest as error:
        raise named(error) from error
    return {name: getattr(found, name) for name in ("tools", "tool_choice", "parallel_tool_calls")}


def _nested(fields: Fields, i: int, tool: Any) -> Any:
    """As chat has it."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    if unknown := [name for name, value in tool.items() if name not in ("type", *_FUNCTION) and value is not None]:
        raise fields.refuse(f"tools[{i}].{unknown[0][:64]}", "is not known here: leave it out")
    return {"type": "function", "function": {name: tool[name] for name in _FUNCTION if name in tool}}


def _read_text(fields: Fields, served: Served) -> Constraint | None:
    text = fields.object("text")
    if text is None:
        return None
    given = text.take("format")
    if text.text("verbosity") not in (None, "medium"):
        raise text.refuse("verbosity", "is not to be had: say in the instructions how long an answer is to be")
    text.end()
    if isinstance(given, dict) and given.get("type") == "json_schema":
        given = {"type": "json_schema", "json_schema": {name: given[name] for name in given if name != "type"}}
    try:
        return constraint_of_response_format(given, served.vocabulary)
    except BadRequest as error:
        said = (
            str(error).replace("response_format.json_schema", "text.format").replace("response_format", "text.format")
        )
        raise invalid(said, "text.format") from error


def _read_logprobs(fields: Fields) -> int | None:
    included, n_top = fields.take("include") or [], fields.whole("top_logprobs", 0, MAX_TOP)
    if not isinstance(included, list) or any(one not in _INCLUDED for one in included):
        raise fields.refuse("include", f"may name nothing but {', '.join(_INCLUDED)}")
    if n_top and _LOGPROBS not in included:
        raise fields.refuse("top_logprobs", f"goes with include: {_LOGPROBS}")
    return n_top or 0 if _LOGPROBS in included else None


def _read_rest(fields: Fields) -> None:
    if fields.text("truncation") not in (None, "disabled"):
        raise fields.refuse("truncation", "must be disabled: a conversation is never shortened here")
