"""Answers held to JSON schemas: tokens a pass and a second with forced text as drafts, without, and of free text.

    python benchmarks/constrained.py MODEL.gguf [--draft DRAFT.gguf] [--schemas FILE.jsonl] [--n 5] [--rounds 3]

The three sides run in turn, over the same weights. Free text is as many tokens of an answer to the same question, whose
end is not taken. A line of FILE.jsonl is {"question": ..., "schema": ...}; without one, five schemas of its own are
asked. Every answer that ended is judged by the package jsonschema. Only ratios mean anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from edgellm.runtime import Engine, EngineOptions, load
from edgellm.runtime.answer import Answer
from edgellm.runtime.constraint import Constraint, ConstraintState, Mask
from edgellm.runtime.generation import Generation
from edgellm.runtime.request import Request
from edgellm.runtime.text.guidance import schema_grammar

_TEXT: dict[str, Any] = {"type": "string", "maxLength": 40}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 10_000}


def _of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


OWN: list[tuple[str, dict[str, Any]]] = [
    ("Describe an invented person.", _of(first_name=_TEXT, last_name=_TEXT, age=_COUNT, email=_TEXT, city=_TEXT)),
    (
        "What is the weather in Oslo? Call the function.",
        _of(name={"const": "get_weather"}, arguments=_of(city=_TEXT, unit={"enum": ["celsius", "fahrenheit"]})),
    ),
    (
        "List two books.",
        _of(
            books={"type": "array", "items": _of(title=_TEXT, author=_TEXT, year=_COUNT), "minItems": 2, "maxItems": 2}
        ),
    ),
    ("Rate this review: great food, slow service.", _of(sentiment={"enum": ["good", "bad"]}, stars=_COUNT, why=_TEXT)),
    (
        "Plan a trip to Rome.",
        _of(destination=_TEXT, days=_COUNT, stops={"type": "array", "items": _TEXT, "maxItems": 4}),
    ),
]


@dataclass(frozen=True, slots=True)
class Unforced:
    """A constraint that forces no text."""

    held: Constraint

    def start(self) -> ConstraintState:
        return _Unforced(self.held.start())


@dataclass(frozen=True, slots=True)
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


def ask(engine: Engine, question: str, held: Constraint | None, max_tokens: int) -> Answer:
    return Generation(engine, Request.of(question, constraint=held, max_tokens=max_tokens)).finish()


def compare(engine: Engine, question: str, schema: Any, max_tokens: int) -> dict[str, Answer]:
    """The three sides once."""
    held = schema_grammar(schema).of(engine.model.vocabulary)
    found = {"forced": ask(engine, question, held, max_tokens)}
    found["not forced"] = ask(engine, question, Unforced(held), max_tokens)
    if found["forced"].tokens != found["not forced"].tokens:
        raise SystemExit(f"{question!r}: forced text changed the answer")
    if found["forced"].finish_reason == "stop":
        jsonschema.validate(json.loads(found["forced"].text), schema)
    free = f"{question} Answer in a long text."
    found["free text"] = ask(engine, free, None, len(found["forced"].tokens))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--schemas", type=Path)
    parser.add_argument("--n", type=int, default=len(OWN))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=200)
    given = parser.parse_args()
    asked = OWN
    if given.schemas is not None:
        lines = map(json.loads, given.schemas.read_text(encoding="utf-8").splitlines())
        asked = [(line["question"], line["schema"]) for line in lines]
    answers: dict[str, list[Answer]] = defaultdict(list)
    with load(given.model, given.draft, EngineOptions(n_ctx=2048, learn="off")) as engine:
        for _ in range(given.rounds):
            for question, schema in asked[: given.n]:
                for side, answer in compare(engine, question, schema, given.max_tokens).items():
                    answers[side].append(answer)
    report(answers)


def report(answers: dict[str, list[Answer]]) -> None:
    speeds = {side: [it.stats.tokens_per_s for it in told] for side, told in answers.items()}
    for side, told in answers.items():
        n_new, n_rounds = sum(it.stats.n_new for it in told), sum(it.stats.n_rounds for it in told)
        sample_s = sum(it.stats.sample_s for it in told) / sum(it.stats.decode_s for it in told)
        ratio = statistics.median(a / b for a, b in zip(speeds[side], speeds["free text"], strict=True))
        print(
            f"{side:>10}: {n_new:5,} tokens, {n_new / n_rounds:.2f} a pass, "
            f"{statistics.median(speeds[side]):6.1f} tok/s, {ratio:.2f} x free text, "
            f"choosing {sample_s:.1%} of the time"
        )
    n_ended = sum(it.finish_reason == "stop" for it in answers["forced"])
    print(f"{n_ended} of {len(answers['forced'])} held answers ended, and match")


if __name__ == "__main__":
    main()
