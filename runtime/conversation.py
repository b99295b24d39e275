"""A conversation on an engine: what was said, what of it is forgotten, and the answers' own ids for the next prompt."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence

from edgellm.runtime.answer import Answer
from edgellm.runtime.backends.base import EngineError, LayersLost
from edgellm.runtime.constraint import Constraint
from edgellm.runtime.engine import Engine
from edgellm.runtime.generation import Generation
from edgellm.runtime.request import OnFull, Request
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.reasoning import Thinking
from edgellm.runtime.text.template import Message


class ChatSession:
    """Turns of a conversation. Only text that is new is evaluated; an interrupted answer is kept as far as it came."""

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        on_full: OnFull = "stop",
        think: bool | None = None,
        think_budget: int | None = None,
        n_draft: int | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """
        Args:
            stop: ends the text before any of these; a thought may hold them.
            on_full: "shift" forgets the oldest turns where the context is full, whole questions with their answers,
                until half of it is free; what is left is read anew, as if the conversation had begun there.
            think: whether the model is to think before it answers; None leaves it to its chat template. See
                `Thinking.about` for models that cannot be told.
            think_budget: tokens of a thought, after which it is ended and the answer begins.
            n_draft: tokens drafted a round, at most; None for what the engine allows.
            constraint: what the text of each answer is held to.
        """
        self.engine, self.sampling, self.stop = engine, sampling, tuple(stop)
        self.system, self.on_full, self.n_draft = system, on_full, n_draft
        self.constraint = constraint
        self.thinking = Thinking(engine.template, engine.model.vocabulary, think, think_budget)
        self.messages: list[Message] = []
        self.n_forgotten = 0  # of `messages`, from the beginning: kept for `/save`, no longer read
        self.last: Answer | None = None

    def reply(
        self,
        text: str,
        *,
        max_tokens: int | None = None,
        cancel: threading.Event | None = None,
        on_thought: Callable[[str], None] | None = None,
    ) -> Iterator[str]:
        """Say `text` and yield the answer piece by piece; afterwards `last` holds it whole.

        `on_thought` is given the pieces of what the model thinks before it answers.

        Closing the iterator, or setting `cancel` from a signal handler or another thread, ends the answer and keeps
        what was said; where nothing was said yet, the question is taken back too.

        Raises:
            BadRequest: `text` is none.
            ContextFull: the conversation does not fit; it is left as it was.
            LayersLost: a machine or device that held layers is gone; what was said until then is kept.
            EngineError: the engine failed; the conversation is left as it was.
        """
        n_before = len(self.messages)
        self.messages.append(Message("user", text))
        try:
            yield from self._answer(max_tokens, cancel, on_thought)
        except LayersLost:  # what was said before is sound
            raise
        except (EngineError, ValueError):
            del self.messages[n_before:]
            raise
        finally:
            if len(self.messages) == n_before + 1:
                del self.messages[n_before:]

    def regenerate(
        self,
        *,
        max_tokens: int | None = None,
        cancel: threading.Event | None = None,
        on_thought: Callable[[str], None] | None = None,
    ) -> Iterator[str]:
        """Answer the last question again.

        Raises:
            ValueError: nothing was asked yet.
        """
        if not self.messages:
            raise ValueError("there is no question to answer again")
        old = [self.messages.pop()] if self.messages[-1].role == "assistant" else []
        try:
            yield from self._answer(max_tokens, cancel, on_thought)
        finally:
            if self.messages[-1].role == "user":  # no new answer came
                self.messages += old

    def clear(self) -> None:
        """Forget the conversation, not the system prompt."""
        self.messages.clear()
        self.last, self.n_forgotten = None, 0

    @property
    def n_context(self) -> int:
        """Tokens of the context in use."""
        return len(self.engine.backend.tokens)

    def _request(self, max_tokens: int | None) -> Request:
        system = [Message("system", self.system)] if self.system else []
        return Request(
            (*system, *self.messages[self.n_forgotten :]),
            sampling=self.sampling,
            stop=self.stop,
            max_tokens=max_tokens,
            think=self.thinking.think,
            think_budget=self.thinking.budget,
            n_draft=self.n_draft,
            on_full=self.on_full,
            constraint=self.constraint,
        )

    def _answer(
        self, max_tokens: int | None, cancel: threading.Event | None, on_thought: Callable[[str], None] | None
    ) -> Iterator[str]:
        request = self._request(max_tokens)
        generation = Generation(self.engine, request, cancel=cancel, thinking=self.thinking)
        try:
            for piece in generation.pieces():
                if piece.kind == "text":
                    yield piece.text
                elif on_thought is not None:
                    on_thought(piece.text)
        finally:
            generation.close()
            self._keep(generation.answer)

    def _keep(self, answer: Answer) -> None:
        self.n_forgotten += answer.n_forgotten
        self.last = answer = dataclasses.replace(answer, n_forgotten=self.n_forgotten)
        if answer.stats.n_rounds:
            # Where the next prompt spells them, ids go back verbatim and are found cached; not where a stop string cut
            # inside them.
            ids = None if answer.finish_reason == "stop_string" else answer.tokens
            self.messages.append(Message("assistant", answer.text, ids, answer.reasoning))
