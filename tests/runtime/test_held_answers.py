"""A real model held to schemas: every answer that ended matches, and is the same whatever drafts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgellm.runtime import Engine, EngineOptions, Sampling, load
from edgellm.runtime.answer import Answer
from edgellm.runtime.constraint import Constraint, ConstraintState, Mask
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.generation import Generation
from edgellm.runtime.request import Request
from edgellm.runtime.sampling import GREEDY
from edgellm.runtime.text.guidance import schema_grammar

MAX_TOKENS = 40
TEXT: dict[str, Any] = {"type": "string", "maxLength": 20}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 99}


def of(required: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required) or list(properties),
        "additionalProperties": False,
    }


def some(items: Any, least: int = 1, most: int = 3) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


TREE = {
    "$defs": {"node": of(["value"], value=COUNT, below=some({"$ref": "#/$defs/node"}, 0, 2))},
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, Any] = {
    "person": of(name=TEXT, age=COUNT),
    "optional": of(["name"], name=TEXT, nick=TEXT, age=COUNT),
    "all optional": {"type": "object", "properties": {"a": COUNT, "b": COUNT}, "additionalProperties": False},
    "nested": of(person=of(name=TEXT, home=of(street=TEXT, number=COUNT))),
    "enum": of(colour={"enum": ["red", "green", "blue"]}, size={"enum": ["S", "M", "L"]}),
    "enum of all types": some({"enum": ["a", 1, 2.5, None, True, {"x": [1]}]}),
    "constants": of(type={"const": "weather"}, version={"const": 3}, city=TEXT),
    "array": some(TEXT),
    "array of numbers": some(COUNT, 3, 3),
    "matrix": some(some(COUNT, 2, 2), 2, 2),
    "tuple": {"type": "array", "prefixItems": [TEXT, COUNT, {"type": "boolean"}], "items": False, "minItems": 3},
    "recursive": TREE,
    "list": {
        "$defs": {"l": {"anyOf": [{"type": "null"}, of(head=COUNT, tail={"$ref": "#/$defs/l"})]}},
        "$ref": "#/$defs/l",
    },
    "pattern": of(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}),
    "loose pattern": {"type": "string", "pattern": "[0-9]+", "maxLength": 12},
    "date": of(day={"type": "string", "format": "date"}, at={"type": "string", "format": "time"}),
    "mail": of(mail={"type": "string", "format": "email", "maxLength": 30}, id={"type": "string", "format": "uuid"}),
    "bounds": of(
        p={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, n={"type": "integer", "minimum": -5}
    ),
    "large bounds": of(year={"type": "integer", "minimum": 1900, "maximum": 2100}),
    "multiples": of(even={"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 1000}),
    "any of": some({"anyOf": [of(kind={"const": "cat"}, lives=COUNT), of(kind={"const": "dog"}, tricks=some(TEXT))]}),
    "one of": {"oneOf": [of(ok={"const": True}, value=COUNT), of(ok={"const": False}, error=TEXT)]},
    "all of": {
        "allOf": [{"properties": {"a": COUNT}, "required": ["a"]}, {"type": "object", "properties": {"b": TEXT}}]
    },
    "nullable": of(name={"type": ["string", "null"], "maxLength": 10}, age={"anyOf": [COUNT, {"type": "null"}]}),
    "names of unicode": of(**{"größe": COUNT, 'naïve "x"': {"type": "boolean"}, "日本": TEXT}),
    "values of unicode": some({"enum": ["äöü", "日本語", "😀", "\u2028", "a\\b", "tab\t", 'quote"']}),
    "pattern of unicode": {"type": "string", "pattern": "^[а-я]{3,8}$"},
    "names by pattern": {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,4}$": COUNT},
        "additionalProperties": False,
    },
    "dictionary": {"type": "object", "additionalProperties": COUNT, "maxProperties": 3},
    "boolean": {"type": "boolean"},
    "described": {**of(q=TEXT), "title": "A question", "description": "What to ask.", "examples": [{}]},
    "call": of(name={"const": "get_weather"}, arguments=of(["city"], city=TEXT, unit={"enum": ["C", "F"]})),
}


@dataclass(frozen=True)
class Unforced:
    """The same constraint, which forces no text."""

    held: Constraint

    def start(self) -> ConstraintState:
        return _Unforced(self.held.start())


@dataclass
class _Unforced:
    state: ConstraintState

    def allowed(self, ahead: Sequence[int] = ()) -> Mask:
        return self.state.allowed(ahead)

    def n_legal(self, tokens: Sequence[int]) -> int:
        return self.state.n_legal(tokens)

    def forced(self, ahead: Sequence[int] = ()) -> bytes:
        return b""

    def advance(self, tokens: Sequence[int]) -> None:
        self.state.advance(tokens)

    @property
    def ending(self) -> list[int]:
        return self.state.ending


@pytest.fixture(scope="module")
def engine(smollm2_path: Path) -> Iterator[Engine]:
    """Copies alone draft."""
    with load(smollm2_path, None, EngineOptions(n_ctx=512, exact=True, learn="off")) as engine:
        yield engine


@pytest.fixture(scope="module")
def pair(smollm2_path: Path) -> Iterator[Engine]:
    """With itself for a drafter, which always drafts."""
    options = EngineOptions(n_ctx=512, n_draft=7, fixed=True, exact=True, learn="off")
    with load(smollm2_path, smollm2_path, options) as engine:
        yield engine


def answer(engine: Engine, held: Constraint, question: str, **settings: Any) -> Answer:
    settings = {"max_tokens": MAX_TOKENS} | settings
    return Generation(engine, Request.of(question, constraint=held, **settings)).finish()


def check_the_same(answers: Sequence[Answer], plain: Answer, schema: Any) -> None:
    assert {it.text for it in answers} == {plain.text}
    assert {it.tokens for it in answers} == {plain.tokens}
    assert {it.finish_reason for it in answers} == {plain.finish_reason}
    if plain.finish_reason == "stop":
        jsonschema.validate(json.loads(plain.text), schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_that_ended_matches_and_is_the_same_with_forced_text_and_without(engine: Engine, name: str) -> None:
    held = schema_grammar(SCHEMAS[name]).of(engine.model.vocabulary)
    question = f"Answer in JSON: an example of {name}."
    plain = answer(engine, held, question, n_draft=0)
    drafted, undrafted = answer(engine, held, question), replace(engine, drafter=NoDrafter())
    forced = answer(undrafted, held, question)
    check_the_same([drafted, forced], plain, SCHEMAS[name])
    assert forced.stats.n_rounds <= plain.stats.n_rounds


@pytest.mark.parametrize("name", list(SCHEMAS)[::5])
def test_a_drafter_changes_nothing_of_a_held_answer(pair: Engine, name: str) -> None:
    held = schema_grammar(SCHEMAS[name]).of(pair.model.vocabulary)
    question = f"Answer in JSON: an example of {name}."
    for sampling in (GREEDY, Sampling(temperature=1.0, top_k=0, seed=list(SCHEMAS).index(name))):
        plain = answer(pair, held, question, sampling=sampling, n_draft=0)
        answers = [answer(pair, it, question, sampling=sampling) for it in (held, Unforced(held))]
        check_the_same(answers, plain, SCHEMAS[name])


@pytest.mark.parametrize("name", ["boolean", "enum", "large bounds", "array of numbers", "pattern", "person", "call"])
def test_an_answer_of_bounded_length_ends(engine: Engine, name: str) -> None:
    """So that the tests above say something."""
    held = schema_grammar(SCHEMAS[name]).of(engine.model.vocabulary)
    assert answer(engine, held, "An example, in JSON.", max_tokens=200).finish_reason == "stop"


def test_an_unseeded_answer_drawn_with_the_drafters_probabilities_matches_too(pair: Engine) -> None:
    held = schema_grammar(SCHEMAS["person"]).of(pair.model.vocabulary)
    for _ in range(3):
        told = answer(pair, held, "A person, in JSON.", sampling=Sampling(temperature=1.5))
        assert told.finish_reason == "stop"
        jsonschema.validate(json.loads(told.text), SCHEMAS["person"])


def test_an_answer_may_be_cut_off_and_says_so(engine: Engine) -> None:
    held = schema_grammar(SCHEMAS["nested"]).of(engine.model.vocabulary)
    cut = answer(engine, held, "A person, in JSON.", max_tokens=6)
    assert cut.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut.text)
    stopped = answer(engine, held, "A person, in JSON.", stop=('"name"',))
    assert stopped.finish_reason == "stop_string"
    assert stopped.text == '{"person": {'


def test_an_engine_is_asked_with_schemas_and_grammars(engine: Engine) -> None:
    told = engine.generate("A person.", schema=SCHEMAS["person"], max_tokens=MAX_TOKENS).finish()
    jsonschema.validate(json.loads(told.text), SCHEMAS["person"])
    told = engine.generate("Is water wet?", grammar="/(yes|no)!/", max_tokens=MAX_TOKENS).finish()
    assert (told.text, told.finish_reason) in {("yes!", "stop"), ("no!", "stop")}
    assert json.loads(engine.generate("{}", schema="json_object", stop=", ", max_tokens=1).finish().text + "}") == {}
    penalised = Sampling(repeat_penalty=1.5)
    told = engine.generate("A person.", schema=json.dumps(SCHEMAS["person"]), sampling=penalised).finish()
    jsonschema.validate(json.loads(told.text), SCHEMAS["person"])


@pytest.mark.parametrize("n_draft", [0, None])
def test_log_probabilities_are_told_of_the_tokens_that_were_chosen(engine: Engine, n_draft: int | None) -> None:
    held = schema_grammar({"enum": ["red", "blue"]}).of(engine.model.vocabulary)
    told = answer(engine, held, "A colour.", n_logprobs=1, n_draft=n_draft)
    assert told.finish_reason == "stop"
    chosen = [one.token for one in told.logprobs or ()]
    assert [token for token in chosen if token not in engine.model.vocabulary.end_tokens] == list(told.tokens)
