"""Calls read letter by letter, a reader for each way of writing one: how they were cut into pieces changes nothing."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from edgellm.runtime.text.tools import Tool, ToolCall, parsed_arguments, written_arguments

Progress = Literal["more", "done", "failed"]
MAX_HEADER = 300  # letters of what stands between a marker and the arguments
MAX_CODE = 20_000  # letters of calls written as Python
_NAME = r"[\w.:/-]+"
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\Z", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


class Reader(Protocol):
    """Reads what stands behind a marker."""

    calls: list[ToolCall]

    def step(self, char: str) -> Progress: ...

    def end(self) -> Progress:
        """Nothing follows."""
        ...


class JsonEnd:
    """Finds where a JSON object ends."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._is_escaped = 0, False, False
        self._text: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._text)

    def step(self, char: str) -> bool:
        """Whether `char` is its last letter."""
        self._text.append(char)
        if self._in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\":
                self._is_escaped = True
            elif char == '"':
                self._in_string = False
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return self._depth <= 0
        return False


class JsonReader:
    """{"name": ..., "arguments": {...}}, or a list of such."""

    def __init__(self, known: frozenset[str] | None = None) -> None:
        """`known`: the only names that count; None for any."""
        self.calls: list[ToolCall] = []
        self._known, self._in_list = known, False
        self._object: JsonEnd | None = None

    def step(self, char: str) -> Progress:
        if self._object is None:
            return self._between(char)
        if not self._object.step(char):
            return "more"
        call = read_call(self._object.text)
        if call is None or (self._known is not None and call.name not in self._known):
            return "failed"
        self.calls.append(call)
        self._object = None
        return "more" if self._in_list else "done"

    def _between(self, char: str) -> Progress:
        if char == "{":
            self._object = JsonEnd()
            self._object.step(char)
        elif char == "[" and not self._in_list:
            self._in_list = True
        elif char == "]" and self.calls:
            return "done"
        elif not (char.isspace() or (char == "," and self.calls)):
            return "failed"
        return "more"

    def end(self) -> Progress:
        return "failed"


class ArgumentsReader:
    """A header that names the function, and the object of its arguments behind it."""

    def __init__(self, header: re.Pattern[str], *, ends: tuple[str, ...], json_too: bool = False) -> None:
        """
        Args:
            header: its first group is the name.
            ends: any of these ends the header; a brace belongs to the arguments.
            json_too: whether calls may be written as JSON objects, or as a list of them, instead.
        """
        self.calls: list[ToolCall] = []
        self._header, self._ends, self._json_too = header, ends, json_too
        self._read, self._name = "", ""
        self._json: JsonReader | None = None
        self._object: JsonEnd | None = None

    def step(self, char: str) -> Progress:
        if self._json is not None:
            return self._through(self._json, char)
        if self._object is not None:
            return self._argument(char)
        if self._json_too and char in "[{" and not self._read.strip():
            self._json = JsonReader()
            return self._through(self._json, char)
        self._read += char
        if self._read.endswith(self._ends):
            found = self._header.search(self._read.removesuffix("{"))
            if found is None:
                return "failed"
            self._name, self._object = found[1], JsonEnd()
            return self._argument(char) if char == "{" else "more"
        return "failed" if len(self._read) > MAX_HEADER or "\n" in self._read.strip("\n") else "more"

    def _through(self, reader: JsonReader, char: str) -> Progress:
        progress = reader.step(char)
        self.calls = reader.calls
        return progress

    def _argument(self, char: str) -> Progress:
        assert self._object is not None
        if not self._object.text and char != "{":
            return "more" if char.isspace() else "failed"
        if not self._object.step(char):
            return "more"
        call = named_call(self._name, self._object.text)
        if call is None:
            return "failed"
        self.calls.append(call)
        return "done"

    def end(self) -> Progress:
        return "failed"


class TagReader:
    """What stands in <tool_call>: JSON, or <function=name> with <parameter=name> in it."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.calls: list[ToolCall] = []
        self._tools, self._space = tools, ""
        self._reader: Reader | None = None

    def step(self, char: str) -> Progress:
        if self._reader is None:
            if char.isspace():
                return "more"
            self._reader = FunctionReader(self._tools) if char == "<" else JsonReader()
            self.calls = self._reader.calls
        return self._reader.step(char)

    def end(self) -> Progress:
        return "failed"


class FunctionReader:
    """<function=name><parameter=name>value</parameter></function>: values are text, typed by the tool's schema."""

    _OPENING, _CLOSING = "<function=", "</function>"

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.calls: list[ToolCall] = []
        self._schemas = {tool.name: tool.parameters.get("properties") for tool in tools}
        self._read: list[str] = []
        self._tail = ""

    def step(self, char: str) -> Progress:
        self._read.append(char)
        n_read = len(self._read)
        if n_read <= len(self._OPENING):
            return "more" if char == self._OPENING[n_read - 1] else "failed"
        self._tail = (self._tail + char)[-len(self._CLOSING) :]
        if self._tail != self._CLOSING:
            return "more"
        found = _FUNCTION.match("".join(self._read))
        if found is None or not found[1].strip():
            return "failed"
        name = found[1].strip()
        schemas = self._schemas.get(name)
        schemas = schemas if isinstance(schemas, Mapping) else {}
        values = {key.strip(): _typed(value, schemas.get(key.strip())) for key, value in _PARAMETER.findall(found[2])}
        try:
            self.calls.append(ToolCall(name, written_arguments(values)))
        except ValueError:
            return "failed"
        return "done"

    def end(self) -> Progress:
        return "failed"


class CodeReader:
    """Python calls, name(argument="value"), up to a closing fence."""

    def __init__(self, known: frozenset[str]) -> None:
        self.calls: list[ToolCall] = []
        self._known, self._read = known, ""

    def step(self, char: str) -> Progress:
        self._read += char
        if len(self._read) > MAX_CODE:
            return "failed"
        return self._parse(self._read[:-3]) if self._read.endswith("```") else "more"

    def end(self) -> Progress:
        return self._parse(self._read)

    def _parse(self, code: str) -> Progress:
        try:
            body = ast.parse(code.strip()).body
            found = [_code_call(node, self._known) for node in body]
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return "failed"
        self.calls += found
        return "done" if found else "failed"


def read_call(text: str) -> ToolCall | None:
    """The call that a JSON object is, in any of the shapes that models give it; None where it is none."""
    try:
        given = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    if isinstance(given, dict) and isinstance(given.get("function"), dict):
        given = given["function"]
    if not isinstance(given, dict):
        return None
    name = given.get("name", given.get("function"))
    arguments: Any = next((given[key] for key in ("arguments", "parameters") if given.get(key) is not None), {})
    if not isinstance(name, str) or not name.strip():
        return None
    return named_call(name, arguments)


def named_call(name: str, arguments: Any) -> ToolCall | None:
    """A call with arguments that are an object, or its JSON text; None where they are none."""
    try:
        found = parsed_arguments(arguments if isinstance(arguments, str) else json.dumps(arguments))
        return ToolCall(name.strip().removeprefix("functions."), written_arguments(found))
    except (ValueError, RecursionError):
        return None


def header_patterns(mark: Callable[[str], str]) -> dict[str, re.Pattern[str]]:
    """What names the function in front of its arguments; `mark` gives a marker as it stands in the text read."""
    call_id, arguments = re.escape(mark("[CALL_ID]")), re.escape(mark("[ARGS]"))
    return {
        "mistral": re.compile(rf"^\s*({_NAME})\s*(?:{call_id}\s*[\w-]*\s*)?(?:{arguments})?\s*$"),
        "harmony": re.compile(rf"\bto=(?:functions\.)?({_NAME})"),
    }


def _typed(value: str, schema: Any) -> Any:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string":
        return value
    try:
        return json.loads(value, parse_constant=lambda name: name)
    except (ValueError, RecursionError):
        return value


def _code_call(node: ast.stmt, known: frozenset[str]) -> ToolCall:
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print" and call.args:
        call = call.args[0]  # as Gemma's examples write it
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError("no call with named arguments")
    if call.func.id not in known or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("not a tool's")
    values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    return ToolCall(call.func.id, written_arguments(values))
