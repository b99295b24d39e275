"""What a model with an encoder is given: one text as its tokenizer cuts it, and the token that begins every answer."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.text.template import ChatTemplate, Message, TemplateError
from edgellm.runtime.text.tools import Tool
from edgellm.runtime.text.vocabulary import Vocabulary


class EncoderInput(ChatTemplate):
    """In the place of a chat template, which such models have none of: the last question alone is read.

    Its text is cut as the tokenizer itself does, which may write signs otherwise and take spaces out, since that is
    what the model was trained to read. What spells a control token stays text.
    """

    reads_last = True

    def __init__(self, vocabulary: Vocabulary, start: int) -> None:
        """`start`: the decoder's first token."""
        self.fallback, self.source = None, ""
        self._vocabulary, self._start = vocabulary, start
        self.turn_end = vocabulary.eos

    def render(
        self,
        messages: Sequence[Message],
        *,
        reply: bool = True,
        think: bool | None = None,
        tools: Sequence[Tool] = (),
    ) -> list[int]:
        tokens = self._vocabulary.begun(self._vocabulary.encode_as_trained(self._asked(messages, tools).encode()))
        tokens += [self._vocabulary.eos] if self._vocabulary.eos is not None else []
        return [*tokens, self._start] if reply else tokens

    def text(
        self,
        messages: Sequence[Message],
        *,
        reply: bool = True,
        think: bool | None = None,
        tools: Sequence[Tool] = (),
    ) -> str:
        return self._asked(messages, tools)

    @property
    def tool_note(self) -> str | None:
        return None

    @property
    def can_switch_thinking(self) -> bool:
        return False

    def reply_opening(self, think: bool | None = None) -> str:
        return ""

    def _asked(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        if tools or any(message.tool_calls or message.role == "tool" for message in messages):
            raise TemplateError("this model turns one text into another: it cannot be given tools")
        if any(message.role == "system" for message in messages):
            raise TemplateError(
                "this model reads one text and has no place for a system prompt: put what it says into the message"
            )
        if not messages or messages[-1].role != "user":
            raise TemplateError("this model answers a text: the last message must be the user's")
        return messages[-1].content
