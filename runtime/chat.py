"""A conversation on an engine: templates, prefix reuse across turns, text out of tokens. `str` begins here."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgellm.runtime.backends.base import ContextFull, EngineError, Interrupted, keep_common_prefix
from edgellm.runtime.decode import Step, generate
from edgellm.runtime.engine import Engine
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.stopping import TextStream
from edgellm.runtime.template import Message

FinishReason = Literal["stop", "stop_string", "length", "context", "interrupted"]
OnFull = Literal["stop", "shift"]  # a full context ends the answer, or lets go of the oldest turns


@dataclass(slots=True)
class Stats:
    """What an answer cost. Times in seconds."""

    n_prompt: int = 0  # tokens of the whole conversation before the answer
    n_cached: int = 0  # of these, not evaluated again
    n_new: int = 0
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

    def add(self, step: Step) -> None:
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


class ChatSession:
    """Turns of a conversation. Only text that is new is evaluated; an interrupted answer is kept as far as it came."""

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        on_full: OnFull = "stop",
    ) -> None:
        """
        Args:
            on_full: "shift" forgets the oldest turns where the context is full, whole questions with their answers,
                until half of it is free; what is left is read anew, as if the conversation had begun there.
        """
        self.engine, self.sampling, self.stop = engine, sampling, tuple(stop)
        self.system, self.on_full = system, on_full
        self.messages: list[Message] = []
        self.n_forgotten = 0  # of `messages`, from the beginning: kept for `/save`, no longer read
        self.last: Answer | None = None

    def reply(self, text: str, *, max_tokens: int | None = None) -> Iterator[str]:
        """Say `text` and yield the answer piece by piece; afterwards `last` holds it whole.

        Closing the iterator, or `engine.stop_asked.set()` from a signal handler or another thread, ends the answer and
        keeps what was said; where nothing was said yet, the question is taken back too.

        Raises:
            ContextFull: the conversation does not fit; it is left as it was.
            EngineError: the engine failed; likewise.
        """
        n_before = len(self.messages)
        self.messages.append(Message("user", text))
        try:
            yield from self._answer(max_tokens)
        except (EngineError, ValueError):
            del self.messages[n_before:]
            raise
        finally:
            if len(self.messages) == n_before + 1:
                del self.messages[n_before:]

    def regenerate(self, *, max_tokens: int | None = None) -> Iterator[str]:
        """Answer the last question again.

        Raises:
            ValueError: nothing was asked yet.
        """
        if not self.messages:
            raise ValueError("there is no question to answer again")
        old = [self.messages.pop()] if self.messages[-1].role == "assistant" else []
        try:
            yield from self._answer(max_tokens)
        finally:
            if self.messages[-1].role == "user":  # no new answer came
                self.messages += old

    def clear(self) -> None:
        """Forget the conversation, not the system prompt."""
        self.messages.clear()
        self.last, self.n_forgotten = None, 0

    @property
    def n_context(self) -> int:
        """Tokens of the context in use."""
        return len(self.engine.backend.tokens)

    def _conversation(self, first: int | None = None) -> list[Message]:
        system = [Message("system", self.system)] if self.system else []
        return [*system, *self.messages[self.n_forgotten if first is None else first :]]

    def _prompt(self, n_answered: int) -> list[int]:
        """The conversation, shortened where it must and may be, so that there is room to go on behind `n_answered`.

        Raises:
            ContextFull: it does not fit.
        """
        n_ctx, render = self.engine.backend.n_ctx, self.engine.template.render
        prompt = render(self._conversation())
        if len(prompt) + n_answered < n_ctx:
            return prompt
        if self.on_full == "shift":
            n_asked = len(self.messages) - 1  # the question itself stays
            for first in range(self.n_forgotten + 2, n_asked + 1, 2):
                prompt = render(self._conversation(first))
                if len(prompt) + n_answered <= n_ctx // 2 or (first == n_asked and len(prompt) + n_answered < n_ctx):
                    self.n_forgotten = first
                    return prompt
        what, remedy = "conversation is", "/clear it, or start again with a larger --ctx or with --on-full shift"
        if self.on_full == "shift":
            what, remedy = "last question alone is", "start again with a larger --ctx"
        raise ContextFull(
            f"the {what} {len(prompt) + n_answered:,} tokens long and the context holds {n_ctx:,}: {remedy}"
        )

    def _steps(self, tokens: list[int], limit: int, stats: Stats) -> Generator[Step, None, None]:
        """Rounds of the answer whose `tokens` the caller collects; from a shortened conversation where it was full."""
        engine, ends = self.engine, self.engine.model.vocabulary.end_tokens
        while True:
            prompt = self._prompt(len(tokens))
            so_far = [*prompt, *tokens]
            n_cached = keep_common_prefix(engine.backend, so_far, len(so_far) - 1)
            if not tokens:
                stats.n_prompt, stats.n_cached = len(prompt), n_cached
            # With a seed, drafts are given tokens: the same seed is then the same answer, whatever was learnt since.
            imitated = self.sampling if self.sampling.seed is None else GREEDY
            engine.drafter.begin(prompt, own_prompt=engine.draft_prompt(self._conversation()), sampling=imitated)
            if tokens:
                engine.drafter.observe(so_far, n_new=len(tokens))
            yield from generate(
                engine.backend,
                engine.drafter,
                so_far,
                self.sampling,
                n_draft=engine.n_draft,
                max_new=limit - len(tokens),
                stop=ends,
            )
            if self.on_full == "stop" or len(tokens) >= limit or tokens[-1] in ends:
                return

    def _answer(self, max_tokens: int | None) -> Iterator[str]:
        engine, stats, started = self.engine, Stats(), time.perf_counter()
        engine.stop_asked.clear()
        vocabulary = engine.model.vocabulary
        stream, tokens, shown = TextStream(self.stop), list[int](), list[str]()
        limit = max_tokens if max_tokens is not None else engine.backend.n_ctx
        reason: FinishReason = "interrupted"
        ends = vocabulary.end_tokens
        steps = self._steps(tokens, limit, stats)
        try:
            for step in steps:
                now = time.perf_counter()
                if not stats.n_rounds:
                    stats.prefill_s = now - started - step.total_s
                    started += stats.prefill_s
                stats.add(step)
                stats.decode_s = now - started
                piece = ""
                for token in step.tokens:  # one by one: no token behind a stop string is kept, however many came along
                    tokens.append(token)
                    piece += stream.feed(vocabulary.piece(token))
                    if stream.stopped:
                        break
                if piece:
                    shown.append(piece)
                    yield piece
                if stream.stopped:
                    reason = "stop_string"
                    break
                if engine.stop_asked.is_set():
                    break
            else:
                reason = "stop" if tokens and tokens[-1] in ends else "length" if len(tokens) >= limit else "context"
                if piece := stream.feed(b"", final=True):
                    shown.append(piece)
                    yield piece
        except Interrupted:
            pass
        except ContextFull:
            if not tokens:
                raise
            reason = "context"  # the last question and this answer fill it: nothing older is left to forget
            if piece := stream.feed(b"", final=True):
                shown.append(piece)
                yield piece
        finally:
            steps.close()
            if tokens and tokens[-1] in ends:
                tokens.pop()
            shown.append(stream.feed(b"", final=True))  # what a stop string might have begun with
            self.last = Answer("".join(shown), tuple(tokens), reason, stats, self.n_forgotten)
            # Ids go back verbatim, so that the next turn finds them cached; not where a stop string cut inside them.
            ids = None if stream.stopped else self.last.tokens
            engine.keep()
            if stats.n_rounds:
                self.messages.append(Message("assistant", self.last.text, ids))
