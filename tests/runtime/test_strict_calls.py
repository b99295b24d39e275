"""Whatever a model would like to say, what is read as a call of a strict tool fits its schema; text stays free."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import jsonschema
import pytest
from fakes import byte_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_templates import FAMILIES

from edgellm.runtime.constraint import Constraint
from edgellm.runtime.request import BadRequest, Request
from edgellm.runtime.text.guidance import schema_grammar
from edgellm.runtime.text.markers import marker_ids
from edgellm.runtime.text.strict_calls import MAX_TOOLS, strict_calls
from edgellm.runtime.text.template import ChatTemplate
from edgellm.runtime.text.tool_stream import CallStream, head_shapes
from edgellm.runtime.text.tools import CallFormat, Tool, ToolCall
from edgellm.runtime.text.vocabulary import Vocabulary

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [Tool("weather", "Now.", SCHEMA, strict=True), Tool("any", "", SCHEMA), Tool("weather.2", "", SCHEMA, True)]
ARGUMENTS = '{"city": "Oslo", "days": 3}'
OBJECT = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
TAGGED = f"I look.\n<tool_call>\n{OBJECT}\n</tool_call>"
LISTED = f'[TOOL_CALLS][{OBJECT}, {{"name": "any", "arguments": {{"x": []}}}}]'
COMMENTARY = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
# family -> texts that call, in the ways of that family and of models that forget it
CALLING = {
    "hermes": [
        TAGGED,
        f"{TAGGED}\n{TAGGED.removeprefix('I look.')}, done",
        OBJECT,
        f"So:\n```json\n{OBJECT}\n```\nYes.",
    ],
    "tagged": [TAGGED, f"[{OBJECT}, {OBJECT}]"],
    "llama3": [OBJECT.replace("arguments", "parameters"), f"<|python_tag|>{OBJECT.replace('arguments', 'parameters')}"],
    "mistral": [
        LISTED,
        f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}",
        f"A[TOOL_CALLS]weather[CALL_ID]abc123xyz[ARGS]{ARGUMENTS}",
    ],
    "mistral-list": [LISTED],
    "harmony": [f"{THOUGHT}{COMMENTARY}{ARGUMENTS}", f"{COMMENTARY}{ARGUMENTS}"],
    "gemma": [TAGGED, OBJECT, f"{OBJECT}\n{OBJECT}", f'{{\n  "name": "weather", "arguments": {ARGUMENTS}}}'],
}
NESTED = '{"type": "function", "function": {"name": "weather", "arguments": ' + ARGUMENTS + "}}"
IN_LINES = json.dumps([json.loads(OBJECT)], indent=2)
for _name in ("hermes", "tagged", "gemma"):
    CALLING[_name] += [NESTED, f"```json\n{IN_LINES}\n```"]


@cache
def family(name: str) -> tuple[Vocabulary, CallFormat]:
    _, source, control = FAMILIES[name]
    words = (b'{"', b'": "', b'", "', b'weather"', b'", "arguments": {"', b"}}", b"\n{", b'"}')
    vocabulary = byte_vocabulary(*words, control=control, ends=[control[-1]])
    return vocabulary, ChatTemplate(source, vocabulary).tool_format


@cache
def held(name: str) -> Constraint:
    vocabulary, form = family(name)
    return strict_calls(TOOLS, form).of(vocabulary)


def calls(name: str, tokens: list[int], *, is_held: bool = True) -> list[ToolCall]:
    vocabulary, form = family(name)
    stream = CallStream(form, TOOLS, vocabulary, is_held=is_held)
    for token in tokens:
        stream.feed(token if token in stream.tokens else vocabulary.piece(token))
    stream.end()
    return stream.calls


def check(found: list[ToolCall]) -> None:
    for call in found:
        tool = next(tool for tool in TOOLS if tool.name == call.name)
        if tool.strict:
            jsonschema.validate(json.loads(call.arguments), SCHEMA)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in CALLING.items() for text in texts])
def test_a_call_that_fits_may_be_written_and_is_read_and_one_that_does_not_may_not(name: str, text: str) -> None:
    vocabulary, _ = family(name)
    tokens = marker_ids(text, vocabulary)
    whole = [*tokens, min(vocabulary.end_tokens)]
    assert held(name).start().n_legal(whole) == len(whole)
    found = calls(name, tokens)
    assert found
    assert found[0].name == "weather"
    check(found)
    for bad in ('"days": 0', '"days": "3"', '"night": 3', '"days": 3, "more": 1'):
        wrong = marker_ids(text.replace('"days": 3', bad), vocabulary)
        assert held(name).start().n_legal(wrong) < len(wrong)
    unknown = marker_ids(
        text.replace('"weather"', '"other"').replace("functions.weather", "functions.other"), vocabulary
    )
    assert not [call for call in calls(name, unknown[: held(name).start().n_legal(unknown)]) if call.name == "other"]


@pytest.mark.parametrize("name", CALLING)
def test_an_answer_in_words_is_free(name: str) -> None:
    vocabulary, _ = family(name)
    words = (
        'The city of "Oslo" is at {"latitude": 59.9}.\n```json\n{"name": "Olav", "kind": []}\n```\n<b>Sk\u00e5l!</b>'
    )
    header = "<|channel|>final<|message|>" if name == "harmony" else ""
    tokens = [*marker_ids(header, vocabulary), *vocabulary.encode(words.encode()), min(vocabulary.end_tokens)]
    assert held(name).start().n_legal(tokens) == len(tokens)
    assert held(name).start().forced() == b""


PARTS = [text for texts in CALLING.values() for text in texts]
PARTS += [f"{head}, " for name in ("weather", "any") for head in head_shapes(name)]
PARTS += [
    "\n",
    ";",
    ", ",
    "```",
    "```json\n",
    "[",
    "{",
    '"name": "weather"',
    '"city"',
    "to=functions.weather ",
    "</tool_call>",
]
PARTS += [
    "<tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<|channel|>",
    "<|message|>",
    "```tool_code\nweather(city=3)\n```",
]
PARTS += ["<function=weather><parameter=city>3</parameter></function>", '{"arguments": {"city": 3}, "name": "weather"}']


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(CALLING)),
    seed=st.integers(0, 2**32),
    wants=st.lists(st.sampled_from(PARTS), min_size=1),
)
def test_whatever_is_wanted_a_strict_call_that_is_read_fits(name: str, seed: int, wants: list[str]) -> None:
    vocabulary, _ = family(name)
    state, tokens, rng = held(name).start(), list[int](), random.Random(seed)
    for want in wants:
        wanted = marker_ids(want, vocabulary)
        for part in (wanted, wanted[rng.randrange(len(wanted)) :]):
            taken = part[: state.n_legal(part)]
            taken = [token for token in taken if token not in vocabulary.end_tokens]
            state.advance(taken)
            tokens += taken
            for _ in range(rng.randrange(3)):
                may = [i for i in state.allowed().nonzero()[0].tolist() if i not in vocabulary.end_tokens]
                if not may:
                    break
                token = rng.choice(may)
                state.advance([token])
                tokens.append(token)
    check(calls(name, tokens))


def test_what_begins_a_call_forces_what_may_follow() -> None:
    vocabulary, _ = family("hermes")
    state = held("hermes").start()
    state.advance(marker_ids("I look.\n<tool_call>", vocabulary))
    assert state.forced() == b'\n{"name": "'
    state.advance(vocabulary.encode(b'\n{"name": "any'))
    assert state.forced() == b'", "arguments": {'
    state.advance(vocabulary.encode(b'", "arguments": {}'))
    assert state.forced() == b"}\n"  # and a token that is no text
    state.advance(vocabulary.encode(b"}\n"))
    assert state.allowed().nonzero()[0].tolist() == [vocabulary.literals["</tool_call>"]]


@pytest.mark.parametrize("name", ["hermes", "mistral", "harmony", "gemma"])
def test_beside_a_schema_an_answer_is_calls_or_matches_it(name: str) -> None:
    vocabulary, form = family(name)
    both = strict_calls(TOOLS, form, schema_grammar({"type": "object", "properties": {"name": {"type": "string"}}}))
    state = both.of(vocabulary)
    header = "<|channel|>final<|message|>" if name == "harmony" else ""
    end = min(vocabulary.end_tokens)
    for text in ('{"name": "weather"}', '{"name": "Bob"}'):
        tokens = [*marker_ids(header + text, vocabulary), end]
        assert state.start().n_legal(tokens) == len(tokens)
    called = marker_ids(CALLING[name][0].removeprefix("I look.\n"), vocabulary)
    assert state.start().n_legal([*called, end]) == len(called) + 1
    for text in ("Hello", '{"name": 3}'):
        wrong = marker_ids(header + text, vocabulary)
        assert state.start().n_legal(wrong) < len(wrong)


def test_what_cannot_be_promised_is_refused_by_name() -> None:
    vocabulary, form = family("hermes")
    with pytest.raises(BadRequest, match=r'tools\[1\].function.parameters.*"not"'):
        strict_calls([TOOLS[0], Tool("b", "", {"type": "object", "not": {}}, strict=True)], form)
    strict_calls([TOOLS[0], Tool("b", "", {"type": "object", "not": {}})], form)  # it may be anything
    with pytest.raises(BadRequest, match=f"{MAX_TOOLS} are the most"):
        strict_calls([Tool(f"t{i}", strict=True) for i in range(MAX_TOOLS + 1)], form)
    many = strict_calls([Tool(f"t{i}", "", SCHEMA, strict=True) for i in range(MAX_TOOLS)], form).of(vocabulary)
    assert many.start().forced() == b""
    with pytest.raises(BadRequest, match=r"tools\[0\].function.strict is neither"):
        Request.of("Hi", tools=[Tool("a", strict=1)])  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="whose vocabulary has no <|start|>".replace("|", r"\|")):
        strict_calls(TOOLS, CallFormat("harmony"))
