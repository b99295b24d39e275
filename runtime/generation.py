"""One answer to one request: text out of tokens. Only the backend remembers, so what it holds is not read again."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Generator, Iterator, Sequence

from edgellm.runtime import decode
from edgellm.runtime.answer import Answer, DraftedParts, FinishReason, Piece, Stats
from edgellm.runtime.backends.base import (
    ContextFull,
    Interrupted,
    KeepsTurns,
    keep_common_prefix,
)
from edgellm.runtime.constraint import ConstraintState
from edgellm.runtime.decode import RoundResult
from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.drafters.base import Drafter
from edgellm.runtime.drafters.constrained import ConstrainedDrafter
from edgellm.runtime.held import call_stream, constraint_of, holds_calls
from edgellm.runtime.logprobs import Logprob, ShownLogprobs, score
from edgellm.runtime.prompting import Prompt
from edgellm.runtime.request import BadRequest, Request
from edgellm.runtime.sampling import GREEDY
from edgellm.runtime.supports import SupportsGeneration
from edgellm.runtime.text.behind_thought import BehindThought
from edgellm.runtime.text.reasoning import AnswerStream, Thinking

MIN_LESSON_TOKENS = 16  # of an answer that was interrupted: fewer say little of how the target goes on


class Generation(Iterator[str]):
    """An answer as it is written: iterate for its text, or `pieces` for text and thought; then `answer` holds it whole.

    Nothing is computed before the first piece is asked for. What it raises then:
        ContextFull: the conversation does not fit.
        ConstraintFailed: the constraint cannot be followed where the answer stands.
        TemplateError: the model's template refuses the conversation.
        EngineError: the engine failed.
    """

    def __init__(
        self,
        engine: SupportsGeneration,
        request: Request,
        *,
        cancel: threading.Event | None = None,
        thinking: Thinking | None = None,
    ) -> None:
        """
        Args:
            cancel: set from a signal handler or another thread, it ends the answer with what was said.
            thinking: the request's settings of thinking, where they were looked up before.

        Raises:
            BadRequest: a token that is named is none of the model's.
        """
        vocabulary = engine.model.vocabulary
        if request.prompt is not None:
            thinking = Thinking.none(engine.template, vocabulary)
        elif thinking is None:
            thinking = Thinking(engine.template, vocabulary, request.think, request.think_budget)
        named = (*(request.prompt or ()), *(token for token, _ in request.sampling.logit_bias))
        if request.prompt is not None and engine.template.reads_last:
            raise BadRequest("this model has an encoder: it answers a message, and does not go on with a text")
        if max(named, default=0) >= vocabulary.n_tokens:
            raise BadRequest(f"token {max(named)} is none of the model's: they are below {vocabulary.n_tokens}")
        self._answer: Answer | None = None
        self._engine, self._request, self._cancel, self._thinking = engine, request, cancel, thinking
        self._stats, self._ends = Stats(), vocabulary.end_tokens
        self._limit = request.max_tokens if request.max_tokens is not None else engine.backend.n_ctx
        self._begun, self._begins_in_thought = thinking.begin()  # tokens that the model does not choose
        self._stream = AnswerStream(
            thinking.markers,
            vocabulary,
            request.stop,
            in_thought=self._begins_in_thought,
            calls=call_stream(engine, request),
            strips_lead=engine.template.reads_last and vocabulary.adds_space,
        )
        self._prompt = Prompt(request, engine.backend, engine.template, engine.model, thinking.think)
        self._constraint = constraint_of(engine, request)
        self._n_told = 0  # calls
        self._drafted = DraftedParts()
        self._prepared: list[int] | None = None
        self._logprobs = ShownLogprobs() if request.n_logprobs is not None else None
        self._prompt_logprobs: tuple[Logprob, ...] | None = None
        self._pieces = self._write()

    @property
    def answer(self) -> Answer:
        """The whole answer, once its last piece was given or it was closed.

        Raises:
            RuntimeError: it is still being written, or was never begun.
        """
        if self._answer is None:
            raise RuntimeError("the answer is not written yet: iterate to its end, or call finish()")
        return self._answer

    def prepare(self) -> int:
        """Write the prompt, which takes no pass of the model; returns its tokens.

        Raises:
            PromptTooLong: it does not fit.
            TemplateError: the model's template refuses the conversation.
        """
        self._prepared = self._prompt.tokens(len(self._begun))
        return len(self._prepared) + len(self._begun)

    @property
    def prompt_tokens(self) -> list[int]:
        """What the first pass reads or finds held. Raises as `prepare`."""
        if self._prepared is None:
            self.prepare()
        assert self._prepared is not None
        return [*self._prepared, *self._begun]

    def move_to(self, engine: SupportsGeneration) -> None:
        """Be written by another engine of the same model; before the first piece is asked for."""
        self._engine = engine

    def pieces(self) -> Generator[Piece, None, None]:
        """Text and thought as they come. Closing it ends the answer with what was said."""
        return self._pieces

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        return next(piece.text for piece in self._pieces if piece.kind == "text")

    def finish(self) -> Answer:
        """Write all that is left of the answer."""
        for _ in self._pieces:
            pass
        return self.answer

    def close(self) -> None:
        """End the answer with what was said."""
        self._pieces.close()

    @property
    def _is_cancelled(self) -> bool:
        return self._cancel is not None and self._cancel.is_set()

    def _write(self) -> Generator[Piece, None, None]:
        engine, stats, stream, started = self._engine, self._stats, self._stream, time.perf_counter()
        engine.stop_switch.signal = self._cancel
        reason: FinishReason = "interrupted"
        tokens, rounds = stream.tokens, self._rounds()
        try:
            try:
                for step in rounds:
                    now = time.perf_counter()
                    if not stats.n_rounds:
                        stats.prefill_s = now - started - step.total_s
                        started += stats.prefill_s
                    stats.add_round(step)
                    stats.decode_s = now - started
                    yield from self._pieces_of(*self._take(step))
                    if stream.stopped:
                        reason = "tool_calls" if stream.calls else "stop_string"
                        break
                    if self._is_cancelled:
                        break
                else:
                    is_ended = bool(tokens) and tokens[-1] in self._ends
                    reason = "stop" if is_ended else "length" if len(tokens) >= self._limit else "context"
            except Interrupted:
                pass
            except ContextFull:
                if not tokens:
                    raise
                reason = "context"  # the last question and this answer fill it: nothing older is left to forget
            yield from self._pieces_of(*stream.end(), final=True)
        finally:
            rounds.close()
            self._end(reason)

    def _end(self, reason: FinishReason) -> None:
        stream, tokens = self._stream, self._stream.tokens
        if tokens and tokens[-1] in self._ends:
            tokens.pop()
        stream.end()  # what a stop string might have begun with, where nobody asked for it
        self._stats.n_thought = stream.n_thought
        text, thought, calls = stream.text, stream.thought or None, tuple(stream.calls)
        if calls and reason in ("stop", "stop_string"):
            reason = "tool_calls"
        logprobs = tuple(self._logprobs.shown) if self._logprobs is not None else None
        told = (logprobs, self._prompt_logprobs, calls, stream.stopped_by if reason == "stop_string" else None)
        self._answer = Answer(text, tuple(tokens), reason, self._stats, self._prompt.n_forgotten, thought, *told)
        self._engine.stop_switch.signal = None
        self._keep_lesson(reason)
        self._engine.save()

    def _keep_lesson(self, reason: FinishReason) -> None:
        tokens = tuple(self._stream.tokens)
        least = {"stop": 1, "length": 1, "interrupted": MIN_LESSON_TOKENS}.get(reason)
        # What is drafted in a thought depends on the template, and a drafter may have no words for one; nor does a
        # lesson say what tools there were.
        if least is None or len(tokens) < least or self._stream.has_thought or not self._request.messages:
            return
        if self._request.speaks_of_tools or self._engine.template.reads_last:  # no drafter learns of an encoder
            return
        if self._constraint is not None:  # not how the target writes by itself
            return
        messages = tuple((message.role, message.content) for message in self._prompt.conversation)
        self._engine.keep_lesson(Lesson(messages, tokens, ended=reason == "stop"))

    def _rounds(self) -> Generator[RoundResult, None, None]:
        """Rounds of the answer whose tokens the caller collects; anew where it changed them, and from a shortened
        conversation where the context was full.
        """
        engine, request, stream, stats = self._engine, self._request, self._stream, self._stats
        tokens, n_draft = stream.tokens, engine.n_draft
        if request.n_draft is not None:
            n_draft = min(request.n_draft, n_draft)
        while True:
            written, self._prepared = self._prepared, None
            if written is None:
                written = self._prompt.tokens(len(self._begun) + len(tokens))
            prompt = [*written, *self._begun]
            so_far, sampling = [*prompt, *tokens], request.sampling
            if request.score_prompt and not tokens:
                self._prompt_logprobs = tuple(score(engine.backend, prompt, request.n_logprobs or 0, self._cancel))
                stats.n_prompt = len(prompt)
            n_cached = keep_common_prefix(engine.backend, so_far, len(so_far) - 1)
            if not tokens:
                stats.n_prompt, stats.n_cached = len(prompt), 0 if request.score_prompt else n_cached
            elif sampling.seed is not None:  # other draws than those before
                sampling = dataclasses.replace(sampling, seed=sampling.seed + len(tokens))
            self._begin_drafting(prompt)
            constraint, drafter = self._constrained(tokens)
            if tokens:
                engine.drafter.observe(so_far, n_new=len(tokens))
            if self._is_cancelled:
                raise Interrupted("stopped before reading")
            self._read_what_stays(so_far, len(written))
            for step in decode.generate(
                engine.backend,
                drafter,
                so_far,
                sampling,
                n_draft=n_draft,
                max_new=self._limit - len(tokens),
                stop=self._ends,
                n_logprobs=request.n_logprobs,
                constraint=constraint,
            ):
                yield step
                if stream.is_rewritten:
                    stream.is_rewritten = False
                    break
            else:
                if request.on_full == "stop" or len(tokens) >= self._limit or tokens[-1] in self._ends:
                    return

    def _read_what_stays(self, tokens: Sequence[int], n_prompt: int) -> None:
        """Read up to where later turns go on, before the end of a prompt that they leave out."""
        backend = self._engine.backend
        if isinstance(backend, KeepsTurns) and backend.keeps_turns and self._request.messages:
            n = min(n_prompt - self._thinking.n_left_out(), len(tokens) - 1)
            backend.forward(tokens[len(backend.tokens) : n], 0)

    def _constrained(self, tokens: Sequence[int]) -> tuple[ConstraintState | None, Drafter]:
        """Where an answer of these tokens stands in its constraint, if it has one, and who drafts it."""
        engine, asked, thinking = self._engine, self._constraint, self._thinking
        if asked is None:
            return None, engine.drafter
        vocabulary, state = engine.model.vocabulary, asked.start()
        may_think = thinking.think is not False and not self._begun
        knows_thoughts = holds_calls(self._request) and engine.template.tool_format.name == "harmony"
        if thinking.markers is not None and (self._begins_in_thought or may_think) and not knows_thoughts:
            state = BehindThought(state, thinking.markers, vocabulary, in_thought=self._begins_in_thought)
        state.advance(tokens)
        return state, ConstrainedDrafter(engine.drafter, state, vocabulary)

    def _begin_drafting(self, prompt: Sequence[int]) -> None:
        sampling, thinking = self._request.sampling, self._thinking
        # With a seed, drafts are given tokens: the same seed is then the same answer, whatever was learnt since.
        imitated = sampling.imitated if sampling.seed is None else GREEDY
        # A drafter that thinks by itself drafts no thoughts for a target that does not.
        think = thinking.think if thinking.markers is not None else False
        conversation = self._prompt.conversation
        own_prompt = self._engine.draft_prompt(conversation, think=think) if conversation else None
        self._engine.drafter.begin(prompt, own_prompt=own_prompt, sampling=imitated)

    def _take(self, step: RoundResult) -> tuple[str, str]:
        """The thought and the text that a round adds, up to a stop string or to where the thought has to end."""
        stream, thought, text = self._stream, "", ""
        for n, token in enumerate(step.tokens, 1):  # one by one: nothing behind a stop string is kept
            n_decoded, was_in_thought = stream.n_decoded, stream.in_thought
            new = [stream.feed(token)]
            if n <= step.n_accepted:
                self._drafted.add(n_decoded, stream.n_decoded)
            is_told = n <= len(step.logprobs) and not (was_in_thought or stream.in_thought)
            if self._logprobs is not None and is_told:
                self._logprobs.add(step.logprobs[n - 1], n_decoded)
            may_go_on = token not in self._ends and len(stream.tokens) < self._limit
            if may_go_on and (forced := self._thinking.cut(stream)):
                # What was drafted beyond goes too, so that the answer is the same whatever was drafted.
                self._stats.n_new -= len(step.tokens) - n
                new += stream.add(forced)
            thought, text = thought + "".join(t for t, _ in new), text + "".join(t for _, t in new)
            if stream.stopped or stream.is_rewritten:
                break
        return thought, text

    def _pieces_of(self, thought: str, text: str, *, final: bool = False) -> Iterator[Piece]:
        shown: tuple[Logprob, ...] = ()
        if self._logprobs is not None:
            shown = self._logprobs.show(self._stream.n_shown, final=final, stopped=self._stream.stopped)
        if thought:
            yield Piece(thought, "thought")
        if text or shown:
            yield Piece(text, "text", shown, self._drafted.tell(len(text)))
        calls = self._stream.calls
        for i, call in enumerate(calls[self._n_told :], self._n_told):
            yield Piece(call.arguments, "tool_call", call=call, index=i)
        self._n_told = len(calls)


def generate(engine: SupportsGeneration, request: Request, *, cancel: threading.Event | None = None) -> Generation:
    """Answer a request. See `Generation` for what `cancel` does, and for what is raised while it is read."""
    return Generation(engine, request, cancel=cancel)
