"""What a server tells its own people: a line for each request, without what was said."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgellm.runtime.answer import Answer, Stats

_ANSWERS, _FAILURE = "edgellm.answers", "edgellm.failure"  # keys of a scope
_MOST_CHARACTERS = 300  # of a refusal, which may quote its request
_MOST_BYTES = 2**16  # of a body that may be a refusal
_UNTOLD = ("/health", "/metrics", "/")  # where they are answered: programs ask there all the time

Tell = Callable[[str], None]


class RequestLog:
    """An ASGI application around another, which tells of each request once it is over."""

    def __init__(self, app: ASGIApp, tell: Tell) -> None:
        self._app, self._tell = app, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_ANSWERS] = []
        outcome = _Outcome(scope)

        async def noted(message: Message) -> None:
            outcome.note(message)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            if not outcome.is_untold:
                tell_safely(self._tell, outcome.line())


def note_answer(scope: Scope, answer: Answer) -> None:
    """What one answer of a request cost; from any thread."""
    if (answers := scope.get(_ANSWERS)) is not None:
        answers.append(answer)


def note_failure(scope: Scope, sentence: str) -> None:
    """Why a stream ended early, which its status cannot say."""
    scope[_FAILURE] = sentence


def tell_safely(tell: Tell, text: str) -> None:
    """Where the terminal or the pipe is gone, or the disk of a log is full, requests are answered all the same."""
    with contextlib.suppress(OSError):
        tell(text)


class _Outcome:
    """What becomes of one request."""

    def __init__(self, scope: Scope) -> None:
        self._scope, self._began = scope, time.monotonic()
        self._status, self._body, self._is_whole = 0, b"", False

    def note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message["type"] == "http.response.body":
            if self._status >= 400 and len(self._body) < _MOST_BYTES:
                self._body += message.get("body", b"")
            self._is_whole = not message.get("more_body", False)

    @property
    def is_untold(self) -> bool:
        path = self._scope["path"].removeprefix("/v1")
        return self._status < 400 and (path in _UNTOLD or path.startswith("/page/"))

    def line(self) -> str:
        took_s = time.monotonic() - self._began
        about = ": ".join(filter(None, (self._ended(), shown(self._about()))))
        asked = f"{self._scope['method']} {self._scope['path']}"
        return f"{time.strftime('%H:%M:%S')} {shown(asked)} {about} ({took_s:.1f} s)"

    def _ended(self) -> str:
        return "left" if self._status == 499 or not self._is_whole else str(self._status)

    def _about(self) -> str:
        if failure := self._scope.get(_FAILURE):
            return f"failed: {failure}"
        return (_sentence(self._body) if self._status >= 400 else "") or cost(self._scope[_ANSWERS])


def cost(answers: list[Answer]) -> str:
    """Tokens of all answers of a request, and how fast they were written; "" of none."""
    total = Stats()
    for answer in list(answers):
        total.add(answer.stats)
    if not total.n_prompt:
        return ""
    read = f"{total.n_prompt - total.n_cached:,} read, {total.n_cached:,} cached, {total.n_new:,} written"
    speed = f", {total.tokens_per_s:.1f} tokens/s" if total.n_new else ""
    drafted = f", {total.n_accepted:,} of {total.n_drafted:,} drafted" if total.n_drafted else ""
    return read + speed + drafted


def shown(text: str) -> str:
    """Text of a client as a terminal may show it: one line, nothing that moves the cursor, not too long."""
    plain = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return plain if len(plain) <= _MOST_CHARACTERS else plain[:_MOST_CHARACTERS] + "…"


def _sentence(body: bytes) -> str:
    """The message of a refusal, in either form."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return ""
    return message if isinstance(message, str) else ""
