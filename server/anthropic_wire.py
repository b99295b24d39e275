"""Answers of POST /messages: blocks of thought, text and calls, and the events that build them up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from edgellm.runtime.answer import Answer, FinishReason, Piece
from edgellm.runtime.text.tools import ToolCall, parsed_arguments
from edgellm.server.calls import Call
from edgellm.server.costs import timings
from edgellm.server.errors import ApiError

_REASONS: Final[dict[FinishReason, str]] = {
    "stop": "end_turn",
    "stop_string": "stop_sequence",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "context": "model_context_window_exceeded",
    "interrupted": "end_turn",  # never told: its client is gone
}


class AnthropicWire:
    """A `Wire` of one message."""

    is_named, ends_with_done = True, False

    def __init__(self, call: Call) -> None:
        self._call = call
        self._n_blocks = 0
        self._kind = ""  # of the block that is being written; "" for none

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        answer = answers[0]
        content: list[dict[str, Any]] = []
        if answer.reasoning is not None:
            content.append(_thought(answer.reasoning))
        if answer.text or not (answer.tool_calls or content):
            content.append({"type": "text", "text": answer.text})
        content += [_call(call, parsed_arguments(call.arguments)) for call in answer.tool_calls]
        return {**self._message(content), **_ending(answer), "usage": _usage(answer), "timings": timings(answers)}

    def opening(self) -> list[dict[str, Any]]:
        nothing = {"input_tokens": 0, "output_tokens": 0}  # the last event but one tells them
        message = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": nothing}
        return [{"type": "message_start", "message": message}]

    def wrote(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        if piece.kind == "tool_call":
            assert piece.call is not None
            delta = {"type": "input_json_delta", "partial_json": piece.call.arguments}
            return [*self._close(), self._begin("tool_use", _call(piece.call, {})), self._delta(delta), *self._close()]
        if not piece.text:
            return []
        kind = "thinking" if piece.kind == "thought" else "text"
        begun = _thought("") if kind == "thinking" else {"type": "text", "text": ""}
        events = [] if self._kind == kind else [*self._close(), self._begin(kind, begun)]
        return [*events, self._delta({"type": f"{kind}_delta", kind: piece.text})]

    def ended(self, index: int, answer: Answer) -> list[dict[str, Any]]:
        nothing = [] if self._n_blocks else [self._begin("text", {"type": "text", "text": ""})]
        return [*nothing, *self._close()]

    def closing(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        told = {"type": "message_delta", "delta": _ending(answers[0]), "usage": _usage(answers[0])}
        return [told | {"timings": timings(answers)}, {"type": "message_stop"}]

    @staticmethod
    def unread(error: ApiError) -> dict[str, Any]:
        return error.to_anthropic()

    def failed(self, error: ApiError) -> list[dict[str, Any]]:
        return [error.to_anthropic()]

    def _begin(self, kind: str, block: dict[str, Any]) -> dict[str, Any]:
        self._kind, self._n_blocks = kind, self._n_blocks + 1
        return {"type": "content_block_start", "index": self._n_blocks - 1, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._n_blocks - 1, "delta": delta}

    def _close(self) -> Iterator[dict[str, Any]]:
        """End the block that is being written, if any."""
        if self._kind:
            self._kind = ""
            yield {"type": "content_block_stop", "index": self._n_blocks - 1}

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        call = self._call
        head = {"id": f"msg_{call.id}", "type": "message", "role": "assistant", "model": call.model}
        return {**head, "content": content}


def _thought(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _call(call: ToolCall, given: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


def _ending(answer: Answer) -> dict[str, Any]:
    return {"stop_reason": _REASONS[answer.finish_reason], "stop_sequence": answer.stopped_by}


def _usage(answer: Answer) -> dict[str, Any]:
    """What was cached is counted apart."""
    stats = answer.stats
    return {
        "input_tokens": stats.n_prompt - stats.n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": stats.n_cached,
        "output_tokens": stats.n_new,
    }
