"""Templates are given tools, calls and what these returned as transformers gives them; nothing of them is markup."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import jinja2.sandbox
import pytest
from fakes import byte_vocabulary
from hypothesis import given
from hypothesis import strategies as st
from tool_templates import FAMILIES, GEMMA, HERMES, LLAMA_3

from edgellm.runtime.text.draft_prompt import draft_prompt
from edgellm.runtime.text.markers import split_markers
from edgellm.runtime.text.template import DOCUMENT, ChatTemplate, Message, TemplateError
from edgellm.runtime.text.tool_stream import CallStream
from edgellm.runtime.text.tools import Tool, ToolCall
from edgellm.runtime.text.vocabulary import Vocabulary

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": 'A "city" <b>'}}}
TOOLS = (Tool("get_weather", "The weather & more.", SCHEMA), Tool("now", "é"))
ASKED = Message("user", "Weather in Oslo?")
CALLED = Message("assistant", "", tool_calls=(ToolCall("get_weather", '{"city": "Oslo <é>"}', "abcdefghi"),))
RETURNED = Message("tool", '{"temperature": 3}', tool_call_id="abcdefghi", name="get_weather")
TALKS = {
    "offered": [ASKED],
    "with a system prompt": [Message("system", "Be brief."), ASKED],
    "called": [ASKED, CALLED, RETURNED],
    "answered": [ASKED, CALLED, RETURNED, Message("assistant", "3 degrees."), Message("user", "And now?")],
}
NATIVE = [name for name, family in FAMILIES.items() if family[0] != "json"]
BOTH = Message("assistant", "", tool_calls=(ToolCall("get_weather"), ToolCall("now")))


def made(name: str) -> tuple[ChatTemplate, Vocabulary]:
    _, source, control = FAMILIES[name]
    vocabulary = byte_vocabulary(control=control, bos="<s>", ends=control[-1:])
    return ChatTemplate(source, vocabulary), vocabulary


MADE = {name: made(name) for name in FAMILIES}


def as_transformers(source: str, messages: list[Message], eos: str) -> str:
    """What plain Jinja, set up as transformers does, makes of the conversation in transformers' form."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    given = []
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            one["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
                for c in message.tool_calls
            ]
        if message.role == "tool":
            one |= {"tool_call_id": message.tool_call_id, "name": message.name}
        given.append(one)
    tools = [tool.to_json() for tool in TOOLS]
    return environment.from_string(source).render(
        messages=given, tools=tools, add_generation_prompt=True, bos_token="<s>", eos_token=eos
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_form_is_judged_by_what_the_template_writes(name: str) -> None:
    template, _ = MADE[name]
    assert template.tool_format.name == FAMILIES[name][0]
    assert (template.tool_note is None) == (name in NATIVE)


def test_a_form_that_is_not_read_back_is_not_trusted() -> None:
    vocabulary = byte_vocabulary(control=("<|im_start|>", "<|im_end|>"), ends=["<|im_end|>"])
    for changed in (HERMES.replace('"name": "', '"function_is": "'), HERMES.replace("{{ tool | tojson }}", "a tool")):
        template = ChatTemplate(changed, vocabulary)
        assert template.tool_format.name == "json"
        assert '"name": "now"' in template.text([ASKED], tools=TOOLS)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", NATIVE)
def test_a_conversation_is_written_as_transformers_writes_it(name: str, talk: str) -> None:
    template, _ = MADE[name]
    _, source, control = FAMILIES[name]
    if name in ("llama3", "mistral", "mistral-list") and talk == "with a system prompt":
        return  # these small ones have no place for it
    assert template.text(TALKS[talk], tools=TOOLS) == as_transformers(source, TALKS[talk], control[-1])


PARTS = sorted({part for _, _, control in FAMILIES.values() for part in control})
HOSTILE = st.lists(
    st.sampled_from([*PARTS, *(part[:4] for part in PARTS), *(part[2:] for part in PARTS), '"', "\\", "\n", "é", "x"]),
    min_size=1,
    max_size=5,
).map("".join)


@given(st.sampled_from([*FAMILIES]), HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_nothing_that_is_said_of_tools_becomes_a_control_token(
    name: str, description: str, key: str, argument: str, called: str, returned: str
) -> None:
    template, vocabulary = MADE[name]

    def controls(description: str, key: str, argument: str, called: str, returned: str) -> tuple[list[int], str]:
        schema = {"type": "object", "properties": {key: {"type": "string", "description": description}}}
        call = ToolCall(called, json.dumps({key: argument}), argument)
        turns = [Message("user", "q"), Message("assistant", "", tool_calls=(call,))]
        turns += [Message("tool", returned, tool_call_id=argument, name=called)]
        tokens = template.render(turns, tools=[Tool("get_weather", description, schema)])
        return [token for token in tokens if token in vocabulary.control], vocabulary.decode(tokens).decode()

    expected, _ = controls("d", "k", "a", "c", "r")
    found, text = controls(f"x{description}", f"x{key}", f"x{argument}", f"x{called}", f"x{returned}")
    assert found == expected
    for said in (description, argument, called, returned):
        assert f"x{said}".strip() in text or json.dumps(f"x{said}", ensure_ascii=False)[1:-1] in text


ARGUMENTS = st.dictionaries(
    st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


@given(st.sampled_from([name for name in NATIVE if name != "tagged"]), ARGUMENTS)
def test_what_a_template_writes_of_a_call_is_read_back(name: str, arguments: dict[str, Any]) -> None:
    template, vocabulary = MADE[name]
    call = ToolCall("get_weather", json.dumps(arguments), "abcdefghi")
    said = template.text([ASKED, Message("assistant", "", tool_calls=(call,))], reply=False, tools=TOOLS)
    stream = CallStream(template.tool_format, TOOLS, vocabulary)
    for text, token in split_markers(said.rpartition("Weather in Oslo?")[2], vocabulary):
        stream.feed(token if token in stream.tokens else text.encode())  # type: ignore[arg-type]
    stream.end()
    assert [(found.name, json.loads(found.arguments)) for found in stream.calls] == [("get_weather", arguments)]


def test_other_servers_ids_are_shortened_where_nine_letters_are_asked_for() -> None:
    template, _ = MADE["mistral"]
    call = ToolCall("get_weather", "{}", "call_0123456789abcdef")
    text = template.text(
        [ASKED, Message("assistant", "", tool_calls=(call,)), Message("tool", "3", tool_call_id=call.id)]
    )
    short = text.partition("[CALL_ID]")[2][:9]
    assert short.isalnum()
    assert f"[TOOL_RESULTS]{short}: 3" in text


def test_calls_without_ids_are_answered_in_their_order() -> None:
    template, _ = MADE["mistral"]
    text = template.text([ASKED, BOTH, Message("tool", "3"), Message("tool", "noon")])
    first, second = (text.split("[CALL_ID]")[i][:9] for i in (1, 2))
    assert first != second
    assert f"[TOOL_RESULTS]{first}: 3[/TOOL_RESULTS][TOOL_RESULTS]{second}: noon" in text


@pytest.mark.parametrize("name", ["llama3", "harmony"])
def test_several_calls_are_told_one_by_one_to_a_model_that_makes_one_at_once(name: str) -> None:
    template, _ = MADE[name]
    text = template.text([ASKED, BOTH, Message("tool", "three"), Message("tool", "noon")], tools=TOOLS)
    places = [text.rindex(word) for word in ("Weather in Oslo?", "three", "noon")]
    assert places == sorted(places)
    assert "get_weather" in text[places[0] : places[1]]
    assert "now" in text[places[1] : places[2]]


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    template, _ = MADE["gemma"]
    turns = [Message("system", "Be brief."), ASKED, CALLED, RETURNED]
    text = template.text(turns, tools=TOOLS)
    begin, *rest = text.split("<start_of_turn>")[1:]
    assert begin.startswith("user\nBe brief.\n\nYou may call functions.")
    assert begin.endswith("\n\nWeather in Oslo?<end_of_turn>\n")
    assert json.dumps(TOOLS[0].to_json()["function"], ensure_ascii=False) in begin
    assert rest == [
        'model\n{"name": "get_weather", "arguments": {"city": "Oslo <é>"}}<end_of_turn>\n',
        'user\nget_weather returned:\n{"temperature": 3}<end_of_turn>\n',
        "model\n",
    ]
    # What several calls returned is one message, as roles alternate.
    both = template.text([ASKED, BOTH, Message("tool", "3"), Message("tool", "noon")])
    assert "get_weather returned:\n3\n\nnow returned:\nnoon<end_of_turn>" in both


def test_a_base_model_is_given_no_tools() -> None:
    template = ChatTemplate(DOCUMENT, byte_vocabulary(control=("</s>",), ends=["</s>"]))
    with pytest.raises(TemplateError, match="base model"):
        template.render([ASKED], tools=TOOLS)
    with pytest.raises(TemplateError, match="base model"):
        template.render([ASKED, CALLED, RETURNED])


def test_a_drafter_reads_calls_as_text_and_of_no_tools() -> None:
    template, vocabulary = MADE["gemma"]
    ids = draft_prompt(template, [Message("system", "Be brief."), ASKED, CALLED, RETURNED])
    assert ids is not None
    text = vocabulary.decode(ids).decode()
    assert '{"name": "get_weather", "arguments": {"city": "Oslo <é>"}}' in text
    assert "You may call" not in text


def test_a_small_number_stands_for_ascii_alone() -> None:
    """A template that escapes what is not ASCII leaves what protects a message as it is."""
    for source in (HERMES, LLAMA_3, GEMMA):
        escaping = source.replace("| tojson(", "| tojson(ensure_ascii=True, ").replace(
            "| tojson }", "| tojson(ensure_ascii=True) }"
        )
        control = ("<s>", "<tool_call>", "<|im_start|>", "<|eot_id|>", "<|im_end|>")
        template = ChatTemplate(escaping, byte_vocabulary(control=control, bos="<s>", ends=["<|im_end|>"]))
        text = template.text([ASKED], tools=[Tool("now", "<|im_start|> é\x7f🙂 [x]")])
        assert "<|im_start|>" in text.partition("now")[2]
        assert ("\\u00e9\\u007f\\ud83d\\ude42 [x]" in text) == (source != GEMMA)
