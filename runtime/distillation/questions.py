"""Questions that a target is to answer: where they come from, and a user's own in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edgellm.memory.units import format_bytes
from edgellm.runtime.comparison import BadPrompts

FILE_MOST_BYTES = 256 * 2**20
PROMPT_MOST_BYTES = 256 * 2**10  # of a line; more than any context here holds
MESSAGES_MOST = 64
_TEXTS = ("prompt", "messages", "turns")
_ROLES = ("system", "user", "assistant")  # what tools say is no lesson


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation up to what the target says next."""

    messages: tuple[tuple[str, str], ...]  # (role, content); a system prompt only if it is given
    kind: str = "chat"  # where it comes from
    seed: int | None = None  # None: the likeliest tokens, a lesson; else drawn with it, for the asker alone

    @classmethod
    def of(cls, text: str, kind: str = "chat") -> Question:
        return cls((("user", text),), kind)


@runtime_checkable
class Asker(Protocol):
    """Who asks, and is told what was answered: later questions may follow from earlier answers."""

    def next(self) -> Question | None:
        """What is to be answered next; None: nothing, unless it hears of an answer that still runs."""
        ...

    def hear(self, question: Question, text: str, *, ended: bool) -> None:
        """What came of one. `ended`: the target said all that it wanted to."""
        ...

    @property
    def done(self) -> bool:
        """Nothing more will be asked: what was to be heard by the asker alone need not be finished."""
        ...


class Given:
    """Questions that are there already, asked in their order."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._questions: Iterator[Question] = iter(questions)
        self.done = False

    def next(self) -> Question | None:
        question = next(self._questions, None)
        self.done = question is None
        return question

    def hear(self, question: Question, text: str, *, ended: bool) -> None:
        return None


def read_prompts(path: Path) -> list[Question]:
    """The questions of a file: one a line, as text, or as JSON where its first line is a JSON object.

    A JSON line has "prompt" (a text), "messages" ([{"role", "content"}, …] up to a user's) or "turns" (texts of a user,
    of which the first is asked), and may name its kind of text in "task".

    Raises:
        BadPrompts: the file cannot be read, is too large or empty, or one of its lines is not of its form.
    """
    lines = _lines(path)
    first = next((line for _, line in lines), "")
    in_json = _is_object(first)
    questions = []
    for number, line in lines:
        try:
            questions.append(_from_json(line) if in_json else Question.of(line, "prompt"))
        except BadPrompts as wrong:
            raise BadPrompts(f"{path}, line {number}: {wrong}") from None
    return questions


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of lines that are not blank, white space around them taken off."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MOST_BYTES + 1)
    except OSError as error:
        raise BadPrompts(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > FILE_MOST_BYTES:
        raise BadPrompts(f"{path} is larger than {format_bytes(FILE_MOST_BYTES)}: split it, and give one of the parts")
    lines = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if len(raw) > PROMPT_MOST_BYTES:
            raise BadPrompts(f"{path}, line {number}: it is longer than {format_bytes(PROMPT_MOST_BYTES)}")
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError:
            raise BadPrompts(f"{path}, line {number}: it is not UTF-8; save the file as UTF-8 text") from None
        if "\0" in line:
            raise BadPrompts(f"{path}, line {number}: it holds a zero byte, so the file is no text")
        if line:
            lines.append((number, line))
    if not lines:
        raise BadPrompts(f"{path} holds no prompts: write one a line, or JSON lines with a prompt each")
    return lines


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _from_json(line: str) -> Question:
    """Raises BadPrompts: what is wrong with the line; which one it is says `read_prompts`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise BadPrompts("it is no JSON, as the first line is") from None
    given = [name for name in _TEXTS if name in record] if isinstance(record, dict) else []
    if len(given) != 1:
        found = " and ".join(f'"{name}"' for name in given) or "none of them"
        raise BadPrompts(f'one of "prompt", "messages" and "turns" is needed, and it has {found}')
    name, value = given[0], record[given[0]]
    kind = record.get("task", "prompt")
    if not isinstance(kind, str) or not 0 < len(kind) <= 64:
        raise BadPrompts('"task" must be a short text')
    if name == "messages":
        return Question(_messages(value), kind)
    if name == "prompt":
        return Question.of(_text(value, '"prompt"'), kind)
    if not isinstance(value, list) or not value:
        raise BadPrompts('"turns" must be a list of texts')
    return Question.of(_text(value[0], 'the first of "turns"'), kind)


def _messages(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MESSAGES_MOST:
        raise BadPrompts(f'"messages" must be a list of 1 to {MESSAGES_MOST}')
    found: list[tuple[str, str]] = []
    for i, message in enumerate(value, 1):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise BadPrompts(f'message {i} must have a "role", one of {", ".join(_ROLES)}, and a "content"')
        if role == "system" and i > 1:
            raise BadPrompts(f"message {i} is a system prompt, which must come first")
        found.append((role, _text(message.get("content"), f'"content" of message {i}')))
    if found[-1][0] != "user":
        raise BadPrompts("the last message must be a user's, which the target is then to answer")
    return tuple(found)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadPrompts(f"{name} must be a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadPrompts(f"{name} holds half a character (a lone surrogate)") from None
    return value
