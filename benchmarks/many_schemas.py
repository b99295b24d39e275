"""Answers held to each of some 200 schemas: do all that ended match, and what does forced text bring?

    python benchmarks/many_schemas.py MODEL.gguf RESULTS.jsonl [--draft DRAFT.gguf] [--minutes 25] [--schemas FILE]

Every schema is asked once, with forced text as drafts; every fifth on three sides in turn: also without forced text,
and as free text of as many tokens. A line is written for each answer, at once: started again, it goes on behind what is
there, and it ends after so many minutes. The package jsonschema judges what ended. `--report` only tells what is known.
A line of FILE is {"question": ..., "schema": ...}; without one, those of `schemas.py` are asked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from constrained import Unforced, ask
from schemas import all_schemas

from edgellm.runtime import Engine, EngineOptions, load
from edgellm.runtime.answer import Answer
from edgellm.runtime.request import BadRequest
from edgellm.runtime.text.guidance import schema_grammar

FORCED, PLAIN, FREE = "forced", "not forced", "free text"


def told(side: str, answer: Answer) -> dict[str, Any]:
    stats = answer.stats
    return {
        "side": side,
        "finish": answer.finish_reason,
        "tokens": len(answer.tokens),
        "rounds": stats.n_rounds,
        "tok/s": stats.tokens_per_s,
        "choosing": stats.sample_s / stats.decode_s if stats.decode_s else 0.0,
        "accepted_by": dict(stats.accepted_by),
    }


def asked(
    engine: Engine, question: str, schema: Any, max_tokens: int, *, is_compared: bool
) -> Iterator[dict[str, Any]]:
    """A record of each side."""
    started = time.perf_counter()
    try:
        held = schema_grammar(schema).of(engine.model.vocabulary)
    except BadRequest as error:
        yield {"side": "refused", "why": str(error)}
        return
    compile_s = time.perf_counter() - started
    answer = ask(engine, question, held, max_tokens)
    record = told(FORCED, answer) | {"text": answer.text, "compile_s": compile_s}
    if answer.finish_reason == "stop":
        found = list(jsonschema.Draft202012Validator(schema).iter_errors(json.loads(answer.text)))
        record["matches"] = not found
    yield record
    if is_compared:
        plain = ask(engine, question, Unforced(held), max_tokens)
        yield told(PLAIN, plain) | {"same": plain.tokens == answer.tokens}
        yield told(FREE, ask(engine, f"{question} Explain it in a long text.", None, len(answer.tokens)))


def report(records: list[dict[str, Any]]) -> None:
    of_side = defaultdict[str, list[dict[str, Any]]](list)
    for record in records:
        of_side[record["side"]].append(record)
    forced = of_side[FORCED]
    ended = [record for record in forced if record["finish"] == "stop"]
    print(f"{len(forced)} schemas held to, {len(of_side['refused'])} refused by name")
    print(f"{len(ended)} answers ended, {sum(record['matches'] for record in ended)} of them match")
    for record in ended:
        if not record["matches"]:
            print(f"  schema {record['i']} ({record['kind']}): {record['text'][:200]}")
    print(f"others: {dict(Counter(record['finish'] for record in forced if record['finish'] != 'stop'))}")
    for record in of_side["refused"]:
        print(f"  refused: {record['why']}")
    sides = {side: {record["i"]: record for record in of_side[side]} for side in (FORCED, PLAIN, FREE)}
    both = sorted(set.intersection(*(set(found) for found in sides.values())))
    if not both:
        return
    n_same = sum(sides[PLAIN][i]["same"] for i in both)
    print(f"{len(both)} on three sides, {n_same} with the same answer with forced text and without:")
    for side, found in sides.items():
        rows = [found[i] for i in both]
        ratio = statistics.median(found[i]["tok/s"] / sides[FREE][i]["tok/s"] for i in both)
        a_round = sum(row["tokens"] for row in rows) / sum(row["rounds"] for row in rows)
        speed = statistics.median(row["tok/s"] for row in rows)
        choosing = statistics.median(row["choosing"] for row in rows)
        print(
            f"{side:>10}: {a_round:.2f} tokens a pass, {speed:6.1f} tok/s, {ratio:.2f} x free text, "
            f"choosing {choosing:.1%} of the time"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--schemas", type=Path)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--every", type=int, default=5, help="one in so many is asked on three sides; 0: none")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    schemas = all_schemas()
    if given.schemas is not None:
        lines = map(json.loads, given.schemas.read_text(encoding="utf-8").splitlines())
        schemas = [(line.get("kind", ""), line["question"], line["schema"]) for line in lines]
    known: list[dict[str, Any]] = []
    if given.results.exists():
        known = [json.loads(line) for line in given.results.read_text(encoding="utf-8").splitlines()]
    done = {record["i"] for record in known}
    ends_at = time.monotonic() + 60 * given.minutes
    waiting = [] if given.report else [i for i in range(len(schemas)) if i not in done]
    if waiting:
        options = EngineOptions(n_ctx=2048, learn="off")
        with load(given.model, given.draft, options) as engine, given.results.open("a", encoding="utf-8") as file:
            for i in waiting:
                if time.monotonic() > ends_at:
                    break
                kind, question, schema = schemas[i]
                is_compared = given.every > 0 and i % given.every == 0
                found = list(asked(engine, question, schema, given.max_tokens, is_compared=is_compared))
                records = [{"i": i, "kind": kind} | record for record in found]
                # All of a schema's in one write, so that none is there in part.
                file.write("".join(json.dumps(record) + "\n" for record in records))
                file.flush()
                known += records
    report(known)


if __name__ == "__main__":
    main()
