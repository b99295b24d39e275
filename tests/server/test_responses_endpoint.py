"""POST /responses over HTTP: items in and out, the order of events, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from http_servers import Reply, Running, Scripted, running

from edgellm.runtime.answer import Piece
from edgellm.runtime.backends.base import EngineError
from edgellm.runtime.logprobs import Logprob
from edgellm.runtime.text.template import Message
from edgellm.runtime.text.tools import NamedTool, Tool, ToolCall

CALL = ToolCall("weather", '{"city": "Oslo"}', "abcdefghi")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "name": "weather", "description": "Now.", "parameters": SCHEMA, "strict": False}
PIECES = (
    Piece("Hm", "thought"),
    Piece("m.", "thought"),
    Piece("Let me", "text"),
    Piece(" see.", "text"),
    Piece(CALL.arguments, "tool_call", call=CALL),
)


@pytest.fixture
def served() -> Scripted:
    return Scripted()


@pytest.fixture
def server(served: Scripted) -> Iterator[Running]:
    with running(served) as server:
        yield server


def ask(server: Running, given: Any = "hat", **fields: Any) -> Reply:
    return server.ask("POST", "/v1/responses", {"input": given, **fields})


def events_of(reply: Reply) -> list[dict[str, Any]]:
    """Each named by its type, and numbered."""
    *parts, end = reply.body.decode().split("\n\n")[:-1]
    assert end == "data: [DONE]"
    found = []
    for i, part in enumerate(parts):
        name, data = part.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == i
        found.append(event)
    return found


def test_an_answer_is_one_message_and_repeats_what_was_asked(server: Running, served: Scripted) -> None:
    told = ask(server, instructions="Be brief.", temperature=0.5, metadata={"a": "b"}, store=False).json()
    assert (told["object"], told["status"], told["error"]) == ("response", "completed", None)
    (item,) = told["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "Hello you", "annotations": [], "logprobs": []}]
    assert (told["instructions"], told["temperature"], told["metadata"]) == ("Be brief.", 0.5, {"a": "b"})
    assert (told["store"], told["tools"], told["tool_choice"]) == (False, [], "auto")
    usage = told["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == 2
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert served.requests[0].messages == (Message("system", "Be brief."), Message("user", "hat"))


def test_a_streams_events_build_up_what_its_last_one_holds() -> None:
    with running(Scripted(*PIECES)) as server:
        events = events_of(ask(server, stream=True, tools=[WEATHER]))
        whole = ask(server, tools=[WEATHER]).json()
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    final = events[-1]["response"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert final["output"] == done
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [one["output_index"] for one in added] == [0, 1, 2]
    assert [one["item"]["id"] for one in added] == [item["id"] for item in done]
    assert done[2]["call_id"] == CALL.id
    assert _without_ids(whole["output"]) == _without_ids(final["output"])


def _without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name != "id"} for item in items]


def test_items_that_are_sent_back_are_one_answer(server: Running, served: Scripted) -> None:
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": "hat"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I see.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "cold"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "warm"}]},
    ]
    assert ask(server, items, tools=[WEATHER]).status == 200
    calls = (ToolCall("weather", "{}", "c1"), ToolCall("weather", "{}", "c2"))
    assert served.requests[0].messages == (
        Message("system", "Be brief."),
        Message("user", "hat"),
        Message("assistant", "I see.", reasoning="Hm", tool_calls=calls),
        Message("tool", "cold", tool_call_id="c1"),
        Message("tool", "warm", tool_call_id="c2"),
    )


def test_tools_and_schemas_are_read_in_their_flat_form(server: Running, served: Scripted) -> None:
    choice = {"type": "function", "name": "weather"}
    assert ask(server, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False).status == 200
    request = served.requests[0]
    assert request.tools == (Tool("weather", "Now.", SCHEMA),)
    assert request.tool_choice == NamedTool("weather")
    assert not request.parallel_tool_calls
    form = {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}
    assert ask(server, text={"format": form}, max_output_tokens=5).status == 200
    assert served.requests[1].constraint is not None
    assert served.requests[1].max_tokens == 5


def test_a_failure_on_the_way_is_told_and_ends_the_stream() -> None:
    with running(Scripted(Piece("Hel", "text"), EngineError("it broke"))) as server:
        text = ask(server, stream=True).body.decode()
    events = [json.loads(part.split("data: ")[1]) for part in text.split("\n\n")[:-1]]
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["message"] == "it broke"
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "it broke"}


def test_log_probabilities_are_told_of_a_texts_tokens_where_they_are_asked_for() -> None:
    h, e, end = 104, 101, 256
    pieces = [
        Piece("h", "text", (Logprob(h, -0.5, ((h, -0.5), (e, -1.0))),)),
        Piece("e", "text", (Logprob(e, -0.25, ((e, -0.25), (h, -2.0)), begin=1),)),
        Piece("", "text", (Logprob(end + 2, -0.1),)),
    ]
    first = {"token": "h", "logprob": -0.5, "bytes": [h]}
    second = {"token": "e", "logprob": -0.25, "bytes": [e]}
    wanted = [
        {**first, "top_logprobs": [first, {**second, "logprob": -1.0}]},
        {**second, "top_logprobs": [second, {**first, "logprob": -2.0}]},
    ]
    served = Scripted(*pieces)
    with running(served) as server:
        asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
        (item,) = ask(server, **asked).json()["output"]
        events = events_of(ask(server, stream=True, **asked))
        (plain,) = ask(server).json()["output"]
    assert served.requests[0].n_logprobs == 2
    assert item["content"][0]["logprobs"] == wanted
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert deltas == [wanted[:1], wanted[1:]]
    (done,) = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == wanted
    assert events[-1]["response"]["output"][0]["content"] == item["content"]
    assert events[-1]["response"]["top_logprobs"] == 2
    assert plain["content"][0]["logprobs"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"surprise": 1}, "surprise"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "top_logprobs"),
        ({"include": 5}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [WEATHER | {"async": True}]}, "tools[0].async"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": "x", "more": 1}]}, "input[0].more"),
        ({"input": [5]}, "input[0]"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_not_to_be_had_is_refused_by_its_name(server: Running, fields: dict[str, Any], param: str) -> None:
    reply = server.ask("POST", "/v1/responses", {"input": "hat"} | fields)
    assert reply.status == 400
    assert reply.error()["param"] == param
