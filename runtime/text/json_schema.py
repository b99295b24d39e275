"""What of a JSON schema an answer is held to, and what is refused by name.

JSON Schema passes over keywords that it does not know. Here a keyword is one that is held to, one that only describes,
or an error: an answer that was promised to match must.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from edgellm.runtime.request import BadRequest

MAX_BYTES = 1 << 18  # of a schema's text
MAX_DEPTH = 64  # schemas inside schemas
MAX_SCHEMAS = 10_000
MAX_PROPERTIES = 1_000  # of one object: compiling optional ones takes time that grows with their square
MAX_OPTIONAL = 400  # of these: all are looked at behind each
MAX_NAME_PATTERNS = 100  # of one object: each is compared with all others
MAX_PATTERNS_TOGETHER = 8  # that a text may have to match at once: what that takes grows with their product
MAX_MULTIPLE = 100_000  # states of the automaton that counts multiples, some 0.5 KiB each

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})  # of names to schemas
_LISTS = frozenset({"anyOf", "allOf", "oneOf", "prefixItems"})
_SINGLE = frozenset({"additionalProperties", "additionalItems", "items"})
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_HELD = _MAPS | _LISTS | _SINGLE | _NUMBERS | {
    "$id",
    "$ref",
    "const",
    "enum",
    "format",
    "maxItems",
    "maxLength",
    "maxProperties",
    "minItems",
    "minLength",
    "minProperties",
    "pattern",
    "required",
    "type",
}  # fmt: skip
_DESCRIBING = frozenset(
    {
        "$comment",
        "$schema",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "default",
        "deprecated",
        "description",
        "discriminator",
        "example",
        "examples",
        "externalDocs",
        "readOnly",
        "title",
        "writeOnly",
        "xml",
    }
)
_OFF = {"nullable": False, "uniqueItems": False}  # ask for nothing at these values


def read_schema(given: object) -> dict[str, Any]:
    """A schema that an answer can be held to, as far as its keywords go; those that only describe are left out.

    Args:
        given: a schema as an object, a boolean or JSON text.

    Raises:
        BadRequest: it is none, too large, or holds what an answer cannot be held to; the message names it.
    """
    schema = _plain(given)
    multiples: list[Decimal] = []
    found = _Walk(multiples).cleaned(schema, "#", 0)
    if _common_multiple(multiples) > MAX_MULTIPLE:
        raise BadRequest(
            f'the schema\'s "multipleOf" together have no common multiple up to {MAX_MULTIPLE:,}: take rounder ones'
        )
    _check_patterns(found)
    if found is False:
        raise BadRequest("the schema is false, which no answer matches")
    return found if isinstance(found, dict) else {}


def _plain(given: object) -> object:
    """As JSON has it, and of a bounded size."""
    try:
        text = given if isinstance(given, str) else json.dumps(given, allow_nan=False)
        if len(text) > MAX_BYTES:
            raise BadRequest(f"the schema is {len(text):,} characters long: {MAX_BYTES:,} is the most")
        return json.loads(text, parse_constant=_no_number)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest(f"the schema is no JSON: {str(error) or type(error).__name__}") from error


def _no_number(text: str) -> object:
    raise ValueError(f"{text} is no number of JSON")


class _Walk:
    """Through all schemas of a document."""

    def __init__(self, multiples: list[Decimal]) -> None:
        self._multiples, self._n_schemas = multiples, 0

    def cleaned(self, schema: object, path: str, depth: int) -> object:
        self._n_schemas += 1
        if depth > MAX_DEPTH or self._n_schemas > MAX_SCHEMAS:
            raise BadRequest(f"the schema is too large: {MAX_DEPTH} levels and {MAX_SCHEMAS:,} schemas are the most")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise BadRequest(f"the schema at {path} is neither an object nor true or false")
        kept = {}
        for name, value in schema.items():
            if name in _DESCRIBING or _is_extension(name) or (name in _OFF and value is _OFF[name]):
                continue
            if name not in _HELD:
                raise BadRequest(f'the schema at {path} has "{name}", which an answer cannot be held to: leave it out')
            kept[name] = self._value(name, value, f"{path}/{name}", depth)
        _check_properties(kept, path)
        return kept

    def _value(self, name: str, value: Any, path: str, depth: int) -> object:
        if name in _NUMBERS:
            self._number(name, value, path)
        if name in _MAPS and isinstance(value, dict):
            if len(value) > MAX_PROPERTIES:
                raise BadRequest(f"the schema at {path} has {len(value):,} entries: {MAX_PROPERTIES:,} are the most")
            if name == "patternProperties" and len(value) > MAX_NAME_PATTERNS:
                raise BadRequest(
                    f"the schema at {path} has more than {MAX_NAME_PATTERNS} patterns of names: merge some"
                )
            return {key: self.cleaned(it, f"{path}/{key}", depth + 1) for key, it in value.items()}
        if (name in _LISTS or name == "items") and isinstance(value, list):
            return [self.cleaned(it, f"{path}/{i}", depth + 1) for i, it in enumerate(value)]
        return self.cleaned(value, path, depth + 1) if name in _SINGLE else value

    def _number(self, name: str, value: object, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadRequest(f"the schema at {path} is no number")
        if name == "multipleOf":
            if not 1e-12 <= value <= 1e12:
                raise BadRequest(f"the schema at {path} is no number from 1e-12 to 1e12")
            self._multiples.append(Decimal(repr(value)))


def _is_extension(name: str) -> bool:
    """OpenAPI's own; those of the compiler would change what a schema means."""
    return name.startswith("x-") and name != "x-guidance"


def _check_properties(schema: Mapping[str, Any], path: str) -> None:
    """A name that is not declared may come twice, and counts once for whoever reads the object."""
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    n_required = len(set(map(str, required))) if isinstance(required, list) else 0
    if isinstance(properties := schema.get("properties"), dict):
        n_optional = len(properties) - len(
            properties.keys() & set(map(str, required if isinstance(required, list) else []))
        )
        if n_optional > MAX_OPTIONAL:
            raise BadRequest(
                f"the schema at {path} has {n_optional:,} properties that may be left out: {MAX_OPTIONAL} are the most"
            )
    if isinstance(least, int) and least > max(n_required, 1):
        raise BadRequest(
            f'the schema at {path} has "minProperties" {least}, which an answer cannot be held to: list those that '
            'must be there as "required"'
        )


def _check_patterns(root: object) -> None:
    """Texts that must match many patterns at once, because the schemas of an "allOf" have them each for itself."""
    waiting, n_seen = [root], 0
    while waiting:
        schema = waiting.pop()
        if isinstance(schema, list):
            waiting += schema
        if not isinstance(schema, dict):
            continue
        waiting += [value for name, value in schema.items() if name not in ("const", "enum")]
        together, n = _patterns(schema.get("allOf", []), root)
        n_seen += n
        if n_seen > 10 * MAX_SCHEMAS:
            raise BadRequest('the schema is too large: its "allOf" refer to each other too often')
        if max(together.values(), default=0) > MAX_PATTERNS_TOGETHER:
            raise BadRequest(
                f'the schema has an "allOf" in which more than {MAX_PATTERNS_TOGETHER} patterns are for one text: '
                "write them as one"
            )


def _patterns(begin: object, root: object) -> tuple[Counter[str], int]:
    """How many schemas have a pattern, by the property that they are of, and how many there are; through references."""
    found, seen = Counter[str](), set[int]()
    waiting = [("", begin)]
    while waiting:
        of, schema = waiting.pop()
        if isinstance(schema, list):
            waiting += [(of, one) for one in schema]
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        found[of] += ("pattern" in schema) + ("format" in schema)
        for name, value in schema.items():
            if name in _MAPS and isinstance(value, dict):
                waiting += value.items()
            elif name == "$ref" and isinstance(value, str):
                waiting.append((of, _referred(value, root)))
            elif name in _LISTS or name in _SINGLE:
                waiting.append((of, value))
    return found, len(seen)


def _referred(reference: str, root: object) -> object:
    """What a reference inside the document names; None where that is nothing."""
    found = root
    for part in reference.partition("#")[2].split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _common_multiple(numbers: list[Decimal]) -> int:
    """In units of the smallest decimal place that any of them has."""
    places = max((-int(number.normalize().as_tuple().exponent) for number in numbers), default=0)
    return math.lcm(*(int(number.scaleb(max(places, 0))) for number in numbers))
