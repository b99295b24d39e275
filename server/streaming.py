"""Server-sent events: `data: {json}`, an empty line, a name before it in newer forms; `data: [DONE]` at the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgellm.runtime.answer import Answer
from edgellm.server.beginning import Beginning
from edgellm.server.bodies import unless_gone
from edgellm.server.errors import ApiError, told
from edgellm.server.request_log import note_failure
from edgellm.server.wire import Wire, WireKind
from edgellm.server.writing import Ended, Run, Wrote

_PING, _DONE = b": ping\n\n", b"data: [DONE]\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # a proxy that gathers would undo it


class EventStream(Response):
    """Answers piece by piece. A failure on the way is told as an error object and ends the stream."""

    def __init__(self, beginning: Beginning, wires: WireKind, *, ping_s: float) -> None:
        super().__init__(None, 200, headers=_HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self._beginning, self._wires, self._ping_s = beginning, wires, ping_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await unless_gone(receive, self._send_all(scope, send))
        finally:
            self._beginning.close()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async with contextlib.aclosing(self._chunks(scope)) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self, scope: Scope) -> AsyncGenerator[bytes, None]:
        try:
            while not await self._beginning.is_over(self._ping_s):
                yield _PING
        except Exception as error:
            yield self._event(self._wires.unread(_failure(scope, error)))
            return
        run, wire = self._beginning.result
        async with contextlib.aclosing(self._answers(scope, run, wire)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _answers(self, scope: Scope, run: Run, wire: Wire) -> AsyncGenerator[bytes, None]:
        answers: list[Answer] = []
        try:
            async with contextlib.aclosing(run.events(self._ping_s)) as events:
                for one in wire.opening():
                    yield self._event(one)
                async for event in events:
                    if event is None:
                        yield _PING
                    elif isinstance(event, Wrote):
                        for one in wire.wrote(event.index, event.piece):
                            yield self._event(one)
                    else:
                        answers.append(event.answer)
                        for one in wire.ended(event.index, event.answer):
                            yield self._event(one)
            for one in wire.closing(answers):
                yield self._event(one)
            if wire.ends_with_done:
                yield _DONE
        except Exception as error:
            for one in wire.failed(_failure(scope, error)):
                yield self._event(one)

    def _event(self, value: dict[str, Any]) -> bytes:
        name = f"event: {value['type']}\n" if self._wires.is_named else ""
        return f"{name}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _failure(scope: Scope, error: Exception) -> ApiError:
    failure = told(error)
    note_failure(scope, str(failure))
    return failure


async def gather(run: Run, pause_s: float) -> list[Answer]:
    """All answers, once they are whole."""
    async with contextlib.aclosing(run.events(pause_s)) as events:
        return [event.answer async for event in events if isinstance(event, Ended)]
