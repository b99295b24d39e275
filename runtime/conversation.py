"""A conversation on an engine: templates, prefix reuse across turns, text out of tokens. `str` begins here."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgellm.runtime.backends.base import ContextFull, EngineError, Interrupted, keep_common_prefix
from edgellm.runtime.decode import RoundResult, generate
from edgellm.runtime.engine import Engine
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.reasoning import AnswerStream, Thinking
from edgellm.runtime.text.template import Message

FinishReason = Literal["stop", "stop_string", "length", "context", "interrupted"]
OnFull = Literal["stop", "shift"]  # a full context ends the answer, or lets go of the oldest turns


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

    def add(self, step: RoundResult) -> None:
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
    reasoning: str | None = None  # the thought before the text


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
        think: bool | None = None,
        think_budget: int | None = None,
    ) -> None:
        """
        Args:
            stop: ends the text before any of these; a thought may hold them.
            on_full: "shift" forgets the oldest turns where the context is full, whole questions with their answers,
                until half of it is free; what is left is read anew, as if the conversation had begun there.
            think: whether the model is to think before it answers; None leaves it to its chat template. See
                `Thinking.about` for models that cannot be told.
            think_budget: tokens of a thought, after which it is ended and the answer begins.
        """
        self.engine, self.sampling, self.stop = engine, sampling, tuple(stop)
        self.system, self.on_full = system, on_full
        self.thinking = Thinking(engine.template, engine.model.vocabulary, think, think_budget)
        self.messages: list[Message] = []
        self.n_forgotten = 0  # of `messages`, from the beginning: kept for `/save`, no longer read
        self.last: Answer | None = None

    def reply(
        self, text: str, *, max_tokens: int | None = None, on_thought: Callable[[str], None] | None = None
    ) -> Iterator[str]:
        """Say `text` and yield the answer piece by piece; afterwards `last` holds it whole.

        `on_thought` is given the pieces of what the model thinks before it answers.

        Closing the iterator, or `engine.stop_asked.set()` from a signal handler or another thread, ends the answer and
        keeps what was said; where nothing was said yet, the question is taken back too.

        Raises:
            ContextFull: the conversation does not fit; it is left as it was.
            EngineError: the engine failed; likewise.
        """
        n_before = len(self.messages)
        self.messages.append(Message("user", text))
        try:
            yield from self._answer(max_tokens, on_thought)
        except (EngineError, ValueError):
            del self.messages[n_before:]
            raise
        finally:
            if len(self.messages) == n_before + 1:
                del self.messages[n_before:]

    def regenerate(
        self, *, max_tokens: int | None = None, on_thought: Callable[[str], None] | None = None
    ) -> Iterator[str]:
        """Answer the last question again.

        Raises:
            ValueError: nothing was asked yet.
        """
        if not self.messages:
            raise ValueError("there is no question to answer again")
        old = [self.messages.pop()] if self.messages[-1].role == "assistant" else []
        try:
            yield from self._answer(max_tokens, on_thought)
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

        def render(first: int | None = None) -> list[int]:
            return self.engine.template.render(self._conversation(first), think=self.thinking.think)

        n_ctx, n_asked = self.engine.backend.n_ctx, len(self.messages) - 1  # the question itself stays
        prompt = render()
        if len(prompt) + n_answered < n_ctx:
            return prompt
        if self.on_full == "shift":
            for first in range(self.n_forgotten + 2, n_asked + 1, 2):
                prompt = render(first)
                if len(prompt) + n_answered <= n_ctx // 2 or (first == n_asked and len(prompt) + n_answered < n_ctx):
                    self.n_forgotten = first
                    return prompt
        alone = render(n_asked)
        if len(alone) + n_answered < n_ctx:
            what, remedy = "conversation is", "/clear it, or start again with a larger --ctx or with --on-full shift"
        else:  # to forget what was said before would not help
            prompt, what = alone, f"question{' with the system prompt' if self.system else ''} alone is"
            can_grow = n_ctx < (self.engine.model.n_ctx_train or n_ctx + 1)
            remedy = "shorten it" + (", or start again with a larger --ctx" if can_grow else "")
        raise ContextFull(
            f"the {what} {len(prompt) + n_answered:,} tokens long and the context holds {n_ctx:,}: {remedy}"
        )

    def _steps(
        self, begun: list[int], stream: AnswerStream, limit: int, stats: Stats
    ) -> Generator[RoundResult, None, None]:
        """Rounds of the answer whose tokens the caller collects; anew where it changed them, and from a shortened
        conversation where the context was full.

        `begun`: tokens before them that the model did not choose.
        """
        engine, ends, tokens = self.engine, self.engine.model.vocabulary.end_tokens, stream.tokens
        while True:
            prompt = [*self._prompt(len(begun) + len(tokens)), *begun]
            so_far, sampling = [*prompt, *tokens], self.sampling
            n_cached = keep_common_prefix(engine.backend, so_far, len(so_far) - 1)
            if not tokens:
                stats.n_prompt, stats.n_cached = len(prompt), n_cached
            elif sampling.seed is not None:  # other draws than those before
                sampling = dataclasses.replace(sampling, seed=sampling.seed + len(tokens))
            # With a seed, drafts are given tokens: the same seed is then the same answer, whatever was learnt since.
            imitated = sampling if sampling.seed is None else GREEDY
            # A drafter that thinks by itself drafts no thoughts for a target that does not.
            think = self.thinking.think if self.thinking.markers is not None else False
            own_prompt = engine.draft_prompt(self._conversation(), think=think)
            engine.drafter.begin(prompt, own_prompt=own_prompt, sampling=imitated)
            if tokens:
                engine.drafter.observe(so_far, n_new=len(tokens))
            for step in generate(
                engine.backend,
                engine.drafter,
                so_far,
                sampling,
                n_draft=engine.n_draft,
                max_new=limit - len(tokens),
                stop=ends,
            ):
                yield step
                if stream.is_rewritten:
                    stream.is_rewritten = False
                    break
            else:
                if self.on_full == "stop" or len(tokens) >= limit or tokens[-1] in ends:
                    return

    def _answer(self, max_tokens: int | None, on_thought: Callable[[str], None] | None) -> Iterator[str]:
        engine, stats, started = self.engine, Stats(), time.perf_counter()
        engine.stop_asked.clear()
        vocabulary = engine.model.vocabulary
        begun, in_thought = self.thinking.begin()
        stream = AnswerStream(self.thinking.markers, vocabulary, self.stop, in_thought=in_thought)
        limit = max_tokens if max_tokens is not None else engine.backend.n_ctx
        reason: FinishReason = "interrupted"
        tokens, ends = stream.tokens, vocabulary.end_tokens

        def shown(thought: str, text: str) -> str:
            if thought and on_thought is not None:
                on_thought(thought)
            return text

        steps = self._steps(begun, stream, limit, stats)
        try:
            for step in steps:
                now = time.perf_counter()
                if not stats.n_rounds:
                    stats.prefill_s = now - started - step.total_s
                    started += stats.prefill_s
                stats.add(step)
                stats.decode_s = now - started
                if piece := shown(*self._take(step, stream, limit, stats)):
                    yield piece
                if stream.stopped:
                    reason = "stop_string"
                    break
                if engine.stop_asked.is_set():
                    break
            else:
                reason = "stop" if tokens and tokens[-1] in ends else "length" if len(tokens) >= limit else "context"
                if piece := shown(*stream.end()):
                    yield piece
        except Interrupted:
            pass
        except ContextFull:
            if not tokens:
                raise
            reason = "context"  # the last question and this answer fill it: nothing older is left to forget
            if piece := shown(*stream.end()):
                yield piece
        finally:
            steps.close()
            if tokens and tokens[-1] in ends:
                tokens.pop()
            shown(*stream.end())  # what a stop string might have begun with
            stats.n_thought = stream.n_thought
            text, thought = stream.text, stream.thought or None
            self.last = Answer(text, tuple(tokens), reason, stats, self.n_forgotten, thought)
            engine.save()
            if stats.n_rounds:
                # Where the next prompt spells them, ids go back verbatim and are found cached; not where a stop string
                # cut inside them.
                ids = None if stream.stopped else self.last.tokens
                self.messages.append(Message("assistant", text, ids, thought))

    def _take(self, step: RoundResult, stream: AnswerStream, limit: int, stats: Stats) -> tuple[str, str]:
        """The thought and the text that a round adds, up to a stop string or to where the thought has to end."""
        ends, thought, text = self.engine.model.vocabulary.end_tokens, "", ""
        for n, token in enumerate(step.tokens, 1):  # one by one: nothing behind a stop string is kept
            new = [stream.feed(token)]
            if token not in ends and len(stream.tokens) < limit and (forced := self.thinking.cut(stream)):
                # What was drafted beyond goes too, so that the answer is the same whatever was drafted.
                stats.n_new -= len(step.tokens) - n
                new += stream.add(forced)
            thought, text = thought + "".join(t for t, _ in new), text + "".join(t for _, t in new)
            if stream.stopped or stream.is_rewritten:
                break
        return thought, text
