"""What a target answered, kept between runs for drafters to learn from."""

from __future__ import annotations

from dataclasses import replace

from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.distillation.packed_lessons import MAX_BYTES, MAX_TOKENS, newest, pack, records_of, unpack
from edgellm.runtime.learning.files import SealedFile

MAX_ANSWER_TOKENS = 4096  # of one lesson; the rest of a longer answer is left out
MAX_PROMPT_CHARACTERS = 16_384  # of one lesson; the oldest turns are left out before


class SavedLessons:
    """A target's lessons: the newest within a budget. Those of earlier runs stay on disk until they are asked for.

    Two processes add to them without losing each other's.
    """

    def __init__(
        self, file: SealedFile | None, n_vocab: int, *, max_tokens: int = MAX_TOKENS, max_bytes: int = MAX_BYTES
    ) -> None:
        """
        Args:
            file: None: they live as long as the process.
            n_vocab: of the target.
            max_tokens: of all answers.
            max_bytes: of all lessons, before they are deflated.
        """
        self._file, self._n_vocab = file, n_vocab
        self._max_tokens, self._max_bytes = min(max_tokens, MAX_TOKENS), min(max_bytes, MAX_BYTES)
        self._new: list[bytes] = []  # not in the file yet

    def add(self, lesson: Lesson) -> None:
        """Keep a lesson, without what no training reads of a long one.

        Raises:
            ValueError: it is none of this target, and in a file it would cost all others.
        """
        if (shortened := _shortened(lesson)) is not None:
            record = pack(shortened)
            unpack(record, self._n_vocab)
            self._new = self._newest([*self._new, record])

    def save(self) -> None:
        """Add what is new to the file. Raises OSError."""
        if self._file is None or not self._new:
            return
        self._file.update(lambda payload: b"".join(self._newest([*self._records(payload), *self._new])))
        self._new = []

    def all(self) -> list[Lesson]:
        """Every lesson, the oldest first; what other processes saved since is among them."""
        earlier = self._records(self._file.read() if self._file is not None else None)
        try:
            return self._unpacked(self._newest([*earlier, *self._new]))
        except ValueError as error:
            self._set_aside(error)
            return self._unpacked(self._new)

    def _unpacked(self, records: list[bytes]) -> list[Lesson]:
        return [unpack(record, self._n_vocab) for record in records]

    def _newest(self, records: list[bytes]) -> list[bytes]:
        return newest(records, self._max_tokens, self._max_bytes)

    def _records(self, payload: bytes | None) -> list[bytes]:
        try:
            return records_of(payload or b"")
        except ValueError as error:
            self._set_aside(error)
            return []

    def _set_aside(self, error: ValueError) -> None:
        assert self._file is not None
        self._file.set_aside(f"holds {error}")


def _shortened(lesson: Lesson) -> Lesson | None:
    """None where nothing was said, or the question alone is too long."""
    messages, n_answer = list(lesson.messages), len(lesson.tokens)
    n_system = int(bool(messages) and messages[0][0] == "system")
    while sum(len(content) for _, content in messages) > MAX_PROMPT_CHARACTERS:
        later = [i for i in range(n_system + 1, len(messages)) if messages[i][0] == "user"]
        if not later:
            return None
        del messages[n_system : later[0]]
    if not messages or not n_answer:
        return None
    shortened = replace(lesson, messages=tuple(messages))
    if n_answer <= MAX_ANSWER_TOKENS:
        return shortened
    tokens, likely = lesson.tokens[:MAX_ANSWER_TOKENS], lesson.likely[:MAX_ANSWER_TOKENS]
    return replace(shortened, tokens=tokens, likely=likely, ended=False)
