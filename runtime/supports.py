"""What an answer needs of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgellm.runtime.backends.base import Backend, StopSwitch
from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.drafters.base import Drafter
from edgellm.runtime.text.template import ChatTemplate, Message
from edgellm.runtime.text.vocabulary import Vocabulary


class SupportsVocabulary(Protocol):
    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def n_ctx_train(self) -> int: ...


class SupportsGeneration(Protocol):
    """What an answer needs of an engine."""

    @property
    def model(self) -> SupportsVocabulary: ...

    @property
    def backend(self) -> Backend: ...

    @property
    def template(self) -> ChatTemplate: ...

    @property
    def drafter(self) -> Drafter: ...

    @property
    def n_draft(self) -> int: ...  # tokens a round, at most

    @property
    def stop_switch(self) -> StopSwitch: ...

    def draft_prompt(self, messages: Sequence[Message], *, think: bool | None = None) -> list[int] | None: ...

    def keep_lesson(self, lesson: Lesson) -> None: ...

    def save(self) -> None: ...
