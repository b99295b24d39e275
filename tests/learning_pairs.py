"""A tiny target, a tiny drafter that can learn, and lessons that a few steps are enough for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from draft_adapters import quantised_tiny
from tiny_gguf import write_tiny

from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.distillation.adopted import target_key
from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.distillation.lessons import lessons_of
from edgellm.runtime.distillation.orders import TrainingOrder

TESTS = Path(__file__).resolve().parent
PATH = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])  # of children that tests provide


@dataclass(frozen=True, slots=True)
class TinyPair:
    folder: Path
    target: Path
    draft: Path

    @property
    def learned(self) -> Path:
        return self.folder / "learned"

    @property
    def adopted(self) -> Path:
        return self.folder / "adapted"

    def order(self, **more: object) -> TrainingOrder:
        plain = TrainingOrder(
            target=str(self.target),
            draft=str(self.draft),
            target_name="tiny-target",
            draft_name="tiny-drafter",
            target_key=target_key(self.target),
            learned=str(self.learned),
            adopted=str(self.adopted),
            seconds=60.0,
            n_threads=1,
        )
        return replace(plain, **more)  # type: ignore[arg-type]

    def answered(self, questions: Sequence[str], answer: bytes = b"in the " * 8) -> list[Lesson]:
        """Keep lessons, as a chat would."""
        model = LlamaModel(self.target, ModelOptions(vocabulary_only=True))
        try:
            saved = lessons_of(self.learned, self.target, model.vocabulary, print)
            tokens = tuple(model.vocabulary.encode(answer))
            lessons = [Lesson((("user", question),), tokens, ended=True) for question in questions]
            for lesson in lessons:
                saved.add(lesson)
            saved.save()
            return lessons
        finally:
            model.close()


def tiny_pair(folder: Path) -> TinyPair:
    folder.mkdir(parents=True, exist_ok=True)
    target = write_tiny(folder / "target.gguf", n_layers=1, seed=1)
    return TinyPair(folder, target, quantised_tiny(folder / "drafter.gguf"))


def questions(n: int, kind: str = "question") -> list[str]:
    return [f"{kind} {i}" for i in range(n)]
