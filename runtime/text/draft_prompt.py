"""The conversation as a drafter with a vocabulary of its own reads it, when it drafts and when it is trained."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.text.messages import in_words, numbered
from edgellm.runtime.text.template import ChatTemplate, Message, TemplateError

NEUTRAL = "You are a helpful assistant."  # the system prompt of a drafter whose target has none


def draft_prompt(template: ChatTemplate, messages: Sequence[Message], *, think: bool | None = None) -> list[int] | None:
    """Ids up to where the answer begins, by the drafter's own template; None where that refuses the conversation.

    Thoughts are left out: another model's are no memory of its own. Calls and what they returned are text, and what
    tools there are is not said: to read of them costs a drafter more than it guesses with it.
    """
    if any(message.tool_calls or message.role == "tool" for message in messages):
        messages = in_words(numbered(messages), ())
    own = [Message(message.role, message.content) for message in messages]  # without ids of another vocabulary
    if own[0].role != "system":
        own.insert(0, Message("system", NEUTRAL))  # rather than the persona that its template would write
    try:
        return template.render(own, think=think)
    except TemplateError:
        return None
