"""Tools that a model may call: what is offered, what is called, and the form in which a family of models writes a call.

A form is judged from the chat template and trusted only where the template's own writing of a call is read back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from edgellm.runtime.text.vocabulary import Vocabulary

FormatName = Literal["hermes", "tagged", "llama3", "mistral", "harmony", "json"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask for."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  # a JSON schema of type object; {} for none
    strict: bool = False  # a call of it fits the schema

    def to_json(self) -> dict[str, Any]:
        """As chat templates are given it."""
        parameters = dict(self.parameters) or {"type": "object", "properties": {}}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model wrote."""

    name: str
    arguments: str = "{}"  # the JSON text of an object
    id: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "arguments": self.arguments}


@dataclass(frozen=True, slots=True)
class NamedTool:
    """The choice of one tool."""

    name: str


ToolChoice: TypeAlias = 'Literal["auto", "none", "required"] | NamedTool'


@dataclass(frozen=True, slots=True)
class CallFormat:
    """The form in which a model writes calls."""

    name: FormatName
    markers: Mapping[str, int] = field(default_factory=dict)  # those that are tokens of the vocabulary -> their ids

    @property
    def is_native(self) -> bool:
        """Whether the model's own template writes tools, and calls in this form."""
        return self.name != "json"


# What a template has all of, what it has none of, and the markers of those that do; the first that fits.
_SIGNATURES: tuple[tuple[FormatName, tuple[str, ...], tuple[str, ...]], ...] = (
    ("harmony", ("<|channel|>", "commentary", "functions.", "<|call|>"), ()),
    ("mistral", ("[TOOL_CALLS]",), ()),
    ("tagged", ("<tool_call>", "<function=", "<parameter="), ()),
    ("hermes", ("<tool_call>", "</tool_call>"), ("<arg_key>",)),
    ("llama3", ("<|start_header_id|>", '"parameters": '), ("<function=", "functools")),
)
_TAGS = ("<tool_call>", "</tool_call>")
_MARKERS: dict[FormatName, tuple[str, ...]] = {
    "harmony": ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|call|>", "<|end|>"),
    "mistral": ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    "tagged": _TAGS,
    "hermes": _TAGS,
    "llama3": ("<|python_tag|>",),
    "json": _TAGS,
}


def format_named(name: FormatName, vocabulary: Vocabulary) -> CallFormat:
    literals = vocabulary.literals
    return CallFormat(name, {marker: literals[marker] for marker in _MARKERS[name] if marker in literals})


def likely_format(template: str, vocabulary: Vocabulary) -> CallFormat:
    """The form that a template's text speaks of; JSON described in words where it speaks of none that is known."""
    if "tools" in template:
        for name, wanted, unwanted in _SIGNATURES:
            if all(text in template for text in wanted) and not any(text in template for text in unwanted):
                return format_named(name, vocabulary)
    return format_named("json", vocabulary)


def parsed_arguments(text: str) -> dict[str, Any]:
    """The object that `text` spells; {} for no text.

    Raises:
        ValueError: it spells none.
    """
    try:
        # A model writes the line breaks of its texts as they are.
        found = json.loads(text, strict=False, parse_constant=_refuse) if text.strip() else {}
        if isinstance(found, dict):
            json.dumps(found, allow_nan=False)
            return found
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    raise ValueError("no object")


def written_arguments(arguments: Mapping[str, Any]) -> str:
    """The JSON text of an object, as chat templates write it.

    Raises:
        ValueError: a number of it is none that JSON has.
    """
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    # Half a surrogate pair is text in no encoding, and stays an escape.
    return text if text.isascii() or _is_valid(text) else json.dumps(arguments, allow_nan=False)


def _is_valid(text: str) -> bool:
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
