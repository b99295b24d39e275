"""Who may ask: this machine's own programs and pages, or whoever has a key. An ASGI application around another."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgellm.server.errors import ApiError
from edgellm.server.settings import MAX_HEADER_BYTES, Settings

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_OPEN = frozenset({"/health", "/v1/health", "/"})  # without a key, which the page asks for
_PAGE = "/page/"  # likewise
_METHODS, _HEADERS = "GET, POST, OPTIONS", "Authorization, Content-Type"


class Guard:
    """Turns away what does not come from where it may, and lets pages of this machine read answers."""

    def __init__(self, app: ASGIApp, settings: Settings, count: Callable[[str, int], None]) -> None:
        """`count` is told of each request's path, as it was routed, and of its status."""
        self._app, self._settings, self._count = app, settings, count
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(_routed(scope), message["status"])
                if origin is not None:
                    _allow(message, origin)
            await send(message)

        refusal = self._refusal(scope, headers, origin)
        if refusal is not None:
            send_to = guarded if refusal.status == 401 else _counted(send, lambda status: self._count("-", status))
            await refusal.response(scope["path"])(scope, receive, send_to)
        elif scope["method"] == "OPTIONS":
            await _preflight(headers)(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers, origin: str | None) -> ApiError | None:
        host = headers.get("host", "")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return ApiError(431, f"the headers are larger than {MAX_HEADER_BYTES // 2**10} KiB")
        if self._settings.is_loopback and _name(f"//{host}") not in _LOCAL:
            return ApiError(403, "the Host header is no name of this machine: take localhost or 127.0.0.1")
        if origin is not None and not self._is_ours(origin, host):
            return ApiError(403, f"pages of {origin[:200]!a} may not ask: name it with --origin")
        if self._keys and scope["method"] != "OPTIONS" and not _is_open(scope["path"]) and not self._has_key(headers):
            message = "this server wants its API key: send it as `Authorization: Bearer KEY`"
            challenge = {"www-authenticate": "Bearer"}
            return ApiError(401, message, kind="authentication_error", code="invalid_api_key", headers=challenge)
        return None

    def _is_ours(self, origin: str, host: str) -> bool:
        """Of a page of this machine, of this server itself, or of a host that was named."""
        scheme, _, place = origin.partition("://")
        is_web = scheme in ("http", "https") and bool(place)
        return origin in self._settings.origins or (is_web and (_name(origin) in _LOCAL or place == host))

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.casefold() == "bearer" else headers.get("x-api-key") or headers.get("api-key")
        data = (given or "").encode("utf-8", "surrogateescape")
        # Each is compared, so that time tells nothing of which is near.
        return sum(hmac.compare_digest(data, known) for known in self._keys) > 0


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_PAGE)


def _name(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        return None if parts.username is not None else parts.hostname
    except ValueError:
        return None


def _routed(scope: Scope) -> str:
    """The path as it was written for the router, so that nobody can make up names of counters."""
    route = scope.get("route")
    return getattr(route, "path", "-") if route is not None else "-"


def _allow(message: Message, origin: str) -> None:
    headers = MutableHeaders(scope=message)
    headers["access-control-allow-origin"] = origin
    headers.add_vary_header("Origin")


def _preflight(headers: Headers) -> Response:
    allowed = {"access-control-allow-methods": _METHODS, "access-control-max-age": "600", "allow": _METHODS}
    wanted = headers.get("access-control-request-headers", "")
    allowed["access-control-allow-headers"] = wanted[:1000] or _HEADERS  # clients send their own, as x-stainless-os
    if headers.get("access-control-request-private-network") == "true":
        allowed["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=allowed)


def _counted(send: Send, count: Callable[[int], None]) -> Send:
    async def counting(message: Message) -> None:
        if message["type"] == "http.response.start":
            count(message["status"])
        await send(message)

    return counting
