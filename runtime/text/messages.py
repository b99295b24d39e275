"""Messages, and how chat templates are given them and the tools beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgellm.runtime.text.markup import Markup, plain
from edgellm.runtime.text.tools import Tool, ToolCall, parsed_arguments

Role = Literal["system", "user", "assistant", "tool"]
# Words of JSON schemas, that templates look for: whole, they make no control token.
_WORDS = frozenset({
    "type", "function", "name", "description", "parameters", "properties", "required", "items", "enum", "default",
    "anyOf", "oneOf", "allOf", "object", "string", "number", "integer", "boolean", "array", "null", "format", "title",
    "additionalProperties",
})  # fmt: skip
_OFFER = (
    "You may call functions. To call one, answer with nothing but a JSON object of this form, one for each call:\n"
    '{{"name": "the function\'s name", "arguments": {{"its": "arguments"}}}}\n'
    "What it returned comes with the next message. Where no function is needed, answer in words.\n\n"
    "The functions:\n{}"
)


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str
    tokens: tuple[int, ...] | None = None  # an answer's own ids in the target's vocabulary, without its end token
    reasoning: str | None = None  # an answer's thought, apart from `content`
    tool_calls: tuple[ToolCall, ...] = ()  # of an answer
    tool_call_id: str | None = None  # the call that a tool's message answers
    name: str | None = None  # whose message it is: of a tool, the function


@dataclass(frozen=True, slots=True)
class Variant:
    """A way of giving a conversation to a template. What one template wants, another refuses."""

    folded: bool = False  # the system's text at the head of the first question, for families without a system role
    typed: bool = False  # contents as lists of parts
    short_ids: bool = False  # of calls, nine letters, for Mistral's
    split: bool = False  # answers that call several tools as one for each, with what it returned
    without_content: bool = False  # null where an answer holds nothing but calls


_CALLING = (
    Variant(short_ids=True),
    Variant(split=True),
    Variant(short_ids=True, split=True),
    Variant(without_content=True),
)


def variants(messages: Sequence[Message]) -> list[Variant]:
    """Those to try, in turn."""
    has_calls = any(message.tool_calls or message.role == "tool" for message in messages)
    tried = [Variant(), *(_CALLING if has_calls else ()), Variant(typed=True)]
    can_fold = len(messages) > 1 and messages[0].role == "system"
    return tried + [replace(variant, folded=True) for variant in tried] if can_fold else tried


def arranged(
    messages: Sequence[Message], contents: Sequence[str], names: Sequence[str], markup: Markup, variant: Variant
) -> list[dict[str, object]]:
    """Messages as templates are given them.

    Args:
        contents: their protected texts.
        names: the protected names of the functions that they call, in order.
    """
    texts, waiting = list(contents), list(names)
    if variant.folded:
        texts[:2] = ["", f"{texts[0]}\n\n{texts[1]}"]
    made = [_arranged(message, text, waiting, markup, variant) for message, text in zip(messages, texts, strict=True)]
    made = made[1:] if variant.folded else made
    return _split(made) if variant.split else made


def _arranged(message: Message, text: str, names: list[str], markup: Markup, variant: Variant) -> dict[str, object]:
    made: dict[str, object] = {"role": message.role}
    made["content"] = [{"type": "text", "text": text}] if variant.typed else text
    if message.reasoning is not None:
        # The field's name and gpt-oss' own.
        made["reasoning_content"] = made["thinking"] = markup.protect(plain(message.reasoning))
    shown = _short if variant.short_ids else plain
    if message.tool_calls:
        if variant.without_content and not message.content:
            made["content"] = None
        made["tool_calls"] = [
            {
                "id": markup.protect(shown(call.id or "")),
                "type": "function",
                "function": {"name": names.pop(0), "arguments": protected(parsed_arguments(call.arguments), markup)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        made["tool_call_id"] = markup.protect(shown(message.tool_call_id))
    if message.name is not None:
        made["name"] = markup.protect(plain(message.name))
    return made


def _split(messages: list[dict[str, Any]]) -> list[dict[str, object]]:
    split: list[dict[str, object]] = []
    waiting: list[dict[str, object]] = []
    for message in messages:
        calls = message.get("tool_calls", ())
        if message["role"] == "tool":
            # Behind the call that it answers, and in front of the next.
            at = next((i for i, one in enumerate(waiting) if _id_of(one) == message.get("tool_call_id")), None)
            if at is not None:
                split.append(waiting.pop(at))
            split.append(message)
            continue
        split += waiting
        waiting = [message | {"tool_calls": [call]} for call in calls] if len(calls) > 1 else []
        for later in waiting[1:]:
            later["content"] = ""
        split += [] if waiting else [message]
    return split + waiting


def _id_of(message: Mapping[str, Any]) -> object:
    return message["tool_calls"][0]["id"]


def _short(text: str) -> str:
    """Nine letters, the same for the same text."""
    is_short = len(text) == 9 and text.isascii() and text.isalnum()
    return text if is_short else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:9]


def protected(value: Any, markup: Markup) -> Any:
    """A value of JSON with all its texts protected, but for the words of schemas."""
    if isinstance(value, str):
        return value if value in _WORDS else markup.protect(plain(value))
    if isinstance(value, Mapping):
        return {protected(str(key), markup): protected(inner, markup) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [protected(inner, markup) for inner in value]
    return value


def numbered(messages: Sequence[Message]) -> list[Message]:
    """With an id on every call and on what it returned, by their order, and with the names of the functions."""
    done, n_calls = list[Message](), 0
    names: dict[str, str] = {}
    waiting: list[str] = []
    for message in messages:
        if message.tool_calls:
            calls = [
                call if call.id else replace(call, id=f"call{i:05}")
                for i, call in enumerate(message.tool_calls, n_calls)
            ]
            n_calls += len(calls)
            waiting = [str(call.id) for call in calls]
            names |= {str(call.id): call.name for call in calls}
            message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool":
            answered = message.tool_call_id or (waiting[0] if waiting else "call00000")
            waiting = [other for other in waiting if other != answered]
            message = replace(message, tool_call_id=answered, name=message.name or names.get(answered))
        done.append(message)
    return done


def in_words(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """For templates that know no tools: they are described, and calls and what they return are written as text."""
    done, before = list[Message](), ""
    for message in messages:
        if message.role == "tool":
            text = f"{message.name or 'The function'} returned:\n{message.content}"
            if before == "tool":  # roles alternate
                done[-1] = replace(done[-1], content=f"{done[-1].content}\n\n{text}")
            else:
                done.append(Message("user", text))
        elif message.tool_calls:
            calls = [{"name": call.name, "arguments": parsed_arguments(call.arguments)} for call in message.tool_calls]
            texts = [message.content] if message.content else []
            texts += [json.dumps(call, ensure_ascii=False) for call in calls]
            done.append(replace(message, content="\n".join(texts), tool_calls=()))
        else:
            done.append(message)
        before = message.role
    if not tools:
        return done
    offered = [json.dumps(tool.to_json()["function"], ensure_ascii=False) for tool in tools]
    offer = _OFFER.format("\n".join(offered))
    if done and done[0].role == "system":
        return [replace(done[0], content=f"{done[0].content}\n\n{offer}"), *done[1:]]
    return [Message("system", offer), *done]
