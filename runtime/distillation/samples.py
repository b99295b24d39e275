"""Lessons in the drafter's own tokens, as it reads them when it drafts: what a trainer learns from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import numpy as np

from edgellm.runtime.distillation.lesson import Lesson, Likely, Sample
from edgellm.runtime.text.draft_prompt import draft_prompt
from edgellm.runtime.text.template import ChatTemplate, Message, Role, TemplateError
from edgellm.runtime.text.vocabulary import CannotEncode, Vocabulary, incomplete_tail

MAX_TOKENS = 768  # of a sample; memory and time of training grow with it
MIN_ANSWER_TOKENS = 16  # below which a question that leaves no more room teaches too little


class SampleMaker:
    """Says a target's answers in a drafter's tokens."""

    def __init__(
        self,
        target: Vocabulary,
        draft: Vocabulary,
        draft_template: ChatTemplate,
        *,
        same: bool,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        """
        Args:
            draft_template: writes what the drafter reads at run time: its own; with `same`, the target's.
            same: the drafter's ids are the target's (see `vocabulary_match`), so it reads the target's very prompt.
            max_tokens: of prompt and answer together.
        """
        self._target, self._draft, self._template = target, draft, draft_template
        self._same, self._max_tokens = same, max_tokens
        self._end = draft_template.turn_end
        self._firsts: dict[int, int | None] = {}  # a target's token -> the drafter's first one of its piece

    def sample(self, lesson: Lesson) -> Sample | None:
        """Shapes: see `Sample`. The oldest turns give way to a long answer, then its tail goes.

        None where the drafter has no words for it: bytes that it lacks, a template that refuses the conversation, or a
        question that leaves no room for an answer.
        """
        tokens = self._said(lesson) if lesson.messages else None
        if not tokens:
            return None
        is_whole = lesson.ended and self._end is not None
        answer = [*tokens, cast(int, self._end)] if is_whole else tokens
        prompt = self._prompt(lesson.messages, len(answer))
        if prompt is None:
            return None
        n_kept = min(len(answer), self._max_tokens - len(prompt))
        if n_kept < min(len(answer), MIN_ANSWER_TOKENS):
            return None
        soft = self._soft(lesson, tokens, answer)[:n_kept]
        return Sample(np.array(prompt, np.int32), np.array(answer[:n_kept], np.int32), tuple(soft))

    def _said(self, lesson: Lesson) -> list[int] | None:
        """The answer in the drafter's tokens, without its end; None where they cannot spell it."""
        target, draft, n_target = self._target, self._draft, self._target.n_tokens
        if not all(0 <= token < n_target for token in lesson.tokens):
            return None
        if self._same:
            return list(lesson.tokens) if all(map(self._is_shared, lesson.tokens)) else None
        text = target.decode(lesson.tokens)
        if not lesson.ended:  # half a character is not read at run time either
            text = text[: len(text) - incomplete_tail(text)]
        try:
            return draft.encode_words(text)  # as the text is read while it grows (`translate.GrowingText`)
        except CannotEncode:
            return None

    def _is_shared(self, token: int) -> bool:
        return token < self._draft.n_tokens and self._draft.literal(token) == self._target.literal(token)

    def _prompt(self, given: Sequence[tuple[str, str]], n_answer: int) -> list[int] | None:
        """The conversation, with as many of its oldest turns left out as it takes; never the question itself."""
        messages = [Message(cast(Role, role), content) for role, content in given]
        n_system = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
        system, turns = messages[:n_system], messages[n_system:]
        questions = [i for i, message in enumerate(turns) if message.role == "user" and i]
        prompt = None
        for first in (0, *questions):
            prompt = self._render([*system, *turns[first:]])
            # A long answer is cut before turns are left out that fill less than half.
            if prompt is None or len(prompt) <= max(self._max_tokens - n_answer, self._max_tokens // 2):
                break
        return prompt

    def _render(self, messages: list[Message]) -> list[int] | None:
        # Answers with thoughts in them are no lessons, so the target did not think.
        if not self._same:
            return draft_prompt(self._template, messages, think=False)
        try:
            return self._template.render(messages, think=False)
        except TemplateError:
            return None

    def _soft(self, lesson: Lesson, tokens: Sequence[int], answer: Sequence[int]) -> list[Likely | None]:
        """What the target held likely for each token of `answer`, where one of its own begins at the same byte."""
        if not lesson.likely:
            return []
        if self._same:
            places: list[int | None] = list(range(len(answer)))
        else:
            theirs = {at: i for i, at in enumerate(_starts(self._target, lesson.tokens))}  # the last of those at a byte
            places = [theirs.get(at) for at in _starts(self._draft, tokens)[: len(answer)]]
        return [
            self._in_own(lesson, place, own) if place is not None and place < len(lesson.likely) else None
            for place, own in zip(places, answer, strict=True)
        ]

    def _in_own(self, lesson: Lesson, place: int, own: int) -> Likely | None:
        """The target's distribution in the drafter's tokens, of which `own` is the one that comes."""
        said = lesson.tokens[place] if place < len(lesson.tokens) else None
        sums: dict[int, float] = {}
        for token, probability in lesson.likely[place]:
            mine = own if token == said else self._first(token)
            if mine is not None and probability > 0.0:
                sums[mine] = sums.get(mine, 0.0) + probability
        total = sum(sums.values())
        ordered = sorted(sums.items(), key=lambda item: -item[1])
        return tuple((token, value / total) for token, value in ordered) or None

    def _first(self, token: int) -> int | None:
        """The drafter's token that the target's begins with; an end is an end. None where there is none."""
        if token in self._target.end_tokens:
            return self._end
        if token not in self._firsts:
            self._firsts[token] = self._first_of(token)
        return self._firsts[token]

    def _first_of(self, token: int) -> int | None:
        if not 0 <= token < self._target.n_tokens:
            return None
        if self._same:
            return token if self._is_shared(token) else None
        try:
            return next(iter(self._draft.encode(self._target.piece(token))), None)
        except CannotEncode:
            return None


def _starts(vocabulary: Vocabulary, tokens: Sequence[int]) -> list[int]:
    """The byte at which each token begins, and at last where the text ends."""
    return list(accumulate((len(vocabulary.piece(token)) for token in tokens), initial=0))
