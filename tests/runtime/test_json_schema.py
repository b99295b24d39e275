"""What of a JSON schema is held to; what is not is refused by name, and not compiled at any price."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import byte_vocabulary

from edgellm.runtime.request import BadRequest
from edgellm.runtime.text.guidance import schema_grammar

VOCABULARY = byte_vocabulary(control=["<end>"], ends=["<end>"])
TEXT = {"type": "string"}


def takes(schema: object, text: str) -> bool:
    tokens = [*text.encode(), min(VOCABULARY.end_tokens)]
    return schema_grammar(schema).of(VOCABULARY).start().n_legal(tokens) == len(tokens)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": TEXT}, "not"),
        ({"properties": {"a": {"uniqueItems": True}}}, '#/properties/a has "uniqueItems"'),
        ({"items": {"contains": TEXT}}, "contains"),
        ({"propertyNames": TEXT}, "propertyNames"),
        ({"if": TEXT, "then": TEXT}, "if"),
        ({"dependentRequired": {}}, "dependentRequired"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"$dynamicRef": "#x"}, "dynamicRef"),
        ({"$anchor": "x"}, "anchor"),
        ({"type": "object", "propertes": {}}, "propertes"),
        ({"type": "string", "nullable": True}, "nullable"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"$ref": "https://example.org/schema.json"}, "another document, https://example.org/schema.json"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"type": "string", "format": "klingon"}, "klingon"),
        ({"type": "strin"}, "strin"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "(a)\\1"}, "backreference"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"allOf": [TEXT, {"type": "integer"}]}, "types"),
        ({"type": "array", "minItems": 3, "maxItems": 1}, "minItems"),
        ({"type": "integer", "exclusiveMinimum": True}, "exclusiveMinimum"),
        ({"properties": {"a": 1}}, "#/properties/a"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}, "without an end"),
        ({"$ref": "#"}, "without an end"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "without an end"),
        ({"properties": {f"p{i}": TEXT for i in range(401)}}, "401 properties that may be left out"),
        (False, "false"),
        ("[", "JSON"),
        ('{"minimum": NaN}', "NaN"),
        ({"const": float("inf")}, "JSON"),
        ({"const": {1, 2}}, "JSON"),
        ("3", "neither"),
        ({"enum": ["\ud800"]}, "schema"),
    ],
    ids=str,
)
def test_what_cannot_be_held_to_is_refused_by_name(schema: object, named: str) -> None:
    with pytest.raises(BadRequest, match=named.replace("$", r"\$")) as refusal:
        schema_grammar(schema).of(VOCABULARY)
    assert "\n" not in str(refusal.value)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = TEXT
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def chained(n: int) -> dict[str, Any]:
    """Each a pattern and the next one."""
    parts = {
        f"p{i}": {"pattern": f"(a|b)*a(a|b){{{i}}}", "allOf": [{"$ref": f"#/$defs/p{i + 1}"}, {"type": "string"}]}
        for i in range(n)
    }
    return {"$defs": {**parts, f"p{n}": TEXT}, "$ref": "#/$defs/p0"}


@pytest.mark.parametrize(
    "schema",
    [
        nested(70),
        "[" * 100_000,
        {"enum": ["x" * 300_000]},
        {"type": "object", "properties": {f"p{i}": TEXT for i in range(1_001)}},
        {"anyOf": [{"const": i} for i in range(10_001)]},
        {"type": "integer", "multipleOf": 999_983},
        {"allOf": [{"type": "integer", "multipleOf": 97}, {"multipleOf": 89}, {"multipleOf": 83}]},
        {"type": "number", "multipleOf": 1e-300},
        {"type": "object", "patternProperties": {f"^{i}": TEXT for i in range(101)}},
        {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(2, 30)]},
        {"allOf": [{"properties": {"x": {"pattern": f"(a|b)*a(a|b){{{i}}}"}}} for i in range(2, 30)]},
        chained(30),
    ],
    ids=["deep", "deeper", "long", "wide", "many", "multiple", "multiples", "fine", "names", "and", "below", "chain"],
)
def test_what_would_take_too_much_is_refused_before_it_is_compiled(schema: object) -> None:
    with pytest.raises(BadRequest, match="schema"):
        schema_grammar(schema)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"title": "T", "default": 1, "x-order": 2, "uniqueItems": False, "type": "integer"}, "1", "a"),
        ({"type": "object", "minProperties": 1}, '{"a": 1}', "{}"),
        ({"type": "object", "maxProperties": 1}, '{"a": 1}', '{"a": 1, "b": 2}'),
        ({"type": "number", "multipleOf": 0.01}, "1.25", "1.255"),
        ({"type": "array", "items": [TEXT, {"type": "null"}], "additionalItems": False}, '["a", null]', '["a", 1]'),
        ({"type": "string", "maxLength": 2}, '"😀é"', '"abc"'),
        ({"const": "é\"\n"}, '"é\\"\\n"', '"e"'),
        ({"$id": "https://a/b", "$defs": {"x": TEXT}, "$ref": "https://a/b#/$defs/x"}, '"a"', "1"),
        ({"type": "object", "properties": {"description": TEXT, "enum": TEXT}, "required": ["enum"]},
         '{"description": "d", "enum": "e"}', '{"enum": 1}'),
        ("json_object", '{"a": [1, {"b": null}]}', "[1]"),
        ('{"type": "boolean"}', "true", "1"),
        (True, "[1, true]", "x"),
    ],
    ids=str,
)  # fmt: skip
def test_a_schema_takes_what_matches_and_nothing_else(schema: object, good: str, bad: str) -> None:
    assert takes(schema, good)
    assert not takes(schema, bad)


def test_json_comes_in_one_form() -> None:
    assert takes({"type": "object"}, '{"a": 1, "b": [2, 3]}')
    for other in ('{"a":1}', '{ "a": 1}', '{"a": 1}\n', '{"a": 1,"b": 2}'):
        assert not takes({"type": "object"}, other)
