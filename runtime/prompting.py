"""The prompt of an answer: a conversation in the model's own form, shortened where it must and may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgellm.runtime.backends.base import Backend, PromptTooLong
from edgellm.runtime.request import Request
from edgellm.runtime.text.template import ChatTemplate, Message
from edgellm.runtime.text.vocabulary import Vocabulary


class SupportsLength(Protocol):
    @property
    def n_ctx_train(self) -> int: ...

    @property
    def vocabulary(self) -> Vocabulary: ...


def check_length(n_bytes: int, vocabulary: Vocabulary, n_ctx: int) -> None:
    """Before a text is tokenised, which takes a second for every few MiB.

    Raises:
        PromptTooLong: it would not fit if all of its tokens were as long as the longest.
    """
    if n_bytes <= n_ctx or n_bytes <= n_ctx * vocabulary.longest_bytes:
        return
    n_least = -(-n_bytes // vocabulary.longest_bytes)
    sentence = f"the text of {n_bytes:,} bytes is at least {n_least:,} tokens long and the context holds {n_ctx:,}"
    raise PromptTooLong(f"{sentence}: shorten it", n_least, n_ctx, at_least=True)


def last_alone(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The system's messages, which such a model refuses, and the last of all others."""
    return tuple(message for message in messages[:-1] if message.role == "system") + tuple(messages[-1:])


class Prompt:
    """What is read before an answer; it knows what was forgotten."""

    def __init__(
        self, request: Request, backend: Backend, template: ChatTemplate, model: SupportsLength, think: bool | None
    ) -> None:
        self._request, self._backend, self._template, self._model = request, backend, template, model
        self._think = think
        messages = last_alone(request.messages) if template.reads_last else request.messages
        n_system = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
        self._messages, self._system, self._turns = messages, messages[:n_system], messages[n_system:]
        self.n_forgotten = 0  # of the turns

    @property
    def conversation(self) -> list[Message]:
        """Without the turns that were forgotten."""
        return self._from(self.n_forgotten)

    def tokens(self, n_answered: int) -> list[int]:
        """With room to go on behind `n_answered` tokens of the answer; turns may be forgotten for that.

        Raises:
            PromptTooLong: it does not fit.
            TemplateError: the template refuses the conversation.
        """
        n_ctx = self._backend.n_ctx
        if self._request.prompt is not None:
            return self._given(self._request.prompt, n_answered)
        if self._request.on_full == "stop":
            # What is written whole: of an answer a thought may be left out, of all the space around them.
            said = (m.content.strip() for m in self._messages if m.role != "assistant")
            check_length(sum(len(text.encode()) for text in said), self._model.vocabulary, n_ctx)
        questions = [i for i, message in enumerate(self._turns) if message.role == "user"]
        n_asked = questions[-1] if questions else 0  # the question itself stays
        prompt = self._rendered(self.n_forgotten)
        if len(prompt) + n_answered < n_ctx:
            return prompt
        if self._request.on_full == "shift":
            for first in (i for i in questions if i > self.n_forgotten):
                prompt = self._rendered(first)
                if len(prompt) + n_answered <= n_ctx // 2 or (first == n_asked and len(prompt) + n_answered < n_ctx):
                    self.n_forgotten = first
                    return prompt
        alone = self._rendered(n_asked)
        if len(alone) + n_answered < n_ctx:
            what, remedy = "conversation is", "/clear it, or start again with a larger --ctx or with --on-full shift"
        else:  # to forget what was said before would not help
            prompt, what = alone, f"question{' with the system prompt' if self._system else ''} alone is"
            can_grow = n_ctx < (self._model.n_ctx_train or n_ctx + 1)
            remedy = "shorten it" + (", or start again with a larger --ctx" if can_grow else "")
        n_prompt = len(prompt) + n_answered
        raise PromptTooLong(
            f"the {what} {n_prompt:,} tokens long and the context holds {n_ctx:,}: {remedy}", n_prompt, n_ctx
        )

    def _from(self, first: int) -> list[Message]:
        return [*self._system, *self._turns[first:]]

    def _rendered(self, first: int) -> list[int]:
        return self._template.render(self._from(first), think=self._think, tools=self._request.offered)

    def _given(self, prompt: Sequence[int], n_answered: int) -> list[int]:
        n_prompt, n_ctx = len(prompt) + n_answered, self._backend.n_ctx
        if n_prompt < n_ctx:
            return list(prompt)
        sentence = f"the prompt is {n_prompt:,} tokens long and the context holds {n_ctx:,}: shorten it"
        raise PromptTooLong(sentence, n_prompt, n_ctx)
