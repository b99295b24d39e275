"""A target that asks itself: it writes messages of many kinds, answers them, and goes on with what it answered.

As in Magpie (Xu et al. 2024, arXiv:2406.08464) nothing but the model is needed, so nobody's texts and licences are.
Kinds and topics are given to it (Self-Instruct, Wang et al. 2022, arXiv:2212.10560), since a small model that is left
alone asks the same few things. What it is asked with is in `questions.toml`.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.distillation.questions import Question

TEXT_SHARE = 0.5  # of what is asked anew: a text to write, which a task is then given on; the rest are messages
FOLLOW_UP_SHARE = 0.15  # of answers that ended, which are asked about once more
MESSAGE_LEAST_CHARACTERS = 16
_LISTED = re.compile(r"(?m)^\s*\d+[.)]\s*(.+?)\s*$")
_QUOTES = re.compile(r'^[*"“]+|[*"”]+$')


@dataclass(frozen=True, slots=True)
class Themes:
    """What `questions.toml` holds, one table after the other."""

    listed_request: str
    single_request: str
    n_listed: int
    unwanted: tuple[str, ...]  # beginnings of messages, in small letters
    listed_kinds: Mapping[str, str]
    single_kinds: Mapping[str, str]
    texts: Mapping[str, Mapping[str, str]]  # a group of them -> kind -> the request for one
    tasks: Mapping[str, Sequence[str]]  # a group -> what is then done with one of its texts
    follow_ups: Sequence[str]
    topics: Sequence[str]


@cache
def themes() -> Themes:
    table = tomllib.loads(Path(__file__).with_name("questions.toml").read_text(encoding="utf-8"))
    requests, kinds, texts, tasks = table["requests"], table["kinds"], table["texts"], table["tasks"]
    return Themes(
        requests["listed"],
        requests["single"],
        requests["n_listed"],
        tuple(requests["unwanted"]),
        kinds["listed"],
        kinds["single"],
        texts,
        {group: tasks[group] for group in texts},
        tasks["follow_ups"],
        [topic for topics in table["topics"].values() for topic in topics],
    )


class OwnQuestions:
    """An `Asker` that never runs out; the same seed and the same answers give the same questions."""

    def __init__(self, *, seed: int = 0, n_questions: int | None = None, known: Iterable[Lesson] = ()) -> None:
        """
        Args:
            n_questions: how many are asked for an answer to learn from; None: as long as somebody listens.
            known: lessons that are there already, whose questions are not asked again.
        """
        self._rng = np.random.default_rng(seed)
        self._themes = themes()
        self._texts = {
            kind: (group, text) for group, texts in self._themes.texts.items() for kind, text in texts.items()
        }
        self._kinds = [*self._themes.listed_kinds, *self._themes.single_kinds]
        self._next_kind = int(self._rng.integers(len(self._kinds)))  # they take turns
        self._waiting: deque[Question] = deque()
        self._asked = {_key(lesson.messages) for lesson in known}
        self._n_left = n_questions

    @property
    def done(self) -> bool:
        return self._n_left == 0

    def stop(self) -> None:
        """Ask nothing more: answers that run are finished."""
        self._n_left = 0

    def next(self) -> Question | None:
        if self.done:
            return None
        while self._waiting:
            question = self._waiting.popleft()
            if self._is_new(question):
                return question
        if self._rng.random() < TEXT_SHARE:
            question = self._text()
            if self._is_new(question):
                return question
        return self._request()

    def hear(self, question: Question, text: str, *, ended: bool) -> None:
        """Go on with what the target wrote: messages to be answered, a text to work on, an answer to ask about."""
        if question.seed is not None:
            if ended:
                self._waiting.extend(Question.of(message, question.kind) for message in self._messages(question, text))
        elif not text.strip():
            return
        elif question.kind in self._texts:
            self._waiting.append(self._task(question.kind, text))
        elif len(question.messages) == 1 and self._rng.random() < FOLLOW_UP_SHARE and ended:
            follow_up = ("user", self._one_of(self._themes.follow_ups))
            self._waiting.append(
                Question((*question.messages, ("assistant", text), follow_up), f"{question.kind}-2"),
            )

    def _request(self) -> Question:
        """For messages of the kind whose turn it is; what comes of it is no lesson."""
        given, kind = self._themes, self._kinds[self._next_kind]
        self._next_kind = (self._next_kind + 1) % len(self._kinds)
        if kind in given.single_kinds:
            text = given.single_request.format(kind=given.single_kinds[kind], topic=self._topic())
        else:
            text = given.listed_request.format(
                n=given.n_listed, kind=given.listed_kinds[kind], topic=self._topic(), other=self._topic()
            )
        return Question((("user", text),), kind, seed=int(self._rng.integers(2**63)))

    def _text(self) -> Question:
        kind = self._one_of(list(self._texts))
        return Question.of(self._texts[kind][1].format(topic=self._topic()), kind)

    def _task(self, kind: str, text: str) -> Question:
        """Something to do with a text that the target wrote."""
        task = self._one_of(self._themes.tasks[self._texts[kind][0]])
        return Question.of(task.format(language=kind.capitalize(), text=text), f"on-{kind}")

    def _messages(self, question: Question, text: str) -> list[str]:
        """The messages in what the target wrote when it was asked for some."""
        text = text.strip().strip('"').strip()
        if question.kind in self._themes.single_kinds:
            found = [text]
        else:
            found = [_QUOTES.sub("", line).strip() for line in _LISTED.findall(text)]
        return [message for message in found if self._is_message(message)]

    def _is_message(self, text: str) -> bool:
        is_long = len(text) >= MESSAGE_LEAST_CHARACTERS
        return is_long and not text.lower().startswith(self._themes.unwanted) and "\ufffd" not in text

    def _is_new(self, question: Question) -> bool:
        """Whether it was not asked before; it counts as asked from here on."""
        key = _key(question.messages)
        if key in self._asked:
            return False
        self._asked.add(key)
        if self._n_left is not None:
            self._n_left -= 1
        return True

    def _topic(self) -> str:
        return self._one_of(self._themes.topics)

    def _one_of(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]


def _key(messages: Iterable[tuple[str, str]]) -> bytes:
    """Of a conversation, whatever its capitals and white space."""
    words = " ".join(" ".join(content for _, content in messages).lower().split())
    return hashlib.sha256(words.encode("utf-8", "replace")).digest()[:16]
