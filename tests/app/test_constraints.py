"""What people and clients say of schemas and grammars."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes import byte_vocabulary

from edgellm.app.constraints import constraint_of_response_format, grammar_said, schema_said
from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.runtime.request import BadRequest
from edgellm.runtime.text.guidance import Grammar

VOCABULARY = byte_vocabulary(control=["<end>"], ends=["<end>"])
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def takes(grammar: Grammar, text: str) -> bool:
    tokens = [*text.encode(), min(VOCABULARY.end_tokens)]
    return grammar.of(VOCABULARY).start().n_legal(tokens) == len(tokens)


def test_a_schema_is_a_file_or_json_or_any_object(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('\ufeff{"type": "integer"}', encoding="utf-8")
    assert takes(schema_said(str(file)), "12")
    assert takes(schema_said(' {"type": "integer"}'), "12")
    assert takes(schema_said("json_object"), '{"a": 1}')
    assert not takes(schema_said("json_object"), "[1]")


def test_a_grammar_is_a_file_or_its_text(tmp_path: Path) -> None:
    file = tmp_path / "yes.lark"
    file.write_text('start: "yes"\n')
    assert takes(grammar_said(str(file)), "yes")
    assert takes(grammar_said('start: "no" | "perhaps"'), "no")
    assert takes(grammar_said("/[0-9]+/"), "42")
    assert takes(grammar_said('root ::= "a" | "b"'), "b")


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('{"type": "null"}',))
    writer.start()
    assert takes(schema_said(str(pipe)), "null")
    writer.join()


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    large, binary = tmp_path / "large", tmp_path / "binary"
    large.write_bytes(b" " * 300_000)
    binary.write_bytes(b"\xff\xfe\x00")
    for said in (str(tmp_path / "none"), str(tmp_path), str(large), str(binary), "x" * 5_000, "\0", ""):
        for read in (schema_said, grammar_said):
            with pytest.raises(EdgellmError) as error:
                read(said)
            assert error.value.exit_code == USAGE
            assert len(str(error.value)) < 300
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "good", "bad"),
    [
        ({"type": "json_object"}, '{"b": [1]}', "[1]"),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, '{"a": 1}', "{}"),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True, "description": "d"}},
            '{"a": 1}',
            "{}",
        ),
    ],
)
def test_a_response_format_is_held_to(given: Any, good: str, bad: str) -> None:
    held = constraint_of_response_format(given, VOCABULARY)
    assert held is not None
    for text, is_good in ((good, True), (bad, False)):
        tokens = [*text.encode(), min(VOCABULARY.end_tokens)]
        assert (held.start().n_legal(tokens) == len(tokens)) is is_good


@pytest.mark.parametrize("given", [None, {"type": "text"}])
def test_text_is_held_to_nothing(given: Any) -> None:
    assert constraint_of_response_format(given, VOCABULARY) is None


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("json", "response_format is"),
        ([], "response_format is"),
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": ["text"]}, "response_format.type"),
        ({"type": "text", "schema": {}}, "response_format.schema"),
        ({"type": "json_object", "json_schema": {}}, "response_format.json_schema"),
        ({"type": "json_schema"}, "response_format.json_schema is"),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "json_schema.schema is missing"),
        ({"type": "json_schema", "json_schema": {"name": 1, "schema": {}}}, "json_schema.name"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}, "json_schema.strict"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "more": 1}}, "json_schema.more"),
        ({"type": "json_schema", "json_schema": {"schema": "{}"}}, "json_schema.schema is no object"),
        ({"type": "json_schema", "json_schema": {"schema": {"not": {}}}}, 'json_schema.schema: .*"not"'),
    ],
)
def test_another_form_is_refused_by_its_field(given: Any, field: str) -> None:
    with pytest.raises(BadRequest, match=field):
        constraint_of_response_format(given, VOCABULARY)
