"""What came of a request: its pieces, the whole, and what it cost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgellm.runtime.logprobs import Logprob
from edgellm.runtime.text.tools import ToolCall

if TYPE_CHECKING:
    from edgellm.runtime.decode import RoundResult

FinishReason = Literal["stop", "stop_string", "tool_calls", "length", "context", "interrupted"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of an answer that may be shown."""

    text: str  # of a call, its arguments; empty where a token without a text has log probabilities to tell
    kind: Literal["text", "thought", "tool_call"]
    logprobs: tuple[Logprob, ...] = ()  # of the tokens of a text, where they were asked for
    drafted: tuple[tuple[int, int], ...] = ()  # characters of a text that were drafted: first, behind the last
    call: ToolCall | None = None  # a call comes whole, with its place among the answer's in `index`
    index: int = 0


class DraftedParts:
    """Which characters of an answer's text were drafted, until they are told."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int]] = []
        self._n_told = 0  # characters

    def add(self, begin: int, end: int) -> None:
        """A drafted token wrote these characters."""
        if self._waiting and self._waiting[-1][1] == begin:
            begin = self._waiting.pop()[0]
        if end > begin:
            self._waiting.append((begin, end))

    def tell(self, n_characters: int) -> tuple[tuple[int, int], ...]:
        """Of the next characters that are told, from the first of them on."""
        first, self._n_told = self._n_told, self._n_told + n_characters
        cut = [(max(b, first) - first, min(e, self._n_told) - first) for b, e in self._waiting]
        self._waiting = [(b, e) for b, e in self._waiting if e > self._n_told]
        return tuple((b, e) for b, e in cut if b < e)


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
    logprobs: tuple[Logprob, ...] | None = None  # of the text's tokens and the end token, where they were asked for
    prompt_logprobs: tuple[Logprob, ...] | None = None  # of the prompt's tokens but the first
    tool_calls: tuple[ToolCall, ...] = ()
    stopped_by: str | None = None  # the stop string that it ended before

    def to_json(self) -> dict[str, Any]:
        """The documented object; of calls only where there are any."""
        calls = {"tool_calls": [call.to_json() for call in self.tool_calls]} if self.tool_calls else {}
        return {
            "text": self.text,
            "reasoning": self.reasoning,
            **calls,
            "finish_reason": self.finish_reason,
            "n_forgotten": self.n_forgotten,
            "stats": self.stats.to_json(),
        }
