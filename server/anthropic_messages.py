"""Messages as Anthropic's clients write them: blocks of text, thoughts, calls and what they returned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgellm.runtime.request import BadRequest, read_messages
from edgellm.runtime.text.template import Message
from edgellm.runtime.text.tools import written_arguments
from edgellm.server.errors import invalid
from edgellm.server.fields import Fields
from edgellm.server.messages import MAX_MESSAGES


def read_blocks(fields: Fields) -> tuple[Message, ...]:
    """`system` and `messages`. Raises ApiError, which names the message."""
    system, given = fields.take("system"), fields.take("messages")
    if not isinstance(given, list) or not given:
        raise fields.refuse("messages", 'must be a list of {"role", "content"} objects')
    if len(given) > MAX_MESSAGES:
        raise fields.refuse("messages", f"is too much: at most {MAX_MESSAGES:,} messages")
    found: list[Message] = []
    if system:
        found.append(Message("system", _texts(system, "system")))
    for i, one in enumerate(given):
        where = f"messages[{i}]"
        try:
            found += read_messages(list(_read(one, where)))
        except BadRequest as error:
            raise invalid(f"{where}: {error}", where) from error
    return tuple(found)


def _read(given: Any, where: str) -> Iterator[dict[str, Any]]:
    """One message as the one or several that chat has for it."""
    if not isinstance(given, dict):
        raise invalid(f'{where} is no {{"role", "content"}} object', where)
    fields = Fields(given, f"{where}.")
    role, content = fields.take("role"), fields.take("content")
    fields.end()
    if role not in ("user", "assistant"):
        raise invalid(f"{where}.role must be user or assistant", where)
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise invalid(f"{where}.content must be a text or a list of blocks", where)
    blocks = [_block(block, f"{where}.content[{i}]", role) for i, block in enumerate(content)]
    yield from _answer(blocks) if role == "assistant" else _question(blocks)


def _answer(blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    thoughts = [block["thought"] for block in blocks if "thought" in block]
    yield {
        "role": "assistant",
        "content": "".join(block.get("text", "") for block in blocks),
        "reasoning": "".join(thoughts) if thoughts else None,
        "tool_calls": [block["call"] for block in blocks if "call" in block] or None,
    }


def _question(blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Texts that follow each other are one; what tools returned goes apart."""
    texts: list[str] = []
    is_result = False
    for block in blocks:
        if "text" in block:
            texts.append(block["text"])
            continue
        if texts:
            yield {"role": "user", "content": "".join(texts)}
        texts, is_result = [], True
        yield {"role": "tool", **block}
    if texts or not is_result:
        yield {"role": "user", "content": "".join(texts)}


def _block(given: Any, where: str, role: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise invalid(f"{where} is no object with a type", where)
    fields = Fields(given, f"{where}.")
    kind = fields.take("type")
    fields.take("cache_control")  # what is cached is always used
    if kind == "text":
        fields.take("citations")  # clients send it back empty
        made: dict[str, Any] = {"text": _text(fields, "text")}
    elif kind == "thinking" and role == "assistant":
        fields.take("signature")
        made = {"thought": _text(fields, "thinking")}
    elif kind == "tool_use" and role == "assistant":
        fields.take("caller")
        made = {"call": _call(fields)}
    elif kind == "tool_result" and role == "user":
        fields.flag("is_error")  # its text says so
        content = fields.take("content")
        made = {"tool_call_id": _text(fields, "tool_use_id"), "content": _texts(content or "", f"{where}.content")}
    else:
        raise invalid(f"{where}.type is {str(kind)[:64]!a}, which is not read here in a message of role {role}", where)
    fields.end()
    return made


def _call(fields: Fields) -> dict[str, Any]:
    given = fields.take("input")
    if not isinstance(given, dict):
        raise fields.refuse("input", "must be an object")
    function = {"name": _text(fields, "name"), "arguments": written_arguments(given)}
    return {"id": _text(fields, "id"), "function": function}


def _text(fields: Fields, name: str) -> str:
    text = fields.text(name)
    if text is None:
        raise fields.refuse(name, "is missing")
    return text


def _texts(given: Any, where: str) -> str:
    """A text, or blocks of type text."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise invalid(f"{where} must be a text or a list of blocks", where)
    return "".join(_block(block, f"{where}[{i}]", "")["text"] for i, block in enumerate(given))
