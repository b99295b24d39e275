"""A target answers many questions at once: what it says, and what it held likely, is what a drafter learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from threading import Event
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.talking import N_SEQUENCES, sequence_settings
from edgellm.memory.talking import talk_bytes as talk_bytes
from edgellm.runtime.backends.base import ContextFull, StopSignal
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_sequences import LlamaSequences, Part
from edgellm.runtime.distillation.lesson import Lesson, Likely
from edgellm.runtime.distillation.own_questions import OwnQuestions as OwnQuestions
from edgellm.runtime.distillation.questions import Asker, Given, Question
from edgellm.runtime.distillation.questions import read_prompts as read_prompts
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.text.markup import thoughts
from edgellm.runtime.text.template import ChatTemplate, Message, Role, TemplateError
from edgellm.runtime.text.vocabulary import Vocabulary

N_LIKELY = 8  # tokens of which a probability is kept
LEAST_LIKELY = 0.004
NEAR = 9.0  # of the largest logit; others are less than 1/8,000 as likely, and not looked at
N_DRAWN = 420  # tokens at most of a text that is drawn for the asker
N_UNFINISHED_LEAST = 16  # tokens of an answer that was cut off: fewer say little of how the target goes on
N_DRAWN_LEAST = 128  # with room for fewer, nothing useful would come of it
DRAWN = Sampling(temperature=1.0, top_k=64, top_p=0.95, min_p=0.0)


class Talker:
    """A model that goes on with `n_sequences` texts at once, each with `n_ctx` tokens of context.

    On our kernels an answer is the one that the model would give alone, token for token.

    Raises:
        LoadError: the context's memory could not be had, or the model cannot go on with several texts.
    """

    def __init__(
        self,
        model: LlamaModel,
        template: ChatTemplate,
        *,
        n_sequences: int = N_SEQUENCES,
        n_ctx: int,
        n_threads: int,
    ) -> None:
        self.n_skipped = 0  # questions that do not fit, that the template refuses, or that got no text as an answer
        self._vocabulary, self._template = model.vocabulary, template
        settings = sequence_settings(n_sequences, n_ctx, n_threads)
        self._sequences = LlamaSequences(model, settings, n_sequences)

    def answer(
        self, questions: Iterable[Question] | Asker, *, max_tokens: int, cancel: StopSignal | None = None
    ) -> Iterator[Lesson]:
        """The likeliest answer to each question, as they end; a sequence that is free takes the next question.

        Args:
            max_tokens: of an answer; a question that leaves less room is skipped.
            cancel: once set, this ends before the next pass; of answers that are not finished, what is long enough to
                learn from is given too.

        Raises:
            ContextFull: a sequence is too short for what the asker wants to have written.
            EngineError: the engine failed, or computed numbers that are none.
        """
        asker = questions if isinstance(questions, Asker) else Given(questions)
        cancel = cancel or Event()
        running: dict[int, _Text] = {}  # by sequence
        try:
            while not cancel.is_set():
                self._start(asker, running, max_tokens, cancel)
                if cancel.is_set() or not running:
                    break
                yield from self._heard(self._pass(running), asker)
            yield from self._heard([text for text in running.values() if text.is_worth_keeping], asker)
        finally:
            for sequence in running:
                self._sequences.truncate(sequence, 0)

    def close(self) -> None:
        self._sequences.close()

    def _start(self, asker: Asker, running: dict[int, _Text], max_tokens: int, cancel: StopSignal) -> None:
        """Give every free sequence the next question that fits, and read it up to its last token."""
        if asker.done:
            for sequence in [number for number, text in running.items() if not text.is_lesson]:
                del running[sequence]
                self._sequences.truncate(sequence, 0)
        for sequence in range(self._sequences.n_sequences):
            while sequence not in running and not cancel.is_set():
                question = asker.next()
                if question is None:
                    return
                if (text := self._text(question, max_tokens)) is None:
                    self.n_skipped += 1
                    continue
                running[sequence] = text
                self._sequences.read(sequence, text.prompt[:-1])

    def _text(self, question: Question, max_tokens: int) -> _Text | None:
        """Where the answer to a question begins; None where that cannot be."""
        messages = [Message(cast(Role, role), content) for role, content in question.messages]
        try:
            # What is written for the asker alone is wanted without a thought; answers are those of a chat.
            prompt = self._template.render(messages, think=None if question.seed is None else False)
        except TemplateError:
            if question.seed is not None:
                raise
            return None
        n_free = self._sequences.n_ctx - len(prompt)
        if question.seed is None:
            return _Answer(question, prompt, max_tokens, self._ends) if n_free >= max_tokens else None
        if n_free < N_DRAWN_LEAST:
            raise ContextFull(
                f"{self._sequences.n_ctx} tokens for each of {self._sequences.n_sequences} texts are too few for the "
                f"model to write questions of its own: it needs {len(prompt) + N_DRAWN_LEAST}"
            )
        return _Drawn(question, prompt, min(N_DRAWN, n_free), self._ends, self._vocabulary.control)

    def _pass(self, running: dict[int, _Text]) -> list[_Text]:
        """Every text gets its next token; those that ended with it, whose sequences are free."""
        # In rising order: of caches that are apart the engine computes only neighbours together.
        parts = [Part(sequence, [running[sequence].last], 1) for sequence in sorted(running)]
        rows, _ = self._sequences.forward(parts)
        finished = []
        for sequence, (row,) in zip(sorted(running), rows, strict=True):
            running[sequence].take(row)
            if running[sequence].finished:
                finished.append(running.pop(sequence))
                self._sequences.truncate(sequence, 0)
        return finished

    def _heard(self, finished: Sequence[_Text], asker: Asker) -> Iterator[Lesson]:
        for text in finished:
            tokens, said = whole_characters(self._vocabulary, text.tokens)
            ended = text.ended and len(tokens) == len(text.tokens)
            if text.is_lesson and not said:
                self.n_skipped += 1
                continue
            asker.hear(text.question, without_thought(said, ended=ended), ended=ended)
            if text.is_lesson:
                likely = text.likely if ended else text.likely[: len(tokens)]
                yield Lesson(text.question.messages, tuple(tokens), ended, tuple(likely), text.question.kind)

    @property
    def _ends(self) -> frozenset[int]:
        turn_end = self._template.turn_end
        return self._vocabulary.end_tokens | (frozenset() if turn_end is None else {turn_end})


class _Text(ABC):
    """What a sequence holds: a question, and as much of the answer as there is."""

    is_lesson: bool

    def __init__(self, question: Question, prompt: Sequence[int], n_most: int, ends: frozenset[int]) -> None:
        self.question, self.prompt, self.ended = question, prompt, False
        self.tokens: list[int] = []
        self.likely: list[Likely] = []
        self._n_most, self._ends = n_most, ends

    @property
    def last(self) -> int:
        """The token that goes into the next pass."""
        return self.tokens[-1] if self.tokens else self.prompt[-1]

    @property
    def finished(self) -> bool:
        return self.ended or len(self.tokens) >= self._n_most

    @property
    def is_worth_keeping(self) -> bool:
        """Though it is not finished."""
        return self.is_lesson and len(self.tokens) >= N_UNFINISHED_LEAST

    def take(self, row: NDArray[np.float32]) -> None:
        """Choose the next token by its logits, (n_vocab,)."""
        token = self._choose(row)
        if token in self._ends:
            self.ended = True
        else:
            self.tokens.append(token)

    @abstractmethod
    def _choose(self, row: NDArray[np.float32]) -> int: ...


class _Answer(_Text):
    """The likeliest token each time, with what else was likely."""

    is_lesson = True

    def _choose(self, row: NDArray[np.float32]) -> int:
        self.likely.append(likeliest(row))
        return int(row.argmax())


class _Drawn(_Text):
    """Drawn, so that the same request gives another text each time."""

    is_lesson = False

    def __init__(
        self,
        question: Question,
        prompt: Sequence[int],
        n_most: int,
        ends: frozenset[int],
        control: frozenset[int],
    ) -> None:
        """`control`: tokens that are no text; one that does not end the text spoils it."""
        super().__init__(question, prompt, n_most, ends)
        self._rng, self._control, self._spoilt = np.random.default_rng(question.seed), control, False

    @property
    def finished(self) -> bool:
        return self._spoilt or super().finished

    def take(self, row: NDArray[np.float32]) -> None:
        super().take(row)
        self._spoilt = not self.ended and self.tokens[-1] in self._control

    def _choose(self, row: NDArray[np.float32]) -> int:
        return DRAWN.distribution(row, ()).draw(self._rng)


def without_thought(text: str, *, ended: bool) -> str:
    """What an answer says, and nothing where it may have been cut off within its thought."""
    marks = thoughts(text)
    if not marks:
        return text
    return text[marks[-1].end() :].strip() if ended else ""


def likeliest(row: NDArray[np.float32]) -> Likely:
    """The likeliest tokens by their logits, (n_vocab,), with their probabilities among those near the largest."""
    largest = row.max()
    near = np.flatnonzero(row > largest - NEAR)
    weights = np.exp(row[near].astype(np.float64) - float(largest))
    weights /= weights.sum()
    order = np.argsort(-weights, kind="stable")[:N_LIKELY]
    return tuple((int(near[i]), float(weights[i])) for i in order if weights[i] > LEAST_LIKELY)


def whole_characters(vocabulary: Vocabulary, tokens: Sequence[int]) -> tuple[Sequence[int], str]:
    """The tokens up to where their bytes are no UTF-8, or end within a character, and their text."""
    while True:
        data = vocabulary.decode(tokens)
        try:
            return tokens, data.decode()
        except UnicodeDecodeError as error:
            n_bytes, n_kept = 0, 0
            while (n_bytes := n_bytes + len(vocabulary.piece(tokens[n_kept]))) <= error.start:
                n_kept += 1
            tokens = tokens[:n_kept]
