"""An answer that calls tools says so, whatever was drafted; the real model calls one and puts its answer into words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import NonsenseDrafter, byte_vocabulary
from tool_templates import FAMILIES

from edgellm.runtime import EngineOptions, Request, load
from edgellm.runtime.answer import Piece
from edgellm.runtime.backends.base import Logits, StopSwitch
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.generation import Generation
from edgellm.runtime.text.guidance import schema_grammar
from edgellm.runtime.text.markers import marker_ids
from edgellm.runtime.text.template import ChatTemplate, Message

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": SCHEMA}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
_, SOURCE, CONTROL = FAMILIES["hermes"]
WORDS = byte_vocabulary(control=CONTROL, ends=["<|im_end|>"])
TEMPLATE = ChatTemplate(SOURCE, WORDS)


class ScriptBackend:
    """A model that says what stands in a script, whatever the prompt."""

    def __init__(self, script: Sequence[int], n_prompt: int) -> None:
        self.n_ctx, self.max_outputs, self.can_truncate, self.can_shift, self.engine_s = 4096, 16, True, False, 0.0
        self.n_vocab = WORDS.n_tokens
        self.tokens: list[int] = []
        self._script, self._n_prompt = script, n_prompt

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        self.tokens += tokens
        rows = np.zeros((n_outputs, self.n_vocab), np.float32)
        for row in range(n_outputs):
            at = len(self.tokens) - n_outputs + row + 1 - self._n_prompt
            rows[row, self._script[min(at, len(self._script) - 1)]] = 9.0
        return rows

    def truncate(self, length: int) -> None:
        del self.tokens[length:]

    def close(self) -> None:
        return None


def answered(
    said: str, *, drafted: bool = False, tools: Sequence[Any] = (WEATHER,), **settings: Any
) -> tuple[Generation, list[Piece], list[Any]]:
    request = Request.of("Weather in Oslo?", tools=tools, **settings)
    script = [*marker_ids(said, WORDS), *WORDS.end_tokens]
    prompt, lessons = TEMPLATE.render(request.messages, tools=request.offered), list[Any]()
    engine = SimpleNamespace(
        model=SimpleNamespace(vocabulary=WORDS, n_ctx_train=4096),
        backend=ScriptBackend(script, len(prompt)),
        template=TEMPLATE,
        drafter=NonsenseDrafter(WORDS.n_tokens) if drafted else NoDrafter(),
        n_draft=8,
        stop_switch=StopSwitch(),
        draft_prompt=lambda messages, think=None: None,
        keep_lesson=lessons.append,
        save=lambda: None,
    )
    generation = Generation(engine, request)  # type: ignore[arg-type]
    return generation, list(generation.pieces()), lessons


@pytest.mark.parametrize("drafted", [False, True])
def test_an_answer_that_calls_says_so(drafted: bool) -> None:
    generation, pieces, lessons = answered(f"I look.\n{CALL}\n{CALL}", drafted=drafted)
    answer = generation.answer
    assert (answer.text, answer.finish_reason) == ("I look.", "tool_calls")
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("weather", '{"city": "Oslo"}')] * 2
    called = [piece for piece in pieces if piece.kind == "tool_call"]
    assert [(piece.index, piece.call, piece.text) for piece in called] == [
        (i, call, call.arguments) for i, call in enumerate(answer.tool_calls)
    ]
    assert "".join(piece.text for piece in pieces if piece.kind == "text") == "I look."
    assert answer.to_json()["tool_calls"][0]["name"] == "weather"
    assert lessons == []


@pytest.mark.parametrize("drafted", [False, True])
def test_an_answer_may_end_with_its_first_call(drafted: bool) -> None:
    generation, pieces, _ = answered(f"{CALL}\n{CALL}", drafted=drafted, parallel_tool_calls=False)
    answer = generation.answer
    assert (len(answer.tool_calls), answer.text, answer.finish_reason) == (1, "", "tool_calls")
    assert answer.tokens == tuple(marker_ids(CALL.removesuffix("\n</tool_call>"), WORDS))
    assert [piece.kind for piece in pieces] == ["tool_call"]


def test_an_answer_in_words_is_as_without_tools() -> None:
    generation, _, _ = answered("It is cold.\n")
    assert (generation.answer.text, generation.answer.finish_reason) == ("It is cold.\n", "stop")
    assert "tool_calls" not in generation.answer.to_json()


def test_a_call_that_is_cut_off_is_text() -> None:
    generation, _, _ = answered(CALL, max_tokens=20)
    assert generation.answer.finish_reason == "length"
    assert generation.answer.tool_calls == ()
    assert generation.answer.text == WORDS.decode(generation.answer.tokens).decode()


def test_no_tool_is_offered_or_called_where_none_is_chosen() -> None:
    generation, _, _ = answered(CALL, tool_choice="none")
    assert (generation.answer.tool_calls, generation.answer.finish_reason) == ((), "stop")
    assert "weather" in generation.answer.text
    request = Request.of("Weather in Oslo?", tools=[WEATHER], tool_choice="none")
    assert TEMPLATE.render(request.messages, tools=request.offered) == TEMPLATE.render(
        [Message("user", "Weather in Oslo?")]
    )


STRICT_SCHEMA = {**SCHEMA, "properties": {"city": {"enum": ["Oslo"]}}, "additionalProperties": False}
STRICT = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": STRICT_SCHEMA}}


@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize("said", [f"I look.\n{CALL}", 'I look.\n{"name": "weather", "arguments": {}}'])
def test_a_strict_call_fits_whatever_the_model_would_say(said: str, drafted: bool) -> None:
    wrong = said.replace("Oslo", "Rome")
    generation, _, _ = answered(wrong, tools=[STRICT], drafted=drafted, parallel_tool_calls=False)
    answer = generation.answer
    assert (answer.text, answer.finish_reason) == ("I look.", "tool_calls")
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("weather", '{"city": "Oslo"}')]
    assert answer.stats.accepted_by["forced"] > 0


def test_words_beside_strict_tools_are_free_and_beside_a_schema_they_are_held() -> None:
    generation, _, _ = answered("It is cold.\n", tools=[STRICT])
    assert (generation.answer.text, generation.answer.finish_reason) == ("It is cold.\n", "stop")
    held = schema_grammar({"const": "warm"}).of(WORDS)
    for said, text, reason in (("It is cold.", '"warm"', "stop"), (CALL, "", "tool_calls")):
        generation, _, _ = answered(said, constraint=held)
        assert (generation.answer.text, generation.answer.finish_reason) == (text, reason)


@pytest.mark.model
def test_a_real_model_calls_a_tool_and_puts_what_it_returned_into_words(model_path: Callable[[str], Path]) -> None:
    options = EngineOptions(n_ctx=1024, learn="off")
    function = {"name": "get_weather", "description": "The weather in a city right now.", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    with load(model_path("qwen2.5-coder-1.5b-instruct"), None, options) as engine:
        turns: list[Any] = [
            {"role": "system", "content": "Answer questions in words. Call a function where you need one."},
            {"role": "user", "content": "What is the weather in Oslo?"},
        ]
        called = engine.generate(turns, tools=tools, max_tokens=60).finish()
        assert called.finish_reason == "tool_calls"
        (call,) = called.tool_calls
        assert (call.name, json.loads(call.arguments)["city"]) == ("get_weather", "Oslo")
        turns.append(Message("assistant", called.text, called.tokens, tool_calls=called.tool_calls))
        returned = json.dumps({"temperature_celsius": 3, "sky": "snow"})
        turns.append({"role": "tool", "tool_call_id": call.id, "content": returned})
        told = engine.generate(turns, tools=tools, max_tokens=60).finish()
        assert told.stats.n_cached > called.stats.n_prompt - 5
        assert (told.tool_calls, told.finish_reason) == ((), "stop")
        assert "3" in told.text
