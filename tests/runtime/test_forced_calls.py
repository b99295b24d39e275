"""A forced call is one of the tools, with arguments that fit, in the very form in which calls are read."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from fakes import byte_vocabulary

from edgellm.runtime.text.markers import marker_ids
from edgellm.runtime.text.tool_grammar import forced_call_grammar
from edgellm.runtime.text.tool_stream import CallStream
from edgellm.runtime.text.tools import FormatName, NamedTool, Tool, format_named

llguidance = pytest.importorskip("llguidance")

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("get_weather", "", CITY), Tool("now"))
MARKERS = (
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|channel|>", "<|constrain|>", "<|message|>", "<|call|>",
)  # fmt: skip
OLD = tuple(marker for marker in MARKERS if marker != "[ARGS]")
CALL, NOW = '{"name": "get_weather", "arguments": {"city": "Oslo"}}', '{"name": "now", "arguments": {}}'
WRITTEN: list[tuple[FormatName, Sequence[str], str, int]] = [
    ("hermes", MARKERS, f"<tool_call>\n{CALL}\n</tool_call>", 1),
    ("hermes", (), f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{NOW}\n</tool_call>", 2),
    (
        "tagged",
        MARKERS,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
        1,
    ),
    ("llama3", MARKERS, CALL.replace("arguments", "parameters"), 1),
    ("mistral", OLD, f"[TOOL_CALLS][{CALL}, {NOW}]", 2),
    ("mistral", MARKERS, '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]now[ARGS]{}', 2),
    (
        "harmony",
        MARKERS,
        '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>',
        1,
    ),
    ("json", MARKERS, f"{CALL}\n{NOW}", 2),
]


class Words:
    """A vocabulary as llguidance asks for one."""

    bos_token_id = None

    def __init__(self, markers: Sequence[str]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)]
        self.tokens += [b"\xff" + marker.encode() for marker in (*markers, "<end>")]
        self.special_token_ids = list(range(256, len(self.tokens)))
        self.eos_token_id = len(self.tokens) - 1

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def n_taken(grammar: str, markers: Sequence[str], ids: Sequence[int]) -> tuple[int, bool]:
    """How many of the tokens a grammar takes, and whether the answer may end behind them."""
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Words(markers)))
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    n = matcher.validate_tokens(list(ids))
    matcher.consume_tokens(list(ids[:n]))
    return n, matcher.is_accepting()


@pytest.mark.parametrize(("form", "markers", "written", "n_calls"), WRITTEN, ids=[f"{w[0]}-{w[3]}" for w in WRITTEN])
def test_what_the_grammar_takes_is_read_as_calls(
    form: FormatName, markers: Sequence[str], written: str, n_calls: int
) -> None:
    words = byte_vocabulary(control=markers)
    known = format_named(form, words)
    ids = marker_ids(written, words)
    assert n_taken(forced_call_grammar(known, TOOLS), markers, ids) == (len(ids), True)
    stream = CallStream(known, TOOLS, words)
    for token in ids:
        stream.feed(token if token in stream.tokens else words.piece(token))
    stream.end()
    assert [call.name for call in stream.calls] == ["get_weather", "now"][:n_calls]
    assert json.loads(stream.calls[0].arguments) == {"city": "Oslo"}
    only = forced_call_grammar(known, TOOLS, parallel=False)
    assert (n_taken(only, markers, ids) == (len(ids), True)) == (n_calls == 1)
    other = forced_call_grammar(known, TOOLS, NamedTool("now"))
    assert n_taken(other, markers, ids)[0] < len(ids)


@pytest.mark.parametrize(("form", "markers", "written", "n_calls"), WRITTEN, ids=[f"{w[0]}-{w[3]}" for w in WRITTEN])
def test_what_does_not_fit_is_not_taken(form: FormatName, markers: Sequence[str], written: str, n_calls: int) -> None:
    words = byte_vocabulary(control=markers)
    grammar = forced_call_grammar(format_named(form, words), TOOLS)
    for wrong in ("Sure.", written.replace("get_weather", "get_time"), written.replace("city", "town")):
        ids = marker_ids(wrong, words)
        assert n_taken(grammar, markers, ids)[0] < len(ids)


def test_a_tool_that_is_not_there_cannot_be_forced() -> None:
    with pytest.raises(ValueError, match="no tool"):
        forced_call_grammar(format_named("json", byte_vocabulary()), TOOLS, NamedTool("later"))
