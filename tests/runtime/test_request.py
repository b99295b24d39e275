"""A request says what is wrong with it before anything is computed; answering one leaves nothing to the next."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny

from edgellm.cli._errors import USAGE, exit_code
from edgellm.runtime import ChatSession, Engine, EngineOptions, Request, Sampling, load
from edgellm.runtime.backends.base import ContextFull
from edgellm.runtime.request import BadRequest, read_messages
from edgellm.runtime.text.template import Message
from edgellm.runtime.text.tools import ToolCall

QUESTION = "the thin hat in the tin"
VARIED = Sampling(repeat_penalty=3.0)


def called(arguments: object, **fields: object) -> dict[str, Any]:
    """An answer that calls a tool, as OpenAI's clients send it back."""
    function = {"name": fields.get("name", "tin"), "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": fields.get("id"), "type": "function", "function": function}]}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with load(path, None, EngineOptions(n_ctx=256, n_draft=4, learn="off", n_threads=1)) as engine:
        yield engine


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "nothing to answer"),
        ({"role": "user", "content": "hat"}, "no list"),
        (7, "no list"),
        ([7], "message 1 is no"),
        ([{"role": "ipython", "content": "hat"}], "message 1 is of role 'ipython': take system, user, assistant or"),
        ([{"content": "hat"}], "of role None"),
        ([{"role": "user"}], "message 1 is no text"),
        ([{"role": "user", "content": "hat"}, {"role": "user", "content": 3}], "message 2 is no text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "a part that is no text"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
        ([{"role": "user", "content": "hat"}, {"role": "assistant", "content": "tin"}], "an answer already"),
        ([Message("user", "hat"), Message("assistant", "tin")], "an answer already"),
        ([{"role": "assistant", "content": None}], "message 1 is no text"),
        ([{"role": "assistant", "tool_calls": {}}], "tool_calls of message 1 is no list"),
        ([{"role": "assistant", "tool_calls": [7]}], "a call of message 1 is no"),
        ([called("tin", name="")], "a call of message 1 names no function"),
        ([called("tin", name=7)], "a call of message 1 is no text"),
        ([called("tin", id=7)], "a call of message 1 is no text"),
        ([called("[1]")], "message 1 calls tin with arguments that are no JSON object"),
        ([called("{")], "message 1 calls tin with arguments that are no JSON object"),
        ([called('{"a": NaN}')], "message 1 calls tin with arguments that are no JSON object"),
        ([called('{"a":' * 50_000)], "message 1 calls tin with arguments that are no JSON object"),
        ([called("{}") | {"role": "user", "content": "hat"}], "message 1 calls tools and is of role user"),
        ([{"role": "tool", "content": "2", "tool_call_id": 7}], "message 1 is no text"),
        ([{"role": "tool", "content": "2", "name": "\ud800"}], "surrogate"),
    ],
)
def test_messages_that_cannot_be_answered_are_refused_in_a_sentence(messages: Any, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence) as refusal:
        Request.of(messages)
    assert exit_code(refusal.value) == USAGE


@pytest.mark.parametrize("setting", ["max_tokens", "think_budget", "n_draft"])
def test_a_negative_number_is_refused(setting: str) -> None:
    with pytest.raises(BadRequest, match=f"{setting} -1 is negative"):
        Request.of("hat", **{setting: -1})


def test_a_question_is_one_message_and_parts_of_text_are_joined() -> None:
    assert read_messages("hat") == (Message("user", "hat"),)
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "hat"}]
    assert read_messages([{"role": "developer", "content": "tin"}, {"role": "user", "content": parts}]) == (
        Message("system", "tin"),
        Message("user", "the hat"),
    )


def test_calls_are_read_with_null_for_what_is_left_out() -> None:
    said = [called(""), {"role": "tool", "content": "2", "tool_call_id": None, "name": None}]
    assert read_messages(said) == (Message("assistant", "", tool_calls=(ToolCall("tin"),)), Message("tool", "2"))


@pytest.mark.parametrize(
    "roles", [("assistant", "user"), ("user", "system", "user"), ("user", "user"), ("system", "system", "user")]
)
def test_any_order_is_answered_that_the_template_can_write(engine: Engine, roles: tuple[str, ...]) -> None:
    messages = [{"role": role, "content": f"hat {i}"} for i, role in enumerate(roles)]
    assert len(engine.generate(messages, max_tokens=3).finish().tokens) == 3


def test_an_answer_does_not_depend_on_what_was_asked_before(engine: Engine) -> None:
    engine.backend.truncate(0)
    first = engine.generate(QUESTION, max_tokens=20, sampling=VARIED).finish()
    engine.generate("another tin", max_tokens=20, sampling=VARIED).finish()
    again = engine.generate([{"role": "user", "content": QUESTION}], max_tokens=20, sampling=VARIED).finish()
    assert again.tokens == first.tokens
    assert first.stats.n_cached == 0


def test_a_conversation_by_requests_is_the_one_of_a_session_and_as_little_is_read(engine: Engine) -> None:
    engine.backend.truncate(0)
    session, said = ChatSession(engine), []
    for question in (QUESTION, "in"):
        "".join(session.reply(question, max_tokens=12))
        assert session.last is not None
        said.append(session.last)
    engine.backend.truncate(0)
    first = engine.generate(QUESTION, max_tokens=12).finish()
    messages = [Message("user", QUESTION), Message("assistant", first.text, first.tokens), Message("user", "in")]
    second = engine.generate(messages, max_tokens=12).finish()
    assert [first.tokens, second.tokens] == [answer.tokens for answer in said]
    assert second.stats.n_cached == first.stats.n_prompt + first.stats.n_new - 1 == said[1].stats.n_cached


def test_iterating_gives_the_text_and_the_answer_afterwards(engine: Engine) -> None:
    generation = engine.generate(QUESTION, max_tokens=20, sampling=VARIED)
    with pytest.raises(RuntimeError, match="not written yet"):
        _ = generation.answer
    text = "".join(generation)
    assert generation.answer.text == text
    told = json.loads(json.dumps(generation.answer.to_json()))
    assert list(told) == ["text", "reasoning", "finish_reason", "n_forgotten", "stats"]
    assert (told["text"], told["finish_reason"], told["stats"]["n_new"]) == (text, "length", 20)


def test_closing_ends_an_answer_with_what_was_said(engine: Engine) -> None:
    generation = engine.generate(QUESTION, max_tokens=40, sampling=VARIED)
    said = next(generation)
    generation.close()
    assert generation.answer.finish_reason == "interrupted"
    assert generation.answer.text.startswith(said)
    assert list(generation) == []


def test_a_cancelled_request_reads_nothing_and_the_next_one_is_not_touched(engine: Engine) -> None:
    engine.backend.truncate(0)
    cancel = threading.Event()
    cancel.set()
    answer = engine.generate(QUESTION, max_tokens=8, cancel=cancel).finish()
    assert (answer.text, answer.finish_reason, answer.stats.n_rounds) == ("", "interrupted", 0)
    assert engine.backend.tokens == []
    assert engine.generate(QUESTION, max_tokens=8).finish().finish_reason == "length"


def test_drafts_are_as_long_as_the_request_allows_and_the_answer_stays(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")  # its own drafter, so every draft is accepted
    options = EngineOptions(n_ctx=256, n_draft=4, fixed=True, copy=False, learn="off", n_threads=1)
    with load(path, path, options) as engine:
        answers = [engine.generate(QUESTION, max_tokens=40, n_draft=n).finish() for n in (0, 2, None, 99)]
    assert len({answer.tokens for answer in answers}) == 1
    widths = [answer.stats.tokens_per_round for answer in answers]
    assert widths[0] == 1.0
    assert 2.0 < widths[1] <= 3.0 < widths[2] == widths[3] <= 5.0


def test_a_request_may_let_go_of_the_oldest_turns(engine: Engine) -> None:
    said = [Message("user" if i % 2 == 0 else "assistant", f"{QUESTION} {i}") for i in range(17)]
    with pytest.raises(ContextFull, match="/clear it"):
        engine.generate([Message("system", "a tin"), *said], max_tokens=5).finish()
    answer = engine.generate([Message("system", "a tin"), *said], max_tokens=5, on_full="shift").finish()
    assert answer.n_forgotten % 2 == 0
    assert 0 < answer.n_forgotten < len(said)
    kept = [Message("system", "a tin"), *said[answer.n_forgotten :]]
    assert engine.generate(kept, max_tokens=5).finish().tokens == answer.tokens
