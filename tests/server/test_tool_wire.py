"""Tools as OpenAI's clients send them are read strictly, and calls are written as those clients read them."""

from __future__ import annotations

from typing import Any

import pytest

from edgellm.runtime.answer import Answer, Piece, Stats
from edgellm.runtime.request import BadRequest, Request
from edgellm.runtime.text.template import Message
from edgellm.runtime.text.tools import NamedTool, Tool, ToolCall
from edgellm.server.tools import ToolSettings, call_deltas, message_of, read_tool_settings

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": SCHEMA}}
CALL = ToolCall("weather", '{"city": "Oslo"}', "abcdefghi")


def function(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "weather", **fields}}]}


def test_settings_are_read_and_null_is_none() -> None:
    assert read_tool_settings({}) == ToolSettings()
    nulls = {"tools": None, "tool_choice": None, "parallel_tool_calls": None, "functions": None}
    assert read_tool_settings(nulls) == ToolSettings()
    named = {"type": "function", "function": {"name": "weather"}}
    given = {"tools": [WEATHER], "tool_choice": named, "parallel_tool_calls": False}
    assert read_tool_settings(given) == ToolSettings(
        (Tool("weather", "Now.", SCHEMA),), NamedTool("weather"), parallel_tool_calls=False
    )
    bare = function(description=None, parameters=None, strict=False)
    assert read_tool_settings(bare).tools == (Tool("weather"),)
    assert read_tool_settings(function(strict=True)).tools == (Tool("weather", strict=True),)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"tools": 7}, "tools is no list"),
        ({"tools": "weather"}, "tools is no list"),
        ({"tools": {}}, "tools is no list"),
        ({"tools": [7]}, r"tools\[0\] is no"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\].type is 'web_search'"),
        ({"tools": [WEATHER, {"type": "function"}]}, r"tools\[1\] is no"),
        ({"functions": []}, "functions is not read: send tools"),
        ({"function_call": "auto"}, "function_call is not read: send tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls is neither"),
        ({"tool_choice": "any"}, "tool_choice is of no known form"),
        ({"tool_choice": ["auto"]}, "tool_choice is of no known form"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice is of no known form"),
        ({"tool_choice": {"type": "function", "function": {"name": 3}}}, "tool_choice is of no known form"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "'x' is none of the tools"),
        ({"tool_choice": "required"}, "there are no tools"),
    ],
)
def test_what_is_of_another_form_is_refused_by_its_place(body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        read_tool_settings(body)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\].function.name None is no name"),
        (function(name="a b"), r"tools\[0\].function.name 'a b' is no name"),
        (function(name="a" * 65), "is no name"),
        ({"tools": [WEATHER, WEATHER]}, r"tools\[1\].function.name 'weather' is taken twice"),
        (function(description=[]), r"tools\[0\].function.description is no text"),
        (function(strict="yes"), r"tools\[0\].function.strict is neither"),
        (function(parameters=[]), r"tools\[0\].function.parameters is no JSON schema"),
        (function(parameters={"type": "string"}), r"tools\[0\].function.parameters is no JSON schema"),
        (function(parameters={"default": float("nan")}), r"tools\[0\].function.parameters is no JSON schema"),
    ],
)
def test_a_request_refuses_what_it_cannot_hold_to(body: dict[str, Any], sentence: str) -> None:
    settings = read_tool_settings(body)
    with pytest.raises(BadRequest, match=sentence):
        Request(
            (Message("user", "hat"),),
            tools=settings.tools,
            tool_choice=settings.tool_choice,
            parallel_tool_calls=settings.parallel_tool_calls,
        )


def test_calls_are_written_into_the_message() -> None:
    answer = Answer("", (), "tool_calls", Stats(), tool_calls=(CALL,))
    wire = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    assert message_of(answer) == {"role": "assistant", "content": None, "tool_calls": [wire]}
    assert message_of(Answer("", (), "stop", Stats())) == {"role": "assistant", "content": ""}


def test_a_stream_names_a_function_once() -> None:
    first, later = call_deltas(Piece(CALL.arguments, "tool_call", call=CALL, index=1))
    named = {"name": "weather", "arguments": ""}
    assert first == {"tool_calls": [{"index": 1, "id": "abcdefghi", "type": "function", "function": named}]}
    assert later == {"tool_calls": [{"index": 1, "function": {"arguments": '{"city": "Oslo"}'}}]}


def test_what_is_written_is_read_again() -> None:
    message = message_of(Answer("", (), "tool_calls", Stats(), tool_calls=(CALL,)))
    said = [{"role": "user", "content": "hat"}, message, {"role": "tool", "tool_call_id": "abcdefghi", "content": "2"}]
    request = Request.of(said, tools=[WEATHER])
    assert request.messages[1:] == (
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "2", tool_call_id="abcdefghi"),
    )
