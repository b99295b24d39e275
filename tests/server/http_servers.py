"""A server of this process on the loopback, clients of it, and a model that says what it is told to."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fakes import byte_vocabulary
from numpy.typing import NDArray
from tiny_gguf import CHATML

from edgellm.app.listener import SILENCE, Listener
from edgellm.app.served_models import ServedModels
from edgellm.app.serving import Served, Writing
from edgellm.runtime.answer import Answer, Piece, Stats
from edgellm.runtime.backends.base import Interrupted, PromptTooLong
from edgellm.runtime.request import Request
from edgellm.runtime.text.template import ChatTemplate
from edgellm.runtime.text.tools import ToolCall
from edgellm.server.listening import HttpServer, listen
from edgellm.server.service import Service
from edgellm.server.settings import Settings

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
WAIT_S = 20.0
QUESTION = [{"role": "user", "content": "hat"}]


def whole_reply(sock: socket.socket) -> bytes:
    """An answer with its length, however it comes in."""
    seen = b""
    while not (found := re.search(rb"content-length: (\d+)\r\n(?:.*?)\r\n\r\n", seen, re.S)):
        seen += _more(sock)
    while len(seen) < found.end() + int(found[1]):
        seen += _more(sock)
    return seen


def _more(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    assert data, "the connection ended in the middle of an answer"
    return data


class Scripted:
    """A `Served` that writes given pieces, and no more than its gate lets through."""

    def __init__(
        self,
        *pieces: Piece | Exception,
        name: str = "scripted",
        n_ctx: int = 4096,
        n_parallel: int = 1,
        control: Sequence[str] = CONTROL,
    ) -> None:
        self.name, self.n_ctx, self.n_parallel = name, n_ctx, n_parallel
        self.script = pieces or (Piece("Hello", "text"), Piece(" you", "text"))
        self.vocabulary = byte_vocabulary(control=control, ends=[control[2]], bos=control[0])
        self.template = ChatTemplate(CHATML, self.vocabulary)
        self.warnings: list[str] = []
        self.reason = "stop"  # that answers end for
        self.gate = threading.Semaphore(10**6)  # a release lets one piece through
        self.requests: list[Request] = []
        self.cancels: list[threading.Event] = []
        self.n_begun = 0

    def shut(self) -> None:
        """Let no further piece through."""
        self.gate = threading.Semaphore(0)

    def generate(self, request: Request, *, cancel: threading.Event) -> Writing:
        self.requests.append(request)
        self.cancels.append(cancel)
        return _Scripted(self, request, cancel)

    def embed(self, texts: Sequence[Sequence[int]], cancel: threading.Event) -> NDArray[np.float32]:
        """(1, the text's first token, its tokens' number, 0), of unit length."""
        while not self.gate.acquire(timeout=0.01):
            if cancel.is_set():
                raise Interrupted("stopped")
        rows = np.array([[1, tokens[0], len(tokens), 0] for tokens in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class _Scripted:
    def __init__(self, served: Scripted, request: Request, cancel: threading.Event) -> None:
        self._served, self._request, self._cancel = served, request, cancel
        self._answer: Answer | None = None

    def prepare(self) -> int:
        request, served = self._request, self._served
        n = len(request.prompt if request.prompt is not None else served.template.render(request.messages))
        if n >= served.n_ctx:
            raise PromptTooLong("too long: /clear it", n, served.n_ctx)
        return n

    def pieces(self) -> Generator[Piece, None, None]:
        self._served.n_begun += 1
        said = {"text": "", "thought": "", "tool_call": ""}
        calls: list[ToolCall] = []
        try:
            for piece in self._served.script:
                while not self._served.gate.acquire(timeout=0.01):
                    if self._cancel.is_set():
                        return
                if isinstance(piece, Exception):
                    raise piece
                said[piece.kind] += piece.text
                calls += [piece.call] if piece.call is not None else []
                yield piece
        finally:
            stats = Stats(n_prompt=self.prepare(), n_cached=2, n_new=len(self._served.script), n_rounds=1, n_drafted=4)
            reason: Any = "interrupted" if self._cancel.is_set() else "tool_calls" if calls else self._served.reason
            self._answer = Answer(
                said["text"], (), reason, stats, reasoning=said["thought"] or None, tool_calls=tuple(calls)
            )
            if self._request.n_logprobs is not None:
                told = [one for piece in self._served.script if isinstance(piece, Piece) for one in piece.logprobs]
                self._answer = replace(self._answer, logprobs=tuple(told))

    @property
    def answer(self) -> Answer:
        if self._answer is None:
            raise RuntimeError("not written")
        return self._answer


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """The error, found to be of the one shape."""
        told = self.json()
        assert list(told) == ["error"]
        assert {"message", "type", "param", "code"} <= set(told["error"])
        assert isinstance(told["error"]["message"], str)
        return dict(told["error"])

    def events(self) -> list[Any]:
        """Of a stream, found to be written exactly as clients read it; "[DONE]" and pings as they are."""
        text = self.body.decode()
        assert text.endswith("\n\n")
        parts = text.split("\n\n")[:-1]
        found: list[Any] = []
        for part in parts:
            assert "\n" not in part
            if part == ": ping":
                found.append(part)
                continue
            assert part.startswith("data: ")
            found.append("[DONE]" if part == "data: [DONE]" else json.loads(part.removeprefix("data: ")))
        return found


class Running:
    """A server that runs, and what asks it."""

    def __init__(self, service: Service, port: int, server: HttpServer) -> None:
        self.service, self.port, self.server = service, port, server

    def ask(self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        with contextlib.closing(connection):
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def chat(self, **fields: Any) -> Reply:
        return self.ask("POST", "/v1/chat/completions", {"messages": QUESTION, **fields})

    def complete(self, **fields: Any) -> Reply:
        return self.ask("POST", "/v1/completions", fields)

    def begin(self, path: str = "/v1/chat/completions", **fields: Any) -> socket.socket:
        """A request whose answer nobody reads yet."""
        body = json.dumps({"messages": QUESTION, **fields}).encode()
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        return sock

    def raw(self, data: bytes) -> bytes:
        """What comes of bytes as they are, until the server hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S) as sock:
            sock.sendall(data)
            return b"".join(iter(lambda: sock.recv(65536), b""))


@contextlib.contextmanager
def running(
    served: Served | ServedModels, *, aliases: Sequence[str] = (), listener: Listener = SILENCE, **settings: Any
) -> Iterator[Running]:
    """A server on a port that is free."""
    models = served if isinstance(served, ServedModels) else ServedModels.of(served, aliases)
    ready = threading.Event()
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        service = Service(models, Settings(**settings), listener)
        server = HttpServer(service, ready.set)
        thread = threading.Thread(target=server.serve_on, args=(sock,), daemon=True)
        thread.start()
        assert ready.wait(WAIT_S)
        try:
            yield Running(service, port, server)
        finally:
            server.stop()
            server.stop()
            thread.join(WAIT_S)
            assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    ends = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends, "it did not come to that"
        time.sleep(0.01)
