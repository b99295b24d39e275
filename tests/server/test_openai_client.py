"""OpenAI's own client against a server process of its own with a real model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openai
import pydantic
import pytest

QUESTION: Any = [{"role": "user", "content": "Name a colour."}]
MODEL = "smollm2"


class Book(pydantic.BaseModel):
    title: str = pydantic.Field(max_length=20)
    year: int = pydantic.Field(ge=1000, le=2030)


@pytest.fixture(scope="module", params=["1", "3"], ids="{}-at-once".format)
def process(
    request: pytest.FixtureRequest, smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL, as it says it when it is ready."""
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, "-m", "edgellm.cli", "serve", str(smollm2_path), "--draft", "none"]
    command += ["--port", "0", "--ctx", "512", "--alias", MODEL, "--parallel", request.param]
    environment = {**os.environ, "EDGELLM_HOME": str(home), "EDGELLM_EXTRA_BUFFERS": "off"}
    served = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=home)
    assert served.stderr is not None
    try:
        for line in served.stderr:
            if found := re.search(r"http://\S+/v1", line):
                yield served, found[0]
                break
        else:
            pytest.fail("the server did not start")
        served.send_signal(signal.SIGINT)
        assert served.wait(30) == 0
        assert "Traceback" not in served.stderr.read()
    finally:
        served.kill()


@pytest.fixture(scope="module")
def client(process: tuple[subprocess.Popen[str], str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=process[1], api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert MODEL in names
    assert client.models.retrieve(MODEL).object == "model"


def test_a_stream_is_the_whole_answer_with_its_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=12)
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    text, reason, usage = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    assert text
    assert (text, reason) == (whole.choices[0].message.content, whole.choices[0].finish_reason)
    assert whole.usage is not None
    assert usage is not None
    assert usage.total_tokens == whole.usage.total_tokens == whole.usage.prompt_tokens + 12


def test_the_helper_for_streams_puts_an_answer_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, stop="e") as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.finish_reason == "stop"
    assert "e" not in (final.message.content or "")


def test_drafting_and_its_absence_give_the_same_answer(client: openai.OpenAI) -> None:
    texts = []
    for n in (0, 8):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Repeat: one two three, one two three, one two three"}],
            max_tokens=40,
            extra_body={"n_draft": n},
        )
        assert answer.model_extra is not None
        texts.append(answer.choices[0].message.content)
        assert answer.model_extra["timings"]["predicted_n"] == 40 or answer.choices[0].finish_reason == "stop"
        if n == 0:
            assert answer.model_extra["timings"]["draft_n"] == 0
    assert texts[0] == texts[1]


def test_a_seed_is_the_same_answer_and_choices_differ(client: openai.OpenAI) -> None:
    def texts() -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=10, temperature=1.2, seed=5, n=2
        )
        return [choice.message.content for choice in answer.choices]

    first = texts()
    assert texts() == first
    assert first[0] != first[1]


def test_log_probabilities_are_told_of_each_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=6, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(one.token for one in logprobs.content) == answer.choices[0].message.content
    for one in logprobs.content:  # the answer is greedy
        assert one.top_logprobs[0].token == one.token
        assert one.logprob == one.top_logprobs[0].logprob <= 0


def test_a_text_is_scored_as_it_was_when_it_was_written(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    first = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, logprobs=0).choices[0]
    whole = prompt + first.text
    again = client.completions.create(model=MODEL, prompt=whole, max_tokens=0, logprobs=0, echo=True).choices[0]
    assert first.logprobs is not None
    assert again.logprobs is not None
    assert again.text == whole
    assert again.logprobs.tokens is not None
    assert again.logprobs.token_logprobs is not None
    assert again.logprobs.tokens[-8:] == first.logprobs.tokens
    assert again.logprobs.token_logprobs[-8:] == pytest.approx(first.logprobs.token_logprobs, abs=1e-3)


def test_a_bias_bans_what_the_answer_began_with(client: openai.OpenAI) -> None:
    first = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=1, logprobs=1)
    assert first.choices[0].text == " Paris"
    tokens = client.post("/tokenize", cast_to=object, body={"content": " Paris"})
    (token,) = tokens["tokens"]  # type: ignore[index]
    second = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=1, logit_bias={str(token): -100}
    )
    assert second.choices[0].text != " Paris"


def test_vectors_are_the_same_in_both_encodings_and_tell_meanings_apart(client: openai.OpenAI) -> None:
    texts = ["The cat sleeps on the sofa.", "A kitten is napping on the couch.", "Interest rates rose last year."]
    packed = client.embeddings.create(model=MODEL, input=texts)  # base64, which the client asks for by itself
    plain = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    short = client.embeddings.create(model=MODEL, input=texts[0], dimensions=32).data[0].embedding
    vectors = np.array([one.embedding for one in packed.data])
    assert vectors == pytest.approx(np.array([one.embedding for one in plain.data]), abs=1e-4)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    near, far, _ = (vectors @ vectors.T)[np.triu_indices(3, 1)]
    assert near > far
    assert short == pytest.approx(vectors[0, :32] / np.linalg.norm(vectors[0, :32]), abs=1e-3)
    with pytest.raises(openai.BadRequestError, match="context"):
        client.embeddings.create(model=MODEL, input="x " * 3000)


def test_a_response_is_the_chats_answer_whole_and_streamed(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model=MODEL, messages=QUESTION).choices[0].message.content
    asked: Any = {"model": MODEL, "input": "Name a colour.", "store": False}
    whole = client.responses.create(**asked)
    assert (whole.status, whole.output_text) == ("completed", chat)
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == chat
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    again = client.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": "Name a colour."},
            *[item.to_dict() for item in final.output],  # type: ignore[list-item]
            {"role": "user", "content": "Another one."},
        ],
        max_output_tokens=3,
    )
    assert again.status == "incomplete"
    assert again.usage is not None
    assert final.usage is not None
    assert again.usage.input_tokens > final.usage.input_tokens


def test_a_response_tells_log_probabilities_as_chat_does(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=6, logprobs=True, top_logprobs=2)
    asked: Any = {"model": MODEL, "input": "Name a colour.", "max_output_tokens": 6, "top_logprobs": 2}
    asked["include"] = ["message.output_text.logprobs"]
    whole: Any = client.responses.create(**asked).output[0]
    *_, last = client.responses.create(**asked, stream=True)
    streamed = last.response.output[0]
    assert chat.choices[0].logprobs is not None
    wanted = [(one.token, one.logprob) for one in chat.choices[0].logprobs.content or []]
    for item in (whole, streamed):
        found = item.content[0].logprobs
        assert [(one.token, one.logprob) for one in found] == wanted
        assert {len(one.top_logprobs) for one in found} == {2}


def test_a_response_is_held_to_a_schema_and_to_a_call(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model=MODEL, input="Name a book.", text_format=Book, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Book)
    parameters = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    parameters["additionalProperties"] = False
    tools: Any = [{"type": "function", "name": "weather", "strict": True, "parameters": parameters}]
    asked: Any = {"model": MODEL, "input": "Hi.", "tools": tools, "tool_choice": "required", "max_output_tokens": 60}
    whole: Any = client.responses.create(**asked).output[-1]
    assert (whole.type, whole.name) == ("function_call", "weather")
    assert json.loads(whole.arguments)["city"] in ("Oslo", "Rome")
    with client.responses.stream(**asked) as stream:
        streamed: Any = stream.get_final_response().output[-1]
    assert streamed.arguments == whole.arguments
    answered = [{"role": "user", "content": "Hi."}, whole.to_dict()]
    answered += [{"type": "function_call_output", "call_id": whole.call_id, "output": "cold"}]
    assert client.responses.create(model=MODEL, input=answered, max_output_tokens=4).output  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"extra_body": {"surprise": 1}}, openai.BadRequestError, "surprise"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, openai.BadRequestError, "tools"),
        ({"response_format": {"type": "yaml"}}, openai.BadRequestError, "response_format"),
        ({"messages": [{"role": "user", "content": "x " * 3000}]}, openai.BadRequestError, None),
    ],
    ids=str,
)
def test_a_refusal_is_the_clients_own_error(
    client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], param: str | None
) -> None:
    with pytest.raises(kind) as refusal:
        client.chat.completions.create(**{"model": MODEL, "messages": QUESTION} | fields)
    assert refusal.value.param == param
    assert refusal.value.body["message"]  # type: ignore[index]


def test_who_leaves_frees_the_model_for_the_next(client: openai.OpenAI) -> None:
    for stream in (True, False):
        long: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Count to a thousand."}]}
        if stream:
            with client.chat.completions.create(**long, stream=True) as chunks:
                next(iter(chunks))
        else:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.5).chat.completions.create(
                    **long, logit_bias={str(token): -100 for token in range(3)}
                )
        assert client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2).choices


def test_asynchronous_clients_are_all_answered(process: tuple[subprocess.Popen[str], str]) -> None:
    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=process[1], api_key="none", max_retries=0) as client:
            asked = [
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": f"Say the number {i}."}], max_tokens=8
                )
                for i in range(4)
            ]
            texts = [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]
            stream = await client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, stream=True)
            texts.append("".join([chunk.choices[0].text async for chunk in stream]))
            return texts

    texts = asyncio.run(ask_all())
    assert all(texts)
    assert texts == asyncio.run(ask_all())


def test_a_schema_of_the_clients_own_kind_is_held_to(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "Name a book."}]
    parsed = client.chat.completions.parse(model=MODEL, messages=question, response_format=Book, max_tokens=60)
    assert parsed.choices[0].finish_reason == "stop"
    assert isinstance(parsed.choices[0].message.parsed, Book)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be_made_is_made_streamed_and_whole(client: openai.OpenAI, choice: Any) -> None:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    parameters["additionalProperties"] = False
    tools: Any = [{"type": "function", "function": {"name": "weather", "strict": True, "parameters": parameters}}]
    asked: Any = {"model": MODEL, "messages": QUESTION, "tools": tools, "tool_choice": choice, "max_tokens": 60}
    whole = client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "tool_calls"
    call: Any = (whole.message.tool_calls or [])[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    with client.chat.completions.stream(**asked) as stream:
        streamed: Any = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments


class Weather(pydantic.BaseModel):
    """The weather in a city."""

    city: str
    unit: Literal["celsius", "fahrenheit"]


def test_a_strict_call_that_is_free_to_be_made_is_of_the_clients_own_kind(client: openai.OpenAI) -> None:
    """The client sends its functions as strict and leaves the choice to the model; here others called before it."""
    asked: list[Any] = []
    for city in ("Rome", "Paris"):
        call = {"name": "Weather", "arguments": json.dumps({"city": city, "unit": "celsius"})}
        asked += [
            {"role": "user", "content": f"Weather in {city}?"},
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": "a", "content": "warm"},
            {"role": "assistant", "content": "It is warm."},
        ]
    asked.append({"role": "user", "content": "Weather in Oslo?"})
    settings: Any = {"model": MODEL, "messages": asked, "max_tokens": 60}
    tools = [openai.pydantic_function_tool(Weather)]
    whole = client.chat.completions.parse(**settings, tools=tools).choices[0]
    assert whole.finish_reason == "tool_calls"
    (made,) = whole.message.tool_calls or []
    assert isinstance(made.function.parsed_arguments, Weather)
    with client.chat.completions.stream(**settings, tools=tools) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert [one.function.arguments for one in streamed.message.tool_calls or []] == [made.function.arguments]
    words = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=tools, max_tokens=8)
    assert words.choices[0].message.content
