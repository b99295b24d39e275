"""A loaded target with its drafter. `bringup.load` makes one; nothing of it changes but what its parts hold."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from edgellm.memory.plan import MemoryPlan, PairSettings
from edgellm.runtime.backends.base import Backend, StopSwitch
from edgellm.runtime.bringup.loading import Model
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.drafters.base import Drafter, NoDrafter
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.generation import Generation
from edgellm.runtime.learning.pair_state import PairState
from edgellm.runtime.request import Messages, OnFull, Request, Tools
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.draft_prompt import draft_prompt
from edgellm.runtime.text.guidance import asked_grammar
from edgellm.runtime.text.template import ChatTemplate, Message
from edgellm.runtime.text.tools import ToolChoice
from edgellm.runtime.text.vocabulary_map import VocabularyMap
from edgellm.runtime.text.vocabulary_match import Match


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded target with its drafter. Use it as a context manager, or call `close`."""

    model: Model
    backend: Backend
    template: ChatTemplate
    options: EngineOptions
    settings: PairSettings  # what was allocated
    drafter: Drafter = field(default_factory=NoDrafter)
    plan: MemoryPlan | None = None  # None where the planner does not know the model's cache
    draft_model: Model | None = None
    draft_template: ChatTemplate | None = None
    pair: Match | None = None  # what the two vocabularies share
    table: VocabularyMap | None = None  # stored beside the drafter
    pair_state: PairState | None = None  # what drafting learns, where anything drafts
    n_draft: int = 0  # tokens a round at most, after what exactness allows
    stop_switch: StopSwitch = field(default_factory=StopSwitch)  # what the contexts look at while they read
    notes: list[str] = field(default_factory=list)  # what was chosen and why, a sentence each
    warnings: list[str] = field(default_factory=list)  # what a user must know of it; grows while it runs

    @property
    def drafts_itself(self) -> bool:
        """Whether the head inside the target's file drafts."""
        return self.options.head and self.draft_model is None and self.pair is not None

    @property
    def controller(self) -> AdaptiveDrafter | None:
        """The drafter, where there is one."""
        return self.drafter if isinstance(self.drafter, AdaptiveDrafter) else None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def generate(
        self,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop: str | Sequence[str] = (),
        think: bool | None = None,
        think_budget: int | None = None,
        n_draft: int | None = None,
        on_full: OnFull = "stop",
        tools: Tools = (),
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        schema: object = None,
        grammar: str | None = None,
        cancel: threading.Event | None = None,
    ) -> Generation:
        """Answer a conversation; iterate for the text, then `.answer` holds it whole with what it cost.

        Nothing is kept of it but what the context holds, so a conversation that goes on is not read again. See
        `Request` for the settings and `Generation` for what is raised.

        Args:
            messages: a question, or messages, or {"role", "content"} objects.
            tools: what the model may call, as records or {"type": "function", "function"} objects.
            schema: a JSON schema that the text is held to: an object, or JSON text; "json_object" for any object.
            grammar: a grammar that it is held to: Lark, GBNF, or `/a regular expression/`.
            cancel: set from a signal handler or another thread, it ends the answer with what was said.

        Raises:
            BadRequest: there is nothing to answer, it is no text, or an answer cannot be held to what is asked.
        """
        asked = asked_grammar(schema, grammar)
        request = Request.of(
            messages,
            sampling=sampling,
            stop=stop,
            max_tokens=max_tokens,
            think=think,
            think_budget=think_budget,
            n_draft=n_draft,
            on_full=on_full,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            constraint=asked.of(self.model.vocabulary) if asked is not None else None,
        )
        note = self.template.tool_note if request.offered else None
        if note is not None and note not in self.notes:
            self.notes.append(note)
        return Generation(self, request, cancel=cancel)

    def draft_prompt(self, messages: Sequence[Message], *, think: bool | None = None) -> list[int] | None:
        """The conversation as the drafter would have it; None where it has no template for it."""
        return draft_prompt(self.draft_template, messages, think=think) if self.draft_template is not None else None

    def keep_lesson(self, lesson: Lesson) -> None:
        """Let a drafter learn from an answer some day, where what is learnt is kept."""
        if self.pair_state is not None and (lessons := self.pair_state.lessons) is not None:
            lessons.add(lesson)

    def save(self) -> None:
        """Write down what was learnt, where it is to be kept. A disk that refuses is a warning and no failure."""
        if self.pair_state is not None:
            self.pair_state.save()

    def close(self) -> None:
        """Keep what was learnt and free both models; safe to call twice."""
        self.save()
        self.drafter.close()
        self.backend.close()
        if self.draft_model is not None:
            self.draft_model.close()
        self.model.close()
