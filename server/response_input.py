"""The `input` of POST /responses: items as OpenAI's clients write them, those of earlier answers among them."""

from __future__ import annotations

from typing import Any

from edgellm.runtime.request import BadRequest, read_messages
from edgellm.runtime.text.template import Message
from edgellm.server.errors import invalid
from edgellm.server.fields import Fields
from edgellm.server.messages import MAX_MESSAGES

_UNREAD = ("id", "status", "phase")  # of items that a client sends back
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def read_input(fields: Fields) -> tuple[Message, ...]:
    """With `instructions` as the system's first message. Raises ApiError, which names the item."""
    instructions, given = fields.text("instructions"), fields.take("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise fields.refuse("input", "must be a text or a list of items")
    if len(given) > MAX_MESSAGES:
        raise fields.refuse("input", f"is too much: at most {MAX_MESSAGES:,} items")
    turns = _Turns([{"role": "system", "content": instructions}] if instructions else [])
    for i, item in enumerate(given):
        turns.add(item, f"input[{i}]")
    return turns.end()


class _Turns:
    """A thought, a text and calls that follow each other are one answer."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self._messages = messages
        self._answer: dict[str, Any] = {}
        self._where: list[str] = ["instructions"] * len(messages)

    def add(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise invalid(f"{where} is no object with a type", where)
        fields = Fields(item, f"{where}.")
        kind = fields.text("type") or "message"
        for name in _UNREAD:
            fields.take(name)
        if kind == "message":
            self._add_message(fields, where)
        elif kind == "reasoning":
            fields.take("encrypted_content")  # there is none here
            texts = [read_text(fields, name, where) for name in ("summary", "content")]
            self._begin(("reasoning", "content", "tool_calls"), where)["reasoning"] = texts[1] or texts[0]
        elif kind == "function_call":
            call = {"name": fields.text("name"), "arguments": fields.text("arguments")}
            answer = self._begin((), where)
            answer.setdefault("tool_calls", []).append({"id": fields.text("call_id"), "function": call})
        elif kind == "function_call_output":
            content = read_text(fields, "output", where)
            self._put({"role": "tool", "tool_call_id": fields.text("call_id"), "content": content}, where)
        else:
            raise invalid(f"{where}.type is {kind[:64]!a}: only messages, function calls and thoughts are read", where)
        fields.end()

    def _add_message(self, fields: Fields, where: str) -> None:
        role, content = fields.text("role"), read_text(fields, "content", where)
        if role != "assistant":
            self._put({"role": role, "content": content}, where)
            return
        self._begin(("content", "tool_calls"), where)["content"] = content

    def end(self) -> tuple[Message, ...]:
        """Raises ApiError: a message is of another form."""
        self._flush()
        found: list[Message] = []
        for message, where in zip(self._messages, self._where, strict=True):
            try:
                found += read_messages([message])
            except BadRequest as error:
                raise invalid(str(error).replace("message 1", where, 1), where) from error
        return tuple(found)

    def _begin(self, unless: tuple[str, ...], where: str) -> dict[str, Any]:
        """The answer that is gone on with; a new one where it has any of `unless`."""
        if any(name in self._answer for name in unless):
            self._flush()
        if not self._answer:
            self._answer = {"role": "assistant"}
            self._where.append(where)
        return self._answer

    def _put(self, message: dict[str, Any], where: str) -> None:
        self._flush()
        self._messages.append(message)
        self._where.append(where)

    def _flush(self) -> None:
        if self._answer:
            self._messages.append({"content": "", **self._answer})
            self._answer = {}


def read_text(fields: Fields, name: str, where: str) -> str:
    """A text, or parts that are texts. Raises ApiError."""
    given = fields.take(name)
    if given is None or isinstance(given, str):
        return given or ""
    parts = given if isinstance(given, list) else [given]
    for part in parts:
        is_text = isinstance(part, dict) and part.get("type") in _TEXTS and isinstance(part.get("text"), str)
        if not is_text:
            raise invalid(f"{where}.{name} holds a part that is no text: only text is read", f"{where}.{name}")
    return "".join(part["text"] for part in parts)
