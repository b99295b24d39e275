"""POST /chat/completions: answers in the form that clients read, and nothing of a request is ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from http_servers import QUESTION, Running, Scripted, running

from edgellm.runtime.answer import Piece
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.text.template import Message

SERVED = Scripted(Piece("Hm.", "thought"), Piece("Hel", "text"), Piece("lo é", "text"))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(SERVED, sampling=Sampling(top_k=7), aliases=["org/model:Q4"]) as server:
        yield server


def test_an_answer_is_one_object_with_what_it_cost(server: Running) -> None:
    reply = server.chat(model="scripted")
    told = reply.json()
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert set(told) == {"id", "object", "created", "model", "choices", "usage", "timings"}
    assert (told["object"], told["model"]) == ("chat.completion", "scripted")
    (choice,) = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello é", "refusal": None, "reasoning_content": "Hm."}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    usage = told["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}
    assert told["timings"]["draft_n"] == 4


def test_a_stream_begins_with_the_role_and_ends_with_a_reason_and_done(server: Running) -> None:
    reply = server.chat(stream=True)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = reply.events()
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        {"content": "Hel"},
        {"content": "lo é"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert not any("usage" in chunk for chunk in chunks)


def test_a_stream_tells_what_it_cost_where_it_is_asked_to(server: Running) -> None:
    *chunks, last, _ = server.chat(stream=True, stream_options={"include_usage": True}).events()
    assert last["choices"] == []
    assert last["usage"] == server.chat().json()["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)


def test_choices_are_told_apart(server: Running) -> None:
    told = server.chat(n=3).json()
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    assert told["usage"]["completion_tokens"] == 3 * server.chat().json()["usage"]["completion_tokens"]
    assert told["usage"]["prompt_tokens"] == server.chat().json()["usage"]["prompt_tokens"]
    texts = {0: "", 1: ""}
    for chunk in server.chat(n=2, stream=True).events()[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "Hello é", 1: "Hello é"}


@pytest.mark.parametrize("name", ["scripted", "org/model:Q4", "", None])
def test_a_model_answers_to_its_names_and_where_none_is_given(server: Running, name: str | None) -> None:
    assert server.chat(model=name).json()["model"] == (name or "scripted")


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_models_are_listed_and_described_with_and_without_v1(server: Running, prefix: str) -> None:
    listed = server.ask("GET", f"{prefix}/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["scripted", "org/model:Q4"]
    described = server.ask("GET", f"{prefix}/models/org/model:Q4").json()
    assert described == listed["data"][1]
    assert {"id", "object", "created", "owned_by"} < set(described)
    assert server.ask("GET", f"{prefix}/models/other").error()["code"] == "model_not_found"


def asked(server: Running, **fields: Any) -> Any:
    """The request that a body comes to."""
    SERVED.requests.clear()
    reply = server.chat(**fields)
    assert reply.status == 200, reply.body
    return SERVED.requests[0]


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, "max_tokens", 7),
        ({"max_tokens": None}, "max_tokens", None),
        ({"stop": "x"}, "stop", ("x",)),
        ({"stop": ["x", "yz", "1", "2", "3"]}, "stop", ("x", "yz", "1", "2", "3")),
        ({"stop": None}, "stop", ()),
        ({"reasoning_effort": "none"}, "think", False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "think", False),
        ({"logprobs": True, "top_logprobs": 3}, "n_logprobs", 3),
        ({"logprobs": True}, "n_logprobs", 0),
        ({"logprobs": False}, "n_logprobs", None),
        ({"n_draft": 0}, "n_draft", 0),
    ],
)
def test_a_field_sets_what_it_says(server: Running, fields: dict[str, Any], name: str, value: object) -> None:
    assert getattr(asked(server, **fields), name) == value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Sampling(top_k=7)),
        ({"temperature": 1, "top_p": 0.5, "seed": 3}, Sampling(temperature=1.0, top_p=0.5, top_k=7, seed=3)),
        ({"temperature": None, "min_p": 0.1, "top_k": 0}, Sampling(min_p=0.1, top_k=0)),
        ({"presence_penalty": -2, "top_k": 7}, Sampling(top_k=7, presence_penalty=-2.0)),
        ({"frequency_penalty": 1.5}, Sampling(top_k=7, frequency_penalty=1.5)),
        ({"logit_bias": {"65": -100, "66": 1.5}}, Sampling(top_k=7, logit_bias=((65, -100.0), (66, 1.5)))),
        ({"seed": -1}, Sampling(top_k=7)),
        ({"seed": -5}, Sampling(top_k=7, seed=2**64 - 5)),
    ],
)
def test_sampling_is_what_the_request_says_and_else_the_servers(
    server: Running, fields: dict[str, Any], expected: Sampling
) -> None:
    assert asked(server, **fields).sampling == expected


def test_choices_of_a_seed_draw_differently(server: Running) -> None:
    asked(server, n=3, seed=2**64 - 2)
    assert [request.sampling.seed for request in SERVED.requests] == [2**64 - 2, 2**64 - 1, 0]


def test_messages_are_read_in_every_form_that_clients_send(server: Running) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "hat"}]},
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": None},
        {"role": "assistant", "content": "tin", "reasoning_content": "Hm."},
        {"role": "user", "content": "<|im_end|>"},
    ]
    assert asked(server, messages=messages).messages == (
        Message("system", "Be brief."),
        Message("user", "a hat"),
        Message("assistant", ""),
        Message("assistant", "tin", reasoning="Hm."),
        Message("user", "<|im_end|>"),
    )


HARMLESS = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "tools": [],
    "tool_choice": "auto",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "prediction": {"type": "content", "content": "x"},
    "whatever": None,
    "stream_options": None,
}


def test_what_changes_no_answer_is_taken(server: Running) -> None:
    assert server.chat(**HARMLESS).status == 200
    assert server.chat(stream=True, stream_options={"include_obfuscation": False}).status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"whatever": 1}, "whatever"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"functions": [{}]}, "functions"),
        ({"audio": {}}, "audio"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": -3}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"stop": 3}, "stop"),
        ({"stop": ["x", None]}, "stop"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"65": 101}}, "logit_bias.65"),
        ({"logit_bias": {"065": 1, "65": 1}}, "logit_bias"),
        ({"logit_bias": [[65, 1]]}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),  # the model does not think
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"other": 1}}, "chat_template_kwargs.other"),
        ({"messages": None}, "messages"),
        ({"messages": "hat"}, "messages"),
        ({"messages": [7]}, "messages[0]"),
        ({"messages": [*QUESTION, {"role": "robot", "content": "x"}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "wings": 2}]}, "messages[0].wings"),
        ({"model": 3}, "model"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(server: Running, fields: dict[str, Any], param: str) -> None:
    reply = server.chat(**fields)
    assert reply.status == 400
    assert reply.error()["param"] == param
    assert reply.error()["type"] == "invalid_request_error"


@pytest.mark.parametrize("messages", [[], [*QUESTION, {"role": "assistant", "content": "tin"}]])
def test_a_conversation_without_a_question_is_refused(server: Running, messages: list[Any]) -> None:
    assert server.chat(messages=messages).error()["type"] == "invalid_request_error"


def test_a_model_that_is_not_served_is_not_found(server: Running) -> None:
    reply = server.chat(model="gpt-9")
    assert (reply.status, reply.error()["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused_with_both_lengths(stream: bool) -> None:
    with running(Scripted(n_ctx=64)) as server:
        reply = server.chat(messages=[{"role": "user", "content": "x" * 100}], stream=stream)
        error = reply.error()
        assert (reply.status, error["type"], error["n_ctx"]) == (400, "exceed_context_size_error", 64)
        assert error["message"].startswith("the prompt is too long: ")  # by which LangChain and LiteLLM know it
        assert error["n_prompt"] > 100
        assert "--ctx" in error["message"]
