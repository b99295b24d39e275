"""The child in which a target answers questions, a user's or its own, until there are lessons enough.

Answers are kept as they come, so what ends it loses those of the last seconds alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgellm.memory.children import Send, in_background, serve, stop_asked
from edgellm.memory.device import this_machine
from edgellm.memory.draft_adapter import read_draft_adapter
from edgellm.memory.errors import EdgellmError
from edgellm.memory.plan import RUNTIME_BASE_BYTES, DoesNotFit
from edgellm.memory.plan_lines import PACKED_GROWTH
from edgellm.memory.shape import UnknownShape, from_header
from edgellm.memory.split import read_model
from edgellm.memory.talking import talk_bytes
from edgellm.memory.units import format_bytes
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.distillation.curriculum import id_of, is_judging
from edgellm.runtime.distillation.job import seen_by
from edgellm.runtime.distillation.judging import MIN_ANSWERS
from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.distillation.lessons import SavedLessons, lessons_of
from edgellm.runtime.distillation.orders import TalkOrder, telling_failures
from edgellm.runtime.distillation.own_questions import OwnQuestions
from edgellm.runtime.distillation.questions import Given, Question, read_prompts
from edgellm.runtime.distillation.talking import Talker
from edgellm.runtime.distillation.watching import RunningClock
from edgellm.runtime.text.template import usable

N_SEQUENCES = (16, 8, 4, 2, 1)  # at once, or fewer where memory is short
N_CTX = 1024  # tokens of each: a question, which may hold a text, and its answer
ANSWER_TOKENS = 384  # at most; what a drafter learns from of one lesson is little longer
SAVE_S = 3.0  # between writes of the lessons' file
TELL_S = 2.0  # between signs of life
LAST_QUESTION_SHARE = 0.7  # of the time, after which nothing new is asked: answers that run are finished


class Lessons:
    """Those of a target, counted."""

    def __init__(self, saved: SavedLessons, seen: set[str]) -> None:
        self._saved, self._seen = saved, seen
        self.known = saved.all()
        self.n_new = sum(id_of(lesson) not in seen for lesson in self.known)
        self.n_tokens = sum(len(lesson.tokens) for lesson in self.known if id_of(lesson) not in seen)
        self.n_judging = sum(map(is_judging, self.known))

    def add(self, lesson: Lesson) -> None:
        self._saved.add(lesson)
        self.n_new += 1
        self.n_tokens += len(lesson.tokens)
        self.n_judging += is_judging(lesson)

    def save(self) -> None:
        """Raises OSError."""
        self._saved.save()

    def suffice(self, n_tokens: int) -> bool:
        return self.n_tokens >= n_tokens and self.n_judging >= MIN_ANSWERS


class _Until:
    """Set once the parent or the time wants an end. Asked in every pass, it tells now and then that there is life."""

    def __init__(self, clock: RunningClock, seconds: float, tell: Callable[[], None]) -> None:
        self._clock, self._seconds, self._tell, self._told_s = clock, seconds, tell, clock.seconds

    def is_set(self) -> bool:
        if self._clock.seconds - self._told_s >= TELL_S:
            self._told_s = self._clock.seconds
            self._tell()
        return stop_asked.is_set() or self._clock.seconds >= self._seconds


class _Enough:
    """An `Asker` that asks nothing more once there are lessons enough, or only time to finish answers."""

    def __init__(self, asker: Given | OwnQuestions, is_enough: Callable[[], bool]) -> None:
        self._asker, self._is_enough, self.hear = asker, is_enough, asker.hear

    @property
    def done(self) -> bool:
        return self._asker.done or self._is_enough()

    def next(self) -> Question | None:
        return None if self.done else self._asker.next()


def talk(order: TalkOrder, send: Send) -> None:
    """Raises BadPrompts, DoesNotFit, LoadError, EngineError, OSError."""
    clock, path = RunningClock(), Path(order.target)
    vocabulary_only = LlamaModel(path, ModelOptions(vocabulary_only=True))
    try:
        saved = lessons_of(Path(order.learned), path, vocabulary_only.vocabulary, lambda text: send({"warning": text}))
        seen = seen_by(read_draft_adapter(Path(order.adapter)) if order.adapter else None)
        lessons = Lessons(saved, seen)
    finally:
        vocabulary_only.close()
    asker = _asker(order, lessons)
    send(_state(lessons, order, n_said=0, seconds=0.0))
    if asker is None:
        return
    model = LlamaModel(path, ModelOptions(mmap=False))
    try:
        template, _ = usable(model.chat_template, model.vocabulary)
        n_sequences = fitting_sequences(order)
        talker = Talker(model, template, n_sequences=n_sequences, n_ctx=N_CTX, n_threads=order.n_threads)
        try:
            _listen(talker, asker, lessons, order, clock, send)
        finally:
            lessons.save()
            talker.close()
    finally:
        model.close()


def _asker(order: TalkOrder, lessons: Lessons) -> Given | OwnQuestions | None:
    """None where nothing needs to be asked."""
    if order.prompts is not None:
        answered = {lesson.messages for lesson in lessons.known}
        left = [question for question in read_prompts(Path(order.prompts)) if question.messages not in answered]
        return Given(left) if left else None
    if lessons.suffice(order.n_tokens):
        return None
    return OwnQuestions(seed=len(lessons.known), known=lessons.known)


def _listen(
    talker: Talker,
    asker: Given | OwnQuestions,
    lessons: Lessons,
    order: TalkOrder,
    clock: RunningClock,
    send: Send,
) -> None:
    began_s, saved_s, n_said = clock.seconds, clock.seconds, 0
    is_own = isinstance(asker, OwnQuestions)

    def is_enough() -> bool:
        is_late = clock.seconds >= LAST_QUESTION_SHARE * order.seconds
        return is_late or (is_own and lessons.suffice(order.n_tokens))

    def tell() -> None:
        send(_state(lessons, order, n_said=n_said, seconds=clock.seconds - began_s))

    until = _Until(clock, order.seconds, tell)
    for lesson in talker.answer(_Enough(asker, is_enough), max_tokens=ANSWER_TOKENS, cancel=until):
        lessons.add(lesson)
        n_said += len(lesson.tokens)
        if clock.seconds - saved_s >= SAVE_S:
            lessons.save()
            saved_s = clock.seconds
        tell()


def _state(lessons: Lessons, order: TalkOrder, *, n_said: int, seconds: float) -> dict[str, Any]:
    return {
        "n_lessons": lessons.n_new,
        "n_tokens": lessons.n_tokens,
        "n_wanted": order.n_tokens,
        "tokens_per_s": round(n_said / seconds, 2) if seconds > 0 else 0.0,
        "n_said": n_said,
    }


def fitting_sequences(order: TalkOrder, choices: Sequence[int] = N_SEQUENCES) -> int:
    """How many texts the memory has room for at once.

    Raises:
        DoesNotFit: not even for one.
    """
    path = Path(order.target)
    free = order.mem_bytes if order.mem_bytes is not None else this_machine().usable_bytes
    header = read_model(path)
    weights = int(header.file_bytes * (1 + max(PACKED_GROWTH.values()))) + RUNTIME_BASE_BYTES
    try:
        shape = from_header(header, path.stem)
        needs = {n: weights + talk_bytes(shape, n_sequences=n, n_ctx=N_CTX, n_threads=order.n_threads) for n in choices}
    except UnknownShape:  # nothing is known of its cache: the engine says what it thinks of it
        return choices[0]
    found = next((n for n, needed in needs.items() if needed <= free), None)
    if found is None:
        raise DoesNotFit(
            f"{order.target_name} takes {format_bytes(min(needs.values()))} to answer questions and there are "
            f"{format_bytes(free)} for it: end other programs, or raise --mem"
        )
    return found


def _run(request: dict[str, Any], send: Send) -> None:
    in_background()
    with telling_failures(send):
        talk(TalkOrder(**request), send)
        send({"talked": True})


if __name__ == "__main__":
    serve(_run, EdgellmError, OSError)
