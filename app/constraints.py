"""What an answer is held to, as people and clients say it: files, JSON, grammars, OpenAI's `response_format`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.app.defaults import BadSetting
from edgellm.runtime.constraint import Constraint
from edgellm.runtime.request import BadRequest
from edgellm.runtime.text.guidance import JSON_OBJECT, Grammar, schema_grammar, text_grammar
from edgellm.runtime.text.json_schema import MAX_BYTES
from edgellm.runtime.text.vocabulary import Vocabulary

_FIELD = "response_format"


def schema_said(said: str) -> Grammar:
    """Of `--schema`: a file, JSON, or the word json_object.

    Raises:
        BadSetting: the file cannot be read.
        BadRequest: it is no schema, or one that an answer cannot be held to.
    """
    is_json = said.lstrip().startswith("{") or said.strip() in ("json_object", "true", "false")
    return schema_grammar(said.strip() if is_json else _read(Path(said).expanduser(), "a schema is a file or JSON"))


def grammar_said(said: str) -> Grammar:
    """Of `--grammar`: a file, or the text of a grammar.

    Raises:
        BadSetting: the file cannot be read.
        BadRequest: it is no grammar, or one that an answer cannot be held to.
    """
    is_text = said.lstrip().startswith(("/", "%", '"')) or ":" in said
    path = Path(said).expanduser()
    return text_grammar(said if is_text and not _is_file(path) else _read(path, "a grammar is a file or its text"))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text that is no name
        return False


def _read(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise BadSetting(f"{path} is larger than {MAX_BYTES:,} bytes: no schema or grammar may be")
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, BadSetting):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no text in UTF-8"
        raise BadSetting(f"{str(path)[:80]}: {reason} ({what})") from error


def constraint_of_response_format(response_format: object, vocabulary: Vocabulary) -> Constraint | None:
    """What OpenAI's `response_format` asks for: nothing for text, any object for json_object, or a json_schema.

    A schema is held to whether it is `strict` or not.

    Raises:
        BadRequest: it is of another form, or cannot be held to; the message names the field.
    """
    if response_format is None:
        return None
    given = _object(response_format, _FIELD)
    kind = given.get("type")
    if kind == "json_schema":
        _only(given, _FIELD, "type", "json_schema")
        return _of_json_schema(given.get("json_schema"), f"{_FIELD}.json_schema", vocabulary)
    _only(given, _FIELD, "type")
    if kind == "text":
        return None
    if kind == "json_object":
        return schema_grammar(JSON_OBJECT).of(vocabulary)
    raise BadRequest(f"{_FIELD}.type is {str(kind)[:80]!r}: take text, json_object or json_schema")


def _of_json_schema(given: object, field: str, vocabulary: Vocabulary) -> Constraint:
    asked = _object(given, field)
    _only(asked, field, "name", "description", "schema", "strict")
    for name in ("name", "description"):
        if not isinstance(asked.get(name, ""), str | None):
            raise BadRequest(f"{field}.{name} is no text")
    if not isinstance(asked.get("strict"), bool | None):
        raise BadRequest(f"{field}.strict is neither true nor false")
    if "schema" not in asked:
        raise BadRequest(f"{field}.schema is missing")
    schema = asked["schema"]
    if not isinstance(schema, Mapping):
        raise BadRequest(f"{field}.schema is no object")
    try:
        return schema_grammar(schema).of(vocabulary)
    except BadRequest as error:
        raise BadRequest(f"{field}.schema: {error}") from error


def _object(value: object, field: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadRequest(f"{field} is no object")
    return value


def _only(given: Mapping[str, Any], field: str, *names: str) -> None:
    if unknown := [str(name) for name in given if name not in names]:
        raise BadRequest(f"{field}.{unknown[0][:80]} is not read: leave it out")
