"""The body of POST /chat/completions."""

from __future__ import annotations

import re
from typing import Any

from edgellm.app.constraints import constraint_of_response_format
from edgellm.app.serving import Served
from edgellm.runtime.constraint import Constraint
from edgellm.runtime.logprobs import MAX_TOP
from edgellm.runtime.request import BadRequest, Request
from edgellm.runtime.sampling import Sampling
from edgellm.server.calls import Call
from edgellm.server.common_fields import (
    HARMLESS,
    MAX_CHOICES,
    MAX_TOKENS,
    check_think,
    read_effort,
    read_include_usage,
    read_sampling,
    read_stops,
    with_seeds,
)
from edgellm.server.errors import ApiError, invalid
from edgellm.server.fields import Fields
from edgellm.server.messages import read_conversation
from edgellm.server.tools import read_tool_settings

_OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")


def read_chat(fields: Fields, served: Served, model: str, default: Sampling) -> Call:
    """
    Raises:
        ApiError: a field is of another form, or asks for what is not to be had.
    """
    messages = read_conversation(fields)
    is_stream = bool(fields.flag("stream"))
    include_usage = read_include_usage(fields, is_stream=is_stream)
    sampling, n = read_sampling(fields, default), fields.whole("n", 1, MAX_CHOICES) or 1
    settings: dict[str, Any] = {
        "stop": read_stops(fields),
        "max_tokens": _read_length(fields),
        "think": _read_think(fields, served),
        "think_budget": fields.whole("think_budget", 0, MAX_TOKENS),
        "n_draft": fields.whole("n_draft", 0, MAX_TOKENS),
        "n_logprobs": _read_logprobs(fields),
    }
    settings |= _read_tools(fields)
    settings["constraint"] = _read_format(fields, served)
    _read_modalities(fields)
    fields.end(HARMLESS)
    try:
        requests = tuple(Request(messages, sampling=one, **settings) for one in with_seeds(sampling, n))
    except BadRequest as error:
        raise named(error) from error
    return Call(served, model, requests, is_stream=is_stream, include_usage=include_usage)


def _read_length(fields: Fields) -> int | None:
    old, new = (fields.whole(name, 1, MAX_TOKENS) for name in ("max_tokens", "max_completion_tokens"))
    return new if new is not None else old


def _read_logprobs(fields: Fields) -> int | None:
    wanted, n_top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, MAX_TOP)
    if n_top and not wanted:
        raise fields.refuse("top_logprobs", "goes with logprobs: true")
    return n_top or 0 if wanted else None


def _read_think(fields: Fields, served: Served) -> bool | None:
    effort = read_effort(fields, "reasoning_effort")
    think = None if effort is None else effort != "none"
    if (options := fields.object("chat_template_kwargs")) is not None:
        switch = options.flag("enable_thinking")
        options.end()
        think = think if switch is None else switch
    check_think(fields, served, think, "reasoning_effort" if effort is not None else "chat_template_kwargs")
    return think


def _read_tools(fields: Fields) -> dict[str, Any]:
    """What `Request` takes of tools. Raises ApiError."""
    try:
        settings = read_tool_settings({name: fields.take(name) for name in _OF_TOOLS})
    except BadRequest as error:
        raise named(error) from error
    return {name: getattr(settings, name) for name in ("tools", "tool_choice", "parallel_tool_calls")}


def _read_format(fields: Fields, served: Served) -> Constraint | None:
    try:
        return constraint_of_response_format(fields.take("response_format"), served.vocabulary)
    except BadRequest as error:
        raise invalid(str(error), "response_format") from error


def named(error: BadRequest, otherwise: str | None = None) -> ApiError:
    """A refusal that begins with the field's name, where it is about tools."""
    name = re.split(r"[^a-z_]", str(error), maxsplit=1)[0]
    return invalid(str(error), name if name in _OF_TOOLS else otherwise)


def _read_modalities(fields: Fields) -> None:
    if fields.take("modalities") not in (None, ["text"]):
        raise fields.refuse("modalities", 'must be ["text"]: only text is written')
