"""The page and an API on the loopback that answers what a test tells it to, when the test tells it to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edgellm.server import page


class Gate(threading.Event):
    """A stream waits here until the test opens it."""


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error."""

    status: int
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Cut(Exception):
    """The connection ends here, and the answer does not."""


Step = str | dict[str, Any] | Gate | Refusal | type[Cut]


class ScriptedApi:
    """`api.script("Hello ", gate, "world")` is one answer; the default is `Hello.`"""

    def __init__(self) -> None:
        self.models = ["tiny-model", "other/model:q4"]
        self.key: str | None = None
        self.scripts: list[tuple[Step, ...]] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.hung_up = 0
        routes = [*page.routes(), Route("/v1/models", self._models)]
        routes.append(Route("/v1/chat/completions", self._chat, methods=["POST"]))
        self._socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            Starlette(routes=routes), log_level="critical", timeout_graceful_shutdown=1, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"

    def __enter__(self) -> ScriptedApi:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    def script(self, *steps: Step) -> None:
        self.scripts.append(steps)

    def _refusal(self, request: Request) -> Response | None:
        self.keys.append(request.headers.get("authorization", ""))
        if self.key is None or self.keys[-1] == f"Bearer {self.key}":
            return None
        return refused(Refusal(401, "This server asks for an API key"))

    async def _models(self, request: Request) -> Response:
        data = [{"id": name, "object": "model"} for name in self.models]
        return self._refusal(request) or JSONResponse({"object": "list", "data": data})

    async def _chat(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        steps = self.scripts.pop(0) if self.scripts else ("Hello.",)
        if refusal := self._refusal(request):
            return refusal
        if steps and isinstance(steps[0], Refusal):
            return refused(steps[0])
        return StreamingResponse(self._stream(steps), media_type="text/event-stream")

    async def _stream(self, steps: tuple[Step, ...]) -> AsyncIterator[str]:
        try:
            yield event(choice({"role": "assistant", "content": None}))
            for step in steps:
                if isinstance(step, Gate):
                    while not step.is_set():
                        yield ": ping\n\n"
                        await asyncio.sleep(0.02)
                elif step is Cut:
                    raise Cut
                else:
                    yield event(choice({"content": step}) if isinstance(step, str) else step)
            yield event(choice({}, "stop"))
            yield event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.hung_up += 1
            raise


def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def refused(refusal: Refusal) -> Response:
    error = {"message": refusal.message, "type": "error", "code": refusal.status}
    return JSONResponse({"error": error}, refusal.status, dict(refusal.headers))
