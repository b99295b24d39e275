"""POST /messages over HTTP: blocks in and out, the order of events, and failures in the form of their clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from http_servers import Reply, Running, Scripted, running

from edgellm.runtime.answer import Piece
from edgellm.runtime.backends.base import EngineError
from edgellm.runtime.text.template import Message
from edgellm.runtime.text.tools import NamedTool, Tool, ToolCall

CALL = ToolCall("weather", '{"city": "Oslo"}', "abcdefghi")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "weather", "description": "Now.", "input_schema": SCHEMA}
PIECES = (
    Piece("Hm", "thought"),
    Piece("Let me", "text"),
    Piece(" see.", "text"),
    Piece(CALL.arguments, "tool_call", call=CALL),
)
QUESTION = [{"role": "user", "content": "hat"}]


@pytest.fixture
def served() -> Scripted:
    return Scripted()


@pytest.fixture
def server(served: Scripted) -> Iterator[Running]:
    with running(served) as server:
        yield server


def ask(server: Running, path: str = "/v1/messages", **fields: Any) -> Reply:
    return server.ask("POST", path, {"model": "scripted", "max_tokens": 9, "messages": QUESTION} | fields)


def events_of(reply: Reply) -> list[dict[str, Any]]:
    """Each named by its type."""
    found = []
    for part in reply.body.decode().split("\n\n")[:-1]:
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_an_answer_is_a_message_of_blocks(server: Running, served: Scripted) -> None:
    told = ask(server, system="Be brief.", stop_sequences=["x"], temperature=0.5, metadata={"user_id": "me"}).json()
    assert (told["type"], told["role"], told["model"]) == ("message", "assistant", "scripted")
    assert told["content"] == [{"type": "text", "text": "Hello you"}]
    assert (told["stop_reason"], told["stop_sequence"]) == ("end_turn", None)
    assert told["usage"]["cache_read_input_tokens"] == 2
    request = served.requests[0]
    assert request.messages == (Message("system", "Be brief."), Message("user", "hat"))
    assert (request.stop, request.max_tokens, request.sampling.temperature) == (("x",), 9, 0.5)


def test_a_streams_events_build_up_the_whole_answer() -> None:
    with running(Scripted(*PIECES)) as server:
        events = events_of(ask(server, stream=True, tools=[WEATHER]))
        whole = ask(server, tools=[WEATHER]).json()
    assert [event["type"] for event in events] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            delta = dict(event["delta"])
            assert event["index"] == len(blocks) - 1
            if delta.pop("type") == "input_json_delta":
                blocks[-1]["input"] = json.loads(delta["partial_json"])
            else:
                ((name, text),) = delta.items()
                blocks[-1][name] += text
    assert blocks == whole["content"]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use"]
    assert blocks[2]["input"] == {"city": "Oslo"}
    assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
    assert events[-2]["usage"] == whole["usage"]


def test_blocks_that_are_sent_back_are_the_conversation(server: Running, served: Scripted) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "hat", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": ""},
                {"type": "text", "text": "I see."},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "cold"}]},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    assert ask(server, messages=messages, system=system, tools=[WEATHER]).status == 200
    assert served.requests[0].messages == (
        Message("system", "Be brief."),
        Message("user", "hat"),
        Message("assistant", "I see.", reasoning="Hm", tool_calls=(ToolCall("weather", '{"city": "Oslo"}', "c1"),)),
        Message("tool", "cold", tool_call_id="c1"),
        Message("user", "And now?"),
    )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "weather"}, NamedTool("weather")),
    ],
    ids=str,
)
def test_tools_and_their_choice_are_read(server: Running, served: Scripted, choice: Any, expected: Any) -> None:
    choice["disable_parallel_tool_use"] = True
    assert ask(server, tools=[WEATHER], tool_choice=choice).status == 200
    request = served.requests[0]
    assert (request.tools, request.tool_choice) == ((Tool("weather", "Now.", SCHEMA),), expected)
    assert not request.parallel_tool_calls


def test_tokens_are_counted_as_the_answer_counts_them(server: Running, served: Scripted) -> None:
    n = ask(server, "/v1/messages/count_tokens").json()["input_tokens"]
    usage = ask(server).json()["usage"]
    assert n == usage["input_tokens"] + usage["cache_read_input_tokens"]
    served.n_ctx = 4
    assert ask(server, "/v1/messages/count_tokens").json()["input_tokens"] == n
    assert ask(server).status == 400


def test_a_failure_on_the_way_ends_the_stream() -> None:
    with running(Scripted(Piece("Hel", "text"), EngineError("it broke"))) as server:
        events = events_of(ask(server, stream=True))
    assert events[-1] == {"type": "error", "error": {"type": "api_error", "message": "it broke"}}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"surprise": 1}, "surprise"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "I"}]}, "last message"),
        ({"system": 5}, "system"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [WEATHER], "tool_choice": {"type": "some"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.type"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_not_to_be_had_is_refused_in_their_form(server: Running, fields: dict[str, Any], sentence: str) -> None:
    reply = ask(server, **fields)
    assert reply.status == 400
    told = reply.json()
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert sentence in told["error"]["message"]


def test_a_key_is_taken_as_their_clients_send_it(served: Scripted) -> None:
    with running(served, api_keys=("secret",)) as server:
        body = {"max_tokens": 9, "messages": QUESTION}
        refused = server.ask("POST", "/v1/messages", body, headers={"x-api-key": "wrong"})
        assert (refused.status, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert server.ask("POST", "/v1/messages", body, headers={"x-api-key": "secret"}).status == 200
        missing = server.ask("POST", "/v1/messages", body | {"model": "other"}, headers={"x-api-key": "secret"})
        assert (missing.status, missing.json()["error"]["type"]) == (404, "not_found_error")
