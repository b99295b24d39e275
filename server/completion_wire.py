"""Answers of POST /completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgellm.runtime.answer import Answer, Piece
from edgellm.server.calls import Call
from edgellm.server.costs import timings, usage
from edgellm.server.wire import FINISH, PlainEvents, text_logprobs


class CompletionWire(PlainEvents):
    """A `Wire` of completions; what is echoed stands before the answer."""

    def __init__(self, call: Call) -> None:
        self._call, self._vocabulary = call, call.served.vocabulary

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        return {
            **self._head(),
            "choices": [self._choice(i, answer) for i, answer in enumerate(answers)],
            "usage": usage(self._call, answers),
            "timings": timings(answers),
        }

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk(i, text) for i, text in enumerate(self._call.echoes)]

    def wrote(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        logprobs = None
        if self._call.requests[index].n_logprobs is not None:
            logprobs = text_logprobs(self._vocabulary, piece.logprobs)
        return [self._chunk(index, piece.text, logprobs=logprobs)]

    def ended(self, index: int, answer: Answer) -> list[dict[str, Any]]:
        return [self._chunk(index, "", finish=FINISH[answer.finish_reason]) | {"timings": timings([answer])}]

    def closing(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        if not self._call.include_usage:
            return []
        return [{**self._head(), "choices": [], "usage": usage(self._call, answers)}]

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        echo = self._call.echoes[index] if self._call.echoes else ""
        logprobs = None
        if answer.logprobs is not None:
            found = [*(answer.prompt_logprobs or ()), *answer.logprobs]
            echoed = self._call.requests[index].prompt if echo else None
            logprobs = text_logprobs(self._vocabulary, found, begin=len(echo), echoed=echoed or ())
        reason = FINISH[answer.finish_reason]
        return {"index": index, "text": echo + answer.text, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(
        self, index: int, text: str, *, logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        told = {**self._head(), "choices": [choice]}
        return told | {"usage": None} if self._call.include_usage else told

    def _head(self) -> dict[str, Any]:
        call = self._call
        return {"id": f"cmpl-{call.id}", "object": "text_completion", "created": call.created, "model": call.model}
