"""Calls are cut out of an answer in every family's form, and however it is cut into tokens; the rest stays text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from fakes import byte_vocabulary
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.text.markers import find_markers, marker_ids
from edgellm.runtime.text.reasoning import AnswerStream
from edgellm.runtime.text.tool_stream import ID_LETTERS, CallStream
from edgellm.runtime.text.tools import FormatName, Tool, format_named
from edgellm.runtime.text.vocabulary import Vocabulary

TOOLS = (
    Tool("get_weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}}),
    Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "string"}}}),
)
CONTROL = (
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>",
    "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|call|>", "<|end|>",
)  # fmt: skip
HARMONY = "<|start|><|channel|>analysis<|message|>commentary functions.<|end|><|call|>"
Call = tuple[str, Any]
PARIS: Call = ("get_weather", {"city": "Paris"})
ROME: Call = ("get_weather", {"city": "Rome"})
SUM: Call = ("add", {"a": 1})

# form -> what a model writes, the text of it, and its calls
WRITTEN: list[tuple[FormatName, str, str, list[Call]]] = [
    ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', "", [PARIS]),
    ("hermes", 'I look.\n\n<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>', "I look.", [SUM]),
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\"}"}\n</tool_call>\n',
        "",
        [PARIS, ROME],
    ),
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}', "", [PARIS]),
    ("hermes", '{"name": "get_weather", "arguments": {"city": "Paris"}}', "", [PARIS]),
    ("hermes", 'So:\n```json\n{\n  "name": "add",\n  "arguments": {"a": 1}\n}\n```\nDone.', "So:\nDone.", [SUM]),
    ("hermes", '{"name": "Bob", "arguments": {"a": 1}}', '{"name": "Bob", "arguments": {"a": 1}}', []),
    ("hermes", "if a < b:\n  <tool_x> ```json\n{}", "if a < b:\n  <tool_x> ```json\n{}", []),
    ("hermes", "<tool_call>{not json}</tool_call> a", "{not json} a", []),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>', '{"name": "add", "arguments": [1]}', []),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": NaN}}', '{"name": "add", "arguments": {"a": NaN}}', []),
    ("hermes", '<tool_call>{"name": "add", "argum', '{"name": "add", "argum', []),
    (
        "tagged",
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n3\n</parameter>\n</function>\n"
        "</tool_call>",
        "",
        [("add", {"a": 1, "b": "2\n3"})],
    ),
    ("tagged", "Hm.\n<function=add>\n<parameter=a>1</parameter>\n</function>\n</tool_call>", "Hm.", [SUM]),
    ("tagged", "<tool_call><functional>", "<functional>", []),
    ("llama3", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    ("llama3", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    (
        "llama3",
        '{"type": "function", "name": "add", "parameters": {"a": 1}}; {"name": "get_weather", "parameters": '
        '{"city": "Rome"}}',
        "",
        [SUM, ROME],
    ),
    ("llama3", "<|python_tag|>print(1)", "print(1)", []),
    ("llama3", 'A set is {"name": "add", "parameters": {}}.', 'A set is {"name": "add", "parameters": {}}.', []),
    ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "a"}]', "", [PARIS]),
    (
        "mistral",
        'Hm [TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, {"name": "get_weather", "arguments": '
        '{"city": "Rome"}}]',
        "Hm",
        [SUM, ROME],
    ),
    ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add[ARGS]{"a": 1}', "", [PARIS, SUM]),
    ("mistral", '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris"}', "", [PARIS]),
    ("mistral", '[TOOL_CALLS]get_weather{"city": "Paris"}', "", [PARIS]),
    ("mistral", "[TOOL_CALLS] of words\nand more", " of words\nand more", []),
    ("mistral", "[TOOL_CALLS][]", "[]", []),
    (
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        '<|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        "",
        [PARIS],
    ),
    ("harmony", ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>', "", [SUM]),
    ("harmony", ' to=functions.add<|channel|>commentary<|message|>{"a": 1}<|call|>', "", [SUM]),
    (
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
        '<|constrain|>json<|message|>{"a":1}<|call|>',
        "I look.",
        [SUM],
    ),
    ("harmony", "<|channel|>final<|message|>It is 21.", "It is 21.", []),
    ("json", '{"name": "get_weather", "arguments": {"city": "Paris"}}', "", [PARIS]),
    ("json", '```json\n[{"name": "add", "arguments": {"a": 1}}, {"name": "add"}]\n```', "", [SUM, ("add", {})]),
    ("json", '```tool_code\nprint(get_weather(city="Paris"))\nadd(a=1)\n```', "", [PARIS, SUM]),
    ("json", '```tool_code\n__import__("os")\n```', '```tool_code\n__import__("os")\n```', []),
    ("json", '```tool_code\nadd(a=open("x"))\n```', '```tool_code\nadd(a=open("x"))\n```', []),
    ("json", '{"function": {"name": "add", "arguments": {"a": 1}}}', "", [SUM]),
    ("json", '{"name": "add", "arguments": {"a": "\\ud800", "b": "é"}}', "", [("add", {"a": "\ud800", "b": "é"})]),
    ("json", '```\n{"a": 1}\n```', '```\n{"a": 1}\n```', []),
    ("json", "  \n", "  \n", []),
]  # fmt: skip


def vocabulary(as_tokens: bool = True) -> Vocabulary:
    return byte_vocabulary(b"tool", b'{"', b"name", b'"}', control=CONTROL if as_tokens else ())


BY_TOKEN, BY_TEXT = vocabulary(), vocabulary(False)


def answered(form: FormatName, ids: Sequence[int], words: Vocabulary, **settings: Any) -> tuple[str, list[Call]]:
    """Text and calls of an answer."""
    calls = CallStream(format_named(form, words), TOOLS, words, **settings)
    markers = find_markers(HARMONY, words) if form == "harmony" else None
    stream = AnswerStream(markers, words, calls=calls)
    pieces = [stream.feed(token)[1] for token in ids]
    text = "".join(pieces) + stream.end()[1]
    assert text == stream.text
    assert len({call.id for call in stream.calls}) == len(stream.calls)
    assert all(len(call.id or "") == ID_LETTERS for call in stream.calls)
    return text, [(call.name, json.loads(call.arguments)) for call in stream.calls]


@pytest.mark.parametrize(("form", "written", "text", "calls"), WRITTEN, ids=[w[1][:40] for w in WRITTEN])
def test_calls_are_read_in_the_form_of_each_family(
    form: FormatName, written: str, text: str, calls: list[Call]
) -> None:
    assert answered(form, marker_ids(written, BY_TOKEN), BY_TOKEN) == (text, calls)


@pytest.mark.parametrize(
    ("form", "written", "calls"),
    [(w[0], w[1], w[3]) for w in WRITTEN if w[3]],
    ids=[w[1][:40] for w in WRITTEN if w[3]],
)
def test_markers_that_are_no_tokens_are_found_as_text(form: FormatName, written: str, calls: list[Call]) -> None:
    assert answered(form, list(written.encode()), BY_TEXT)[1] == calls


def test_a_marker_that_is_a_token_is_no_marker_where_it_is_only_spelled() -> None:
    said = 'Write <tool_call>{"name": "add", "arguments": {}}</tool_call> to add.'
    assert answered("hermes", list(said.encode()), BY_TOKEN) == (said, [])


SPOKEN = st.lists(
    st.sampled_from(
        [*(w[1] for w in WRITTEN), *CONTROL, "`", "{", '"', "\n", " ", ";", "é🙂", "\\", "}", "]", "```json\n"]
    )
    | st.text(max_size=4),
    max_size=6,
).map("".join)


@given(SPOKEN, st.sampled_from([*{w[0] for w in WRITTEN}]), st.booleans(), st.booleans())
def test_the_cut_into_tokens_changes_nothing(said: str, form: FormatName, by_token: bool, only_first: bool) -> None:
    words = BY_TOKEN if by_token else BY_TEXT
    whole = marker_ids(said, words)
    by_byte = [part for token in whole for part in ([token] if token in words.control else words.piece(token))]
    expected = answered(form, whole, words, only_first=only_first)
    assert answered(form, by_byte, words, only_first=only_first) == expected
    if form != "harmony" and not expected[1]:
        assert expected[0] == words.decode(whole).decode("utf-8", "ignore")  # nothing is lost


@given(st.binary(max_size=60), st.sampled_from([*{w[0] for w in WRITTEN}]))
def test_bytes_that_are_no_text_are_no_crash(data: bytes, form: FormatName) -> None:
    assert answered(form, list(data), BY_TOKEN)[1] == []


def test_a_marker_written_twice_counts_once() -> None:
    doubled = marker_ids("<tool_call>" + WRITTEN[0][1], BY_TOKEN)
    assert answered("hermes", doubled, BY_TOKEN) == ("", [PARIS])


def test_text_goes_out_at_once_and_half_a_call_never() -> None:
    calls = CallStream(format_named("hermes", BY_TEXT), TOOLS, BY_TEXT)
    shown = [calls.feed(bytes([byte])) for byte in b'a b\n<tool_call>{"name": "add"}</tool_call>']
    assert shown[:3] == ["a", "", " b"]
    assert set(shown[3:]) == {""}
    assert [call.name for call in calls.calls] == ["add"]


def test_one_call_may_be_all_that_counts() -> None:
    written = "".join(w[1] for w in WRITTEN[:1]) * 2 + " and words"
    assert answered("hermes", marker_ids(written, BY_TOKEN), BY_TOKEN, only_first=True) == ("", [PARIS])


def test_a_stop_string_in_arguments_does_not_end_the_answer() -> None:
    calls = CallStream(format_named("hermes", BY_TOKEN), TOOLS, BY_TOKEN)
    stream = AnswerStream(None, BY_TOKEN, ["Paris"], calls=calls)
    for token in marker_ids(WRITTEN[0][1] + " to Paris", BY_TOKEN):
        stream.feed(token)
    stream.end()
    assert (stream.text, stream.stopped, len(stream.calls)) == ("to ", True, 1)


def test_a_thought_calls_nothing() -> None:
    words = byte_vocabulary(control=("<think>", "</think>", *CONTROL))
    calls = CallStream(format_named("hermes", words), TOOLS, words)
    stream = AnswerStream(find_markers("<think></think>", words), words, calls=calls)
    call = WRITTEN[0][1]
    for token in marker_ids(f"<think>\nHm {call}\n</think>\n\n{call}", words):
        stream.feed(token)
    stream.end()
    assert stream.thought.startswith("Hm \n{")
    assert (stream.text, len(stream.calls)) == ("", 1)


def test_deep_nesting_is_text() -> None:
    deep = '{"name": "add", "arguments": {"a": ' + "[" * 20_000 + "]" * 20_000 + "}}"
    assert answered("json", list(deep.encode()), BY_TOKEN) == (deep, [])
