"""A target and its drafter as far as a training looks at them: vocabularies, templates, and what the one answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.distillation.architecture import DistillationError
from edgellm.runtime.distillation.lessons import SavedLessons, lessons_of
from edgellm.runtime.distillation.samples import SampleMaker
from edgellm.runtime.text.full_vocabulary import is_trimmed
from edgellm.runtime.text.template import DOCUMENT, usable
from edgellm.runtime.text.vocabulary_match import match


@dataclass(frozen=True, slots=True)
class LearningPair:
    """What is said, and how the drafter hears it."""

    lessons: SavedLessons
    maker: SampleMaker


@contextmanager
def open_pair(target: Path, draft: Path, learned: Path, warn: Callable[[str], None]) -> Iterator[LearningPair]:
    """
    Args:
        learned: the folder of lessons.
        warn: told in a sentence what could not be read.

    Raises:
        LoadError: one of the files cannot be loaded.
        DistillationError: the drafter writes only a part of its vocabulary.
    """
    vocabulary_only = ModelOptions(vocabulary_only=True)
    with ExitStack() as stack:
        models = []
        for path in (target, draft):
            models.append(LlamaModel(path, vocabulary_only))
            stack.callback(models[-1].close)
        theirs, own = models
        if is_trimmed(own.header):
            raise DistillationError(
                f"{draft.name} writes only a part of its vocabulary: adapt the whole drafter instead"
            )
        same = match(theirs.vocabulary, own.vocabulary).same
        reader = theirs if same else own
        template, _ = usable(reader.chat_template, reader.vocabulary, *([] if same else [DOCUMENT]))
        maker = SampleMaker(theirs.vocabulary, own.vocabulary, template, same=same)
        yield LearningPair(lessons_of(learned, target, theirs.vocabulary, warn), maker)
