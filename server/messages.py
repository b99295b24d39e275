"""Messages as OpenAI's clients write them, those that a client got and sends back among them."""

from __future__ import annotations

from typing import Any

from edgellm.runtime.request import BadRequest, read_messages
from edgellm.runtime.text.template import Message
from edgellm.server.errors import invalid
from edgellm.server.fields import Fields

MAX_MESSAGES = 10_000
_OF_CALLS = ("tool_calls", "tool_call_id", "name")


def read_conversation(fields: Fields) -> tuple[Message, ...]:
    """Raises ApiError, which names the message."""
    given = fields.take("messages")
    if not isinstance(given, list):
        raise fields.refuse("messages", 'must be a list of {"role", "content"} objects')
    if len(given) > MAX_MESSAGES:
        raise fields.refuse("messages", f"is too much: at most {MAX_MESSAGES:,} messages")
    messages: list[Message] = []
    for i, one in enumerate(given):
        messages += _read(one, f"messages[{i}]", i)
    return tuple(messages)


def _read(given: Any, where: str, i: int) -> tuple[Message, ...]:
    if not isinstance(given, dict):
        raise invalid(f'{where} is no {{"role", "content"}} object', where)
    fields = Fields(given, f"{where}.")
    role, content = fields.take("role"), fields.take("content")
    calls = {name: fields.take(name) for name in _OF_CALLS}
    if content is None:
        if role != "assistant":
            raise invalid(f"{where} has no content: give a text, or parts of type text", where)
        content = ""
    thought = fields.text("reasoning_content")
    thought = fields.text("reasoning") or thought
    if fields.take("annotations") not in (None, []):  # clients send it back empty
        raise fields.refuse("annotations", "is not known here: leave it out")
    fields.end()
    try:
        return read_messages([{"role": role, "content": content, "reasoning": thought, **calls}])
    except BadRequest as error:
        raise invalid(str(error).replace("message 1", f"message {i + 1}", 1), where) from error
