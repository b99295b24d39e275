"""A target answers many questions at once, each as it would alone, and says what it held likely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from fakes import byte_vocabulary
from numpy.typing import NDArray
from tiny_gguf import CHATML

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.base import ContextFull
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.backends.llama_sequences import Part
from edgellm.runtime.distillation import talking
from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.distillation.own_questions import OwnQuestions
from edgellm.runtime.distillation.questions import Question
from edgellm.runtime.distillation.talking import Talker, likeliest, without_thought
from edgellm.runtime.text.template import ChatTemplate, Message

NO = "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
VOCABULARY = byte_vocabulary(control=("<|im_start|>", "<|im_end|>"), ends=("<|im_end|>",))
START, END = (VOCABULARY.literals[text] for text in ("<|im_start|>", "<|im_end|>"))
Answers = Callable[[str], bytes]


class Scripted:
    """`LlamaSequences` whose model says what a function of the question says; a zero byte is a control token."""

    answers: Answers
    passes: list[list[int]]  # the sequences of each pass
    on_pass: Callable[[], None]

    def __init__(self, model: Any, settings: ContextSettings, n_sequences: int) -> None:
        self.n_sequences, self.n_ctx = n_sequences, settings.n_ctx
        self.held: list[list[int]] = [[] for _ in range(n_sequences)]

    def read(self, sequence: int, tokens: Sequence[int]) -> None:
        self.held[sequence] += tokens
        assert len(self.held[sequence]) <= self.n_ctx

    def forward(self, parts: Sequence[Part]) -> tuple[list[NDArray[np.float32]], float]:
        Scripted.passes.append([part.sequence for part in parts])
        for part in parts:
            self.read(part.sequence, part.tokens)
        Scripted.on_pass()
        return [self._row(part.sequence)[None] for part in parts], 0.01

    def _row(self, sequence: int) -> NDArray[np.float32]:
        conversation, said = VOCABULARY.decode(self.held[sequence]).rsplit(b"assistant\n", 1)
        answer = Scripted.answers(conversation.decode().split("user\n")[-1].strip())
        rest = answer[len(said) :]
        row = np.zeros(VOCABULARY.n_tokens, np.float32)
        row[END if not rest else START if rest[0] == 0 else rest[0]] = 20.0
        return row

    def truncate(self, sequence: int, length: int) -> None:
        del self.held[sequence][length:]

    def close(self) -> None:
        return None


@pytest.fixture
def talker(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Talker]:
    """`talker(answers, n_sequences=2)`: one whose model says what `answers` says."""
    monkeypatch.setattr(talking, "LlamaSequences", Scripted)
    Scripted.passes, Scripted.on_pass = [], lambda: None

    def make(answers: Answers, *, n_sequences: int = 2, n_ctx: int = 2048) -> Talker:
        monkeypatch.setattr(Scripted, "answers", staticmethod(answers), raising=False)
        model = cast(LlamaModel, SimpleNamespace(vocabulary=VOCABULARY))
        return Talker(model, ChatTemplate(NO + CHATML, VOCABULARY), n_sequences=n_sequences, n_ctx=n_ctx, n_threads=1)

    return make


def texts(lessons: Sequence[Lesson]) -> list[str]:
    return [VOCABULARY.decode(lesson.tokens).decode() for lesson in lessons]


def test_answers_are_those_that_the_model_gives_alone(smollm2_path: Path) -> None:
    if not kernels().active:
        pytest.skip(f"llama.cpp's own kernels are in use: {kernels().reason}")
    model = LlamaModel(smollm2_path)
    template = ChatTemplate(model.chat_template, model.vocabulary)
    questions = [Question.of(text) for text in ("Name a colour.", "What is 2 + 3?", "Say yes.", "Hi!", "Who are you?")]
    talker = Talker(model, template, n_sequences=4, n_ctx=128, n_threads=1)
    lessons = {lesson.messages: lesson for lesson in talker.answer(questions, max_tokens=6)}
    talker.close()
    assert len(lessons) == len(questions)
    backend = LlamaBackend(model, ContextSettings(n_ctx=128, n_threads=1))
    for question in questions:
        lesson, alone = lessons[question.messages], list[int]()
        backend.truncate(0)
        row = backend.forward(template.render([Message("user", question.messages[0][1])]), 1)[0]
        while len(alone) < 6 and int(row.argmax()) not in model.vocabulary.end_tokens:
            alone.append(int(row.argmax()))
            row = backend.forward(alone[-1:], 1)[0]
        assert list(lesson.tokens) == alone
        said = [*alone, *([int(row.argmax())] if lesson.ended else [])]
        assert [likely[0][0] for likely in lesson.likely] == said
        assert lesson.ended == (len(alone) < 6)
    backend.close()
    model.close()


def test_a_free_sequence_takes_the_next_question_and_lessons_come_as_they_end(
    talker: Callable[..., Talker],
) -> None:
    questions = [Question.of(text, kind) for kind, text in zip("abcd", ("aaaaaa", "b", "cc", "d"), strict=True)]
    lessons = list(talker(str.encode).answer(questions, max_tokens=20))
    assert texts(lessons) == ["b", "cc", "aaaaaa", "d"]
    assert [lesson.kind for lesson in lessons] == ["b", "c", "a", "d"]
    assert all(lesson.ended and len(lesson.likely) == len(lesson.tokens) + 1 for lesson in lessons)
    assert len(Scripted.passes) == 7  # as many as the longest answer has tokens, with its end


def test_an_answer_that_is_cut_ends_with_a_whole_character(talker: Callable[..., Talker]) -> None:
    (lesson,) = talker(lambda _: "naïve".encode()).answer([Question.of("?")], max_tokens=3)
    assert (texts([lesson]), lesson.ended, len(lesson.likely)) == (["na"], False, 2)
    (lesson,) = talker(lambda _: b"ab\xffcd").answer([Question.of("?")], max_tokens=20)  # it ended, and is no text
    assert (texts([lesson]), lesson.ended, len(lesson.likely)) == (["ab"], False, 2)


def test_what_cannot_be_answered_is_counted_and_the_rest_is_answered(talker: Callable[..., Talker]) -> None:
    made = talker(lambda question: b"" if question == "nothing" else b"well", n_ctx=128)
    refused = Question((("assistant", "I begin."), ("user", "no")))
    questions = [Question.of("x" * 200), refused, *(Question.of(text) for text in ("one", "nothing", "two"))]
    lessons = list(made.answer(iter(questions), max_tokens=10))
    assert [lesson.messages[0][1] for lesson in lessons] == ["one", "two"]
    assert made.n_skipped == 3


def test_cancel_gives_back_what_was_finished_and_frees_the_sequences(talker: Callable[..., Talker]) -> None:
    cancel = Event()
    made = talker(str.encode)
    Scripted.on_pass = lambda: cancel.set() if len(Scripted.passes) == 3 else None
    questions = [Question.of(text) for text in ("long" * 9, "it", "next" * 9)]
    assert texts(list(made.answer(questions, max_tokens=50, cancel=cancel))) == ["it"]
    assert len(Scripted.passes) == 3
    assert texts(list(made.answer([Question.of("a"), Question.of("b")], max_tokens=50))) == ["a", "b"]


def test_of_what_was_cut_off_the_long_answers_are_kept(talker: Callable[..., Talker]) -> None:
    cancel = Event()
    made = talker(str.encode)
    Scripted.on_pass = lambda: cancel.set() if len(Scripted.passes) == 20 else None
    lessons = list(made.answer([Question.of("long" * 9), Question.of("it")], max_tokens=50, cancel=cancel))
    assert texts(lessons) == ["it", ("long" * 9)[:20]]
    assert [lesson.ended for lesson in lessons] == [True, False]
    assert len(lessons[1].likely) == len(lessons[1].tokens)


def test_a_target_that_asks_itself_answers_its_own_questions(talker: Callable[..., Talker]) -> None:
    listed = b"1. How do I bake bread at home?\n2. **Why is the sky blue at noon?**\n3. short\n4) Hello, what is it?"

    def answers(question: str) -> bytes:
        if question.startswith("Write 6 very different"):
            return listed
        if question.startswith("Write one message"):
            return b"What is wrong with this:\nprint(1"
        return b"So it is."

    made = talker(answers, n_sequences=4)
    lessons = list(made.answer(OwnQuestions(seed=1, n_questions=40), max_tokens=40))
    assert len(lessons) == 40
    asked = {lesson.messages[0][1] for lesson in lessons}
    assert {"How do I bake bread at home?", "Why is the sky blue at noon?"} <= asked
    assert not any(text.startswith(("short", "Hello", "Write 6", "Write one message")) for text in asked)
    assert any(lesson.kind.startswith("on-") and "So it is." in lesson.messages[0][1] for lesson in lessons)
    assert texts(lessons) == ["So it is."] * 40
    assert len({lesson.messages for lesson in lessons}) == 40


def test_a_message_that_a_control_token_spoils_is_not_used(talker: Callable[..., Talker]) -> None:
    heard: list[bool] = []

    questions = [Question((("user", "write"),), "debug", seed=1)]

    class Ask:
        done = False

        def next(self) -> Question | None:
            return questions.pop() if questions else None

        def hear(self, question: Question, text: str, *, ended: bool) -> None:
            heard.append(ended)

    assert list(talker(lambda _: b"ab\0").answer(Ask(), max_tokens=10)) == []
    assert heard == [False]


def test_too_short_a_context_for_own_questions_is_said_at_once(talker: Callable[..., Talker]) -> None:
    made = talker(lambda _: b"1. What is a very long question?", n_ctx=300)
    with pytest.raises(ContextFull, match="too few for the model to write questions of its own"):
        list(made.answer(OwnQuestions(n_questions=5), max_tokens=10))


def test_likely_tokens_are_few_sorted_and_sum_to_what_they_should() -> None:
    row = np.full(1000, -50.0, np.float32)
    row[[7, 3, 500]] = np.log([0.5, 0.3, 0.2])
    assert [(token, round(p, 5)) for token, p in likeliest(row)] == [(7, 0.5), (3, 0.3), (500, 0.2)]
    row[9] = np.log(0.003)
    assert 9 not in dict(likeliest(row))
    assert len(likeliest(np.zeros(100, np.float32))) == 8
    assert likeliest(np.zeros(1000, np.float32)) == ()


def test_what_follows_from_an_answer_does_not_follow_from_its_thought() -> None:
    assert without_thought("<think>\nhm\n</think>\n\nYes.", ended=True) == "Yes."
    assert without_thought("<think>\nhm", ended=False) == ""
    assert without_thought("Yes", ended=False) == "Yes"
