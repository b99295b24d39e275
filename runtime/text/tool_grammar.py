"""A forced call as a grammar: an answer that is a call of one of these tools, with arguments that fit its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.runtime.text.tools import CallFormat, NamedTool, Tool, ToolChoice

# As templates write JSON, so that there is one way of writing it.
_AS_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_CLOSING = json.dumps("\n</parameter>\n")
_LINE = json.dumps("\n")


def forced_call_grammar(
    form: CallFormat, tools: Sequence[Tool], choice: ToolChoice = "required", *, parallel: bool = True
) -> str:
    """A Lark grammar, as llguidance reads it, of answers that are calls in the form of a model.

    Markers that are tokens of the vocabulary are named by their ids.

    Args:
        choice: "required" for any of the tools, or the one that it is to be.
        parallel: several calls may follow each other, where the form has a place for them.

    Raises:
        ValueError: there is no such tool.
    """
    chosen = [tool for tool in tools if not isinstance(choice, NamedTool) or tool.name == choice.name]
    if not chosen:
        raise ValueError("there is no tool to call")
    match form.name:
        case "hermes":
            lines = [*_tagged(form, "object", parallel), *_objects(chosen, "arguments")]
        case "tagged":
            lines = [*_tagged(form, "function", parallel), *_functions(chosen)]
        case "llama3":  # one call an answer, its templates say
            lines = ["start: object", *_objects(chosen, "parameters")]
        case "mistral":
            lines = _mistral(form, chosen, parallel)
        case "harmony":
            channel, constrain = _marker(form, "<|channel|>"), _marker(form, "<|constrain|>")
            message, end = _marker(form, "<|message|>"), _marker(form, "<|call|>")
            heads = [f"{_text('commentary to=functions.' + tool.name + ' ')} {constrain}" for tool in chosen]
            calls = [f"{head} {_text('json')} {message} arguments_{i}" for i, head in enumerate(heads)]
            lines = [f"start: {channel} called {end}", f"called: {' | '.join(calls)}", *_arguments(chosen)]
        case "json":
            lines = [_several("object", _LINE, parallel), *_objects(chosen, "arguments")]
    return "\n".join(lines) + "\n"


def _tagged(form: CallFormat, rule: str, parallel: bool) -> list[str]:
    opening, closing = _marker(form, "<tool_call>"), _marker(form, "</tool_call>")
    return [_several("call", _LINE, parallel), f"call: {opening} {_LINE} {rule} {_LINE} {closing}"]


def _mistral(form: CallFormat, tools: Sequence[Tool], parallel: bool) -> list[str]:
    opening = _marker(form, "[TOOL_CALLS]")
    if "[ARGS]" not in form.markers:
        more = "" if not parallel else f" ({_text(', ')} object)*"
        return [f"start: {opening} {_text('[')} object{more} {_text(']')}", *_objects(tools, "arguments")]
    calls = [f"{_text(tool.name)} {_marker(form, '[ARGS]')} arguments_{i}" for i, tool in enumerate(tools)]
    return [_several("call", "", parallel), f"call: {opening} ({' | '.join(calls)})", *_arguments(tools)]


def _several(rule: str, between: str, parallel: bool) -> str:
    return f"start: {rule}" if not parallel else f"start: {rule} ({between} {rule})*"


def _choice(rule: str, n: int) -> str:
    return f"{rule}: {' | '.join(f'{rule}_{i}' for i in range(n))}"


def _marker(form: CallFormat, marker: str) -> str:
    token = form.markers.get(marker)
    return _text(marker) if token is None else f"<[{token}]>"


def _text(text: str) -> str:
    return json.dumps(text)


def _objects(tools: Sequence[Tool], key: str) -> list[str]:
    """The rule `object`: the name of a function and its arguments."""
    schemas = [_object({"name": {"const": tool.name}, key: _schema(tool)}) for tool in tools]
    return [_choice("object", len(tools)), *(f"object_{i}: {_json(schema)}" for i, schema in enumerate(schemas))]


def _arguments(tools: Sequence[Tool]) -> list[str]:
    return [f"arguments_{i}: {_json(_schema(tool))}" for i, tool in enumerate(tools)]


def _functions(tools: Sequence[Tool]) -> list[str]:
    """The rule `function`: <function=name> with its parameters, in the schema's order."""
    rules, lines = list[str](), list[str]()
    for i, tool in enumerate(tools):
        properties, required = tool.parameters.get("properties"), tool.parameters.get("required") or ()
        parts = [_text(f"<function={tool.name}>\n")]
        for n, (key, schema) in enumerate(properties.items() if isinstance(properties, Mapping) else ()):
            value, opening = f"value_{i}_{n}", _text(f"<parameter={key}>\n")
            is_text = isinstance(schema, Mapping) and schema.get("type") == "string" and "enum" not in schema
            parameter = f"{opening} text" if is_text else f"{opening} {value} {_CLOSING}"
            lines += [] if is_text else [f"{value}: {_value(schema)}"]
            parts.append(parameter if key in required else f"({parameter})?")
        rules.append(f"function_{i}: {' '.join(parts)} {_text('</function>')}")
    lines.append(f"text[suffix={_CLOSING}]: /(?s:.*)/")
    return [_choice("function", len(tools)), *rules, *lines]


def _value(schema: Any) -> str:
    """A value as it is written between tags: texts of a list of choices without quotes, all else as JSON."""
    choices = schema.get("enum") if isinstance(schema, Mapping) else None
    if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
        return " | ".join(map(_text, choices))
    return _json(schema)


def _schema(tool: Tool) -> Mapping[str, Any]:
    return tool.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _json(schema: Any) -> str:
    options = {"x-guidance": _AS_WRITTEN} if isinstance(schema, Mapping) else {}
    return f"%json {json.dumps({**schema, **options} if options else schema)}"
