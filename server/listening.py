"""A socket, a server on it, and its end: the first signal lets answers end, the second ends them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.server.application import application
from edgellm.server.errors import invalid
from edgellm.server.request_log import shown
from edgellm.server.service import Service
from edgellm.server.settings import MAX_CONNECTIONS, MAX_HEADER_BYTES

_BACKLOG = 128  # connections that the system accepts before the server does
_OTHER_FILES = 64 + _BACKLOG  # so many are accepted at once, before one that is too many is closed
_LEAST_CONNECTIONS = 8


class CannotListen(EdgellmError, OSError):
    """An address that cannot be served on; the message says which would be."""

    exit_code = USAGE


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients.

    Raises:
        CannotListen: the port is taken, or the host is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # Of a name, what most clients try: localhost is 127.0.0.1 to many of them, and not ::1.
        family, kind, proto, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise CannotListen(f"{host} is no address: take 127.0.0.1, or one of this machine's") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot(host, port, error) from error
    return sock


def _cannot(host: str, port: int, error: OSError) -> CannotListen:
    if error.errno == errno.EADDRINUSE:
        return CannotListen(f"port {port} is in use already: take another with --port, or 0 for any that is free")
    if error.errno == errno.EACCES:
        return CannotListen(f"port {port} needs more rights: take one from 1024 on with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return CannotListen(f"{host} is no address of this machine: take 127.0.0.1, or 0.0.0.0 for all that it has")
    return CannotListen(f"{host} port {port} cannot be served on: {error.strerror or error}")


def url_of(sock: socket.socket) -> str:
    """The address that clients are given."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def most_connections() -> int:
    """As many as this process may open files for, beside the engine's; it is allowed more where it may be."""
    try:
        import resource
    except ImportError:  # Windows counts otherwise
        return MAX_CONNECTIONS
    wanted = MAX_CONNECTIONS + _OTHER_FILES
    allowed, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:  # as on macOS
        raised = wanted if highest == resource.RLIM_INFINITY else min(wanted, highest)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, highest))
            allowed = raised
        return max(_LEAST_CONNECTIONS, min(MAX_CONNECTIONS, allowed - _OTHER_FILES))
    return MAX_CONNECTIONS


class HttpServer(uvicorn.Server):
    """One server on one socket. Its end is a success, whoever asked for it."""

    def __init__(self, service: Service, ready: Callable[[], None]) -> None:
        """`ready` is called once requests are taken."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what matters of it is told in sentences
        super().__init__(
            uvicorn.Config(
                application(service),
                http=_patient(service.settings.head_s, most_connections()),
                backlog=_BACKLOG,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            )
        )
        self._service, self._ready = service, ready
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve_on(self, sock: socket.socket) -> None:
        """Serve until `stop` is called, or a signal comes where this is the main thread."""
        try:
            asyncio.run(self.serve(sockets=[sock]))
        finally:
            self._service.close()

    def stop(self) -> None:
        """Let answers end; called again, end them. From any thread, and from a signal handler."""
        is_second, self.should_exit = self.should_exit, True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._service.end if is_second else self._service.stop)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._failed)
        await super().startup(sockets)
        self._ready()

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio would write a trace of: told once, for it may happen thousands of times a second."""
        if os.environ.get("EDGELLM_DEBUG"):
            loop.default_exception_handler(context)
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            sentence = "connections wait, for no more files may be open: raise the limit with `ulimit -n`"
        else:
            about = f"{type(error).__name__}: {error}" if error is not None else str(context.get("message"))
            sentence = f"the server goes on after a failure: {shown(about)}"
        self._service.warn_once(sentence)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # uvicorn's raises them again at the end
        is_main = threading.current_thread() is threading.main_thread()
        known = [
            getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if is_main and hasattr(signal, name)
        ]
        before = {one: signal.signal(one, self.handle_exit) for one in known}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop()


def _patient(head_s: float, n_most: int) -> type[H11Protocol]:
    """The protocol of one connection, which hangs up where headers do not come, or too many connections do."""

    class Patient(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > n_most:
                transport.close()
                return
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._stop_waiting()
            elif self._waiting is None:  # the first bytes of a further request
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            body = json.dumps(invalid("the request is no HTTP, or its headers are too large").to_json()).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            with contextlib.suppress(h11.LocalProtocolError):  # an answer is being sent already
                self._send(h11.Response(status_code=400, headers=headers, reason=b"Bad Request"))
                self._send(h11.Data(data=body))
                self._send(h11.EndOfMessage())
            self.transport.close()

        def _send(self, event: h11.Event) -> None:
            self.transport.write(self.conn.send(event) or b"")

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(head_s, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Patient
