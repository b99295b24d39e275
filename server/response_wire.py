"""Answers of POST /responses: items of thoughts, messages and calls, and the events that build them up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from edgellm.runtime.answer import Answer, Piece
from edgellm.runtime.logprobs import Logprob
from edgellm.runtime.text.tools import ToolCall
from edgellm.server.calls import Call
from edgellm.server.costs import timings, usage
from edgellm.server.errors import SERVER, ApiError
from edgellm.server.response_items import call_item, message_item, part_of, thought_item
from edgellm.server.wire import chat_logprobs

_CUT = ("length", "context")
_DELTAS = {"message": "output_text", "reasoning": "reasoning_text"}


class ResponseWire:
    """A `Wire` of one response."""

    is_named, ends_with_done = True, True

    def __init__(self, call: Call) -> None:
        self._call = call
        self._n_events = 0
        self._output: list[dict[str, Any]] = []  # items that are whole
        self._kind, self._text = "", ""  # of the item that is being written; "" for none
        self._logprobs: list[dict[str, Any]] = []  # of its tokens

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        answer = answers[0]
        status = _status(answer)
        items: list[dict[str, Any]] = []
        if answer.reasoning is not None:
            items.append(thought_item(self._id("rs", 0), answer.reasoning, "completed"))
        if answer.text or not answer.tool_calls:
            items.append(message_item(self._id("msg", len(items)), answer.text, status, self._told(answer.logprobs)))
        items += [call_item(self._id("fc", len(items) + i), call) for i, call in enumerate(answer.tool_calls)]
        return self._response(status, items, answer)

    def opening(self) -> list[dict[str, Any]]:
        response = self._response("in_progress", [])
        return [self._event(f"response.{name}", response=response) for name in ("created", "in_progress")]

    def wrote(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        if piece.kind == "tool_call":
            assert piece.call is not None
            return [*self._close("completed"), *self._called(piece.call)]
        kind = "reasoning" if piece.kind == "thought" else "message"
        logprobs = self._told(piece.logprobs)
        if not piece.text and not (logprobs and self._kind == "message"):
            return []
        events = [] if self._kind == kind else [*self._close("completed"), *self._open(kind)]
        self._text += piece.text
        self._logprobs += logprobs
        more: dict[str, Any] = {"logprobs": logprobs} if kind == "message" else {}
        return [*events, self._of_part(f"response.{_DELTAS[kind]}.delta", delta=piece.text, **more)]

    def ended(self, index: int, answer: Answer) -> list[dict[str, Any]]:
        nothing = [] if self._output or self._kind else list(self._open("message"))
        return [*nothing, *self._close(_status(answer))]

    def closing(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        status = _status(answers[0])
        return [self._event(f"response.{status}", response=self._response(status, self._output, answers[0]))]

    @staticmethod
    def unread(error: ApiError) -> dict[str, Any]:
        told = error.to_json()["error"]
        return {"type": "error", "sequence_number": 0, **{name: told[name] for name in ("code", "message", "param")}}

    def failed(self, error: ApiError) -> list[dict[str, Any]]:
        told = error.to_json()["error"]
        about = {name: told[name] for name in ("code", "message", "param")}
        response = self._response("failed", self._output)
        response["error"] = {"code": SERVER, "message": told["message"]}
        return [self._event("error", **about), self._event("response.failed", response=response)]

    def _open(self, kind: str) -> Iterator[dict[str, Any]]:
        self._kind, self._text, self._logprobs = kind, "", []
        item = self._item("in_progress")
        item["content"] = []
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)
        yield self._of_part("response.content_part.added", part=part_of(kind, ""))

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        """End the item that is being written, if any."""
        if not self._kind:
            return
        kind, text = self._kind, self._text
        logprobs: dict[str, Any] = {"logprobs": self._logprobs} if kind == "message" else {}
        yield self._of_part(f"response.{_DELTAS[kind]}.done", text=text, **logprobs)
        yield self._of_part("response.content_part.done", part=part_of(kind, text, self._logprobs))
        item, self._kind = self._item(status), ""
        yield self._done(item)

    def _called(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        item = call_item(self._id("fc", len(self._output)), call)
        place = {"item_id": item["id"], "output_index": len(self._output)}
        begun = item | {"arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=len(self._output), item=begun)
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        yield self._done(item)

    def _done(self, item: dict[str, Any]) -> dict[str, Any]:
        self._output.append(item)
        return self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _item(self, status: str) -> dict[str, Any]:
        """The one that is being written."""
        if self._kind == "reasoning":
            return thought_item(self._id("rs", len(self._output)), self._text, status)
        return message_item(self._id("msg", len(self._output)), self._text, status, self._logprobs)

    def _told(self, found: Sequence[Logprob] | None) -> list[dict[str, Any]]:
        """Log probabilities of a text's tokens, where they were asked for."""
        if found is None or self._call.requests[0].n_logprobs is None:
            return []
        told: list[dict[str, Any]] = chat_logprobs(self._call.served.vocabulary, found)["content"]
        return told

    def _of_part(self, kind: str, **fields: Any) -> dict[str, Any]:
        place = {"item_id": self._item("")["id"], "output_index": len(self._output), "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._n_events += 1
        return {"type": kind, "sequence_number": self._n_events - 1, **fields}

    def _id(self, prefix: str, index: int) -> str:
        return f"{prefix}_{self._call.id}{index:02}"

    def _response(self, status: str, output: list[dict[str, Any]], answer: Answer | None = None) -> dict[str, Any]:
        given, call = self._call.settings, self._call
        return {
            "id": f"resp_{call.id}",
            "object": "response",
            "created_at": call.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": call.model,
            "output": list(output),
            **given,
            "tools": given["tools"] or [],
            "tool_choice": given["tool_choice"] or "auto",
            "text": given["text"] or {"format": {"type": "text"}},
            "reasoning": given["reasoning"] or {"effort": None, "summary": None},
            "metadata": given["metadata"] or {},
            "background": False,
            "store": False,
            "previous_response_id": None,
            "truncation": "disabled",
            "usage": _usage(call, answer) if answer is not None else None,
            **({"timings": timings([answer])} if answer is not None else {}),
        }


def _status(answer: Answer) -> str:
    return "incomplete" if answer.finish_reason in _CUT else "completed"


def _usage(call: Call, answer: Answer) -> dict[str, Any]:
    found = usage(call, [answer])
    return {
        "input_tokens": found["prompt_tokens"],
        "input_tokens_details": found["prompt_tokens_details"] | {"cache_write_tokens": 0},
        "output_tokens": found["completion_tokens"],
        "output_tokens_details": found["completion_tokens_details"],
        "total_tokens": found["total_tokens"],
    }
