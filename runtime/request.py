"""What is asked of a model and what comes of it: one record each, for chat, benchmarks, JSON, Python and a server."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.runtime.constraint import Constraint
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.template import Message, Role

if TYPE_CHECKING:
    from edgellm.runtime.decode import RoundResult

FinishReason = Literal["stop", "stop_string", "length", "context", "interrupted"]
OnFull = Literal["stop", "shift"]  # a full context ends the answer, or lets go of the oldest turns
Messages: TypeAlias = "str | Sequence[Message | Mapping[str, Any]]"
"""A question; or messages, or {"role", "content"} objects as OpenAI-compatible servers take them."""
_ROLES: dict[str, Role] = {**{role: role for role in get_args(Role)}, "developer": "system"}


class BadRequest(EdgellmError, ValueError):
    """A request that cannot be answered as it stands; the message says what to change."""

    exit_code = USAGE


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. The default is a greedy answer, as long as the model makes it.

    Raises:
        BadRequest: there is nothing to answer, the last message is an answer, a message is no text, or a number is
            negative.
    """

    # Any order that the model's template can write, system messages in between and answers first among them.
    messages: tuple[Message, ...]
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()  # the text ends before any of these; a thought may hold them
    max_tokens: int | None = None  # None: until the model or the context ends it
    think: bool | None = None  # None leaves it to the model's template
    think_budget: int | None = None  # tokens of a thought, after which it is ended; None: as many as it takes
    n_draft: int | None = None  # tokens drafted a round, at most; None: what the engine allows
    on_full: OnFull = "stop"
    constraint: Constraint | None = None  # what the text is held to; of the target's vocabulary

    def __post_init__(self) -> None:
        if not self.messages:
            raise BadRequest("there is nothing to answer: give at least one message")
        for i, message in enumerate(self.messages, 1):
            _check(i, message)
        if self.messages[-1].role == "assistant":
            raise BadRequest("the last message is an answer already: end with a user's message")
        for name in ("max_tokens", "think_budget", "n_draft"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise BadRequest(f"{name} {value} is negative: leave it out, or give 0 or more")
        if not all(isinstance(text, str) for text in self.stop):
            raise BadRequest("stop is no list of texts")

    @classmethod
    def of(cls, messages: Messages, *, stop: str | Sequence[str] = (), **settings: Any) -> Request:
        """A request as people and servers write it: one question, or messages as objects. Raises BadRequest."""
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        return cls(read_messages(messages), stop=stop, **settings)


def read_messages(given: Messages) -> tuple[Message, ...]:
    """Messages of a question, or of objects with a role and a content that is a text or a list of parts of type text.

    Raises:
        BadRequest: one is of another form; the message says which.
    """
    if isinstance(given, str):
        return (Message("user", given),)
    if isinstance(given, Mapping) or not isinstance(given, Sequence):
        raise BadRequest('messages is no list of {"role", "content"} objects')
    return tuple(one if isinstance(one, Message) else _read(i, one) for i, one in enumerate(given, 1))


def _read(i: int, given: Any) -> Message:
    if not isinstance(given, Mapping):
        raise BadRequest(f'message {i} is no {{"role", "content"}} object')
    role, content = _ROLES.get(str(given.get("role"))), given.get("content")
    if role is None:
        raise BadRequest(f"message {i} is of role {given.get('role')!r}: take system, user or assistant")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(i, part) for part in content)
    return Message(role, content, reasoning=given.get("reasoning"))  # type: ignore[arg-type]  # `Request` checks it


def _part(i: int, part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise BadRequest(f"message {i} holds a part that is no text: only text is read")
    return text


def _check(i: int, message: Message) -> None:
    if message.role not in get_args(Role):
        raise BadRequest(f"message {i} is of role {message.role!r}: take system, user or assistant")
    for text in (message.content, "" if message.reasoning is None else message.reasoning):
        if not isinstance(text, str):
            raise BadRequest(f"message {i} is no text: only text is read")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(f"message {i} is no valid text: it holds half a surrogate pair") from error


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of an answer that may be shown."""

    text: str
    kind: Literal["text", "thought"]


@dataclass(slots=True)
class Stats:
    """What an answer cost. Times in seconds."""

    n_prompt: int = 0  # tokens of the whole conversation before the answer
    n_cached: int = 0  # of these, not evaluated again
    n_new: int = 0
    n_thought: int = 0  # of these, before the text
    n_rounds: int = 0  # forward passes of the target
    n_drafted: int = 0
    n_accepted: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    draft_s: float = 0.0  # of decode_s, in the draft model
    translate_s: float = 0.0  # of decode_s, the rest of drafting
    verify_s: float = 0.0  # of decode_s, in the target
    sample_s: float = 0.0  # of decode_s, choosing and checking tokens
    drafted_by: Counter[str] = dataclasses.field(default_factory=Counter)
    accepted_by: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def tokens_per_s(self) -> float:
        return self.n_new / self.decode_s if self.decode_s else 0.0

    @property
    def tokens_per_round(self) -> float:
        return self.n_new / self.n_rounds if self.n_rounds else 0.0

    @property
    def acceptance(self) -> float:
        return self.n_accepted / self.n_drafted if self.n_drafted else 0.0

    def add_round(self, step: RoundResult) -> None:
        self.n_rounds += 1
        self.n_new += len(step.tokens)
        self.n_drafted += step.n_drafted
        self.n_accepted += step.n_accepted
        self.draft_s += step.draft_s
        self.translate_s += step.translate_s
        self.verify_s += step.verify_s
        self.sample_s += step.sample_s
        for i, source in enumerate(step.sources or [step.source] * step.n_drafted):
            self.drafted_by[source] += 1
            self.accepted_by[source] += i < step.n_accepted

    def add(self, other: Stats) -> None:
        """Sum every figure of another answer into this."""
        for field in dataclasses.fields(self):
            value = getattr(other, field.name)
            if isinstance(value, Counter):
                getattr(self, field.name).update(value)
            else:
                setattr(self, field.name, getattr(self, field.name) + value)

    def to_json(self) -> dict[str, Any]:
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "drafted_by": dict(self.drafted_by),  # `asdict` would take a Counter's items for its keys
            "accepted_by": dict(self.accepted_by),
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_round": self.tokens_per_round,
            "acceptance": self.acceptance,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats
    n_forgotten: int = 0  # messages at the beginning of the conversation that it was written without
    reasoning: str | None = None  # the thought before the text

    def to_json(self) -> dict[str, Any]:
        """The documented object."""
        return {
            "text": self.text,
            "reasoning": self.reasoning,
            "finish_reason": self.finish_reason,
            "n_forgotten": self.n_forgotten,
            "stats": self.stats.to_json(),
        }
