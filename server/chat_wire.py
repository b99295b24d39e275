"""Answers of POST /chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgellm.runtime.answer import Answer, Piece
from edgellm.server.calls import Call
from edgellm.server.costs import timings, usage
from edgellm.server.tools import call_deltas, message_of
from edgellm.server.wire import FINISH, PlainEvents, chat_logprobs


class ChatWire(PlainEvents):
    """A `Wire` of chat completions; a thought is told as `reasoning_content`."""

    def __init__(self, call: Call) -> None:
        self._call, self._vocabulary = call, call.served.vocabulary

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(i, answer) for i, answer in enumerate(answers)],
            "usage": usage(self._call, answers),
            "timings": timings(answers),
        }

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(len(self._call.requests))]

    def wrote(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        if piece.kind == "tool_call":
            return [self._chunk(index, delta) for delta in call_deltas(piece)]
        if piece.kind == "thought":
            return [self._chunk(index, {"reasoning_content": piece.text})]
        logprobs = None
        if self._call.requests[index].n_logprobs is not None:
            logprobs = chat_logprobs(self._vocabulary, piece.logprobs)
        if not piece.text and not (logprobs and logprobs["content"]):
            return []
        drafted = {"drafted": piece.drafted} if piece.drafted else {}
        return [self._chunk(index, {"content": piece.text, **drafted}, logprobs=logprobs)]

    def ended(self, index: int, answer: Answer) -> list[dict[str, Any]]:
        return [self._chunk(index, {}, finish=FINISH[answer.finish_reason]) | {"timings": timings([answer])}]

    def closing(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        if not self._call.include_usage:
            return []
        return [{**self._head("chat.completion.chunk"), "choices": [], "usage": usage(self._call, answers)}]

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = message_of(answer) | {"refusal": None}
        if answer.reasoning is not None:
            message["reasoning_content"] = answer.reasoning
        logprobs = None if answer.logprobs is None else chat_logprobs(self._vocabulary, answer.logprobs)
        reason = FINISH[answer.finish_reason]
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(
        self, index: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        told = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return told | {"usage": None} if self._call.include_usage else told

    def _head(self, kind: str) -> dict[str, Any]:
        call = self._call
        return {"id": f"chatcmpl-{call.id}", "object": kind, "created": call.created, "model": call.model}
