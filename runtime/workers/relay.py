"""Requests of an engine handed on to a server, and its answers back, one after the other."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from edgellm.runtime.workers import wire
from edgellm.runtime.workers.sockets import CHUNK_BYTES, Strange, into, receive, send
from edgellm.runtime.workers.wire import HEAD_BYTES, SIZE, Command

SMALL_BYTES = 4096  # requests up to this size are looked at


class Server(Protocol):
    """Where requests go. Whether it may raise `Gone` is its own matter."""

    def send(self, data: bytes | memoryview) -> None: ...

    def compute(self, graph: bytes) -> None:
        """A pass of at most `wire.GRAPH_BYTES`."""
        ...

    def compute_kept(self, place: int) -> None:
        """A pass that was described before."""
        ...

    def expect(self, n_bytes: int) -> None:
        """An answer of so many bytes is to come."""
        ...

    def fill(self, view: memoryview) -> None:
        """Its next bytes."""
        ...

    def intercept(self, command: Command, body: bytes) -> bytes | None:
        """An answer in the server's place; None where it is to be asked."""
        ...

    def answered(self, command: Command, body: bytes, answer: bytes) -> bytes:
        """What the engine is told of an answer."""
        ...


def relay(engine: socket.socket, server: Server, most_bytes: int, given_up: Callable[[], str] = lambda: "") -> None:
    """Until the engine's end closes the connection.

    Args:
        most_bytes: of one request.
        given_up: why the engine is given up; "" while it is not.

    Raises:
        Gone: one of the ends is gone.
        Strange: what comes is no request.
    """
    chunk = memoryview(bytearray(CHUNK_BYTES))
    while True:
        head = receive(engine, HEAD_BYTES, given_up)
        command, n_bytes = wire.known(head, most_bytes), wire.size_of(head)
        if command is None:
            raise Strange(f"a request that is none: command {head[0]} with {n_bytes:,} bytes")
        body = b""
        if command is Command.GRAPH_COMPUTE and n_bytes <= wire.GRAPH_BYTES:
            server.compute(receive(engine, n_bytes, given_up))
        elif command is Command.KEPT_GRAPH:
            server.compute_kept(receive(engine, n_bytes, given_up)[0])
        elif n_bytes <= SMALL_BYTES:
            body = receive(engine, n_bytes, given_up)
            if command is Command.HELLO:
                body = bytes(len(body))  # no other transport than this connection
            if (answer := server.intercept(command, body)) is not None:
                send(engine, wire.reply(answer), given_up)
                continue
            server.send(head + body)
        else:
            server.send(head)
            while n_bytes:
                part = chunk[: min(n_bytes, CHUNK_BYTES)]
                into(engine, part, given_up)
                server.send(part)
                n_bytes -= len(part)
        if wire.is_answered(command):
            _answer(engine, server, command, body, chunk, given_up)


def _answer(
    engine: socket.socket,
    server: Server,
    command: Command,
    body: bytes,
    chunk: memoryview,
    given_up: Callable[[], str],
) -> None:
    n_bytes = wire.reply_bytes(command, body)
    server.expect(n_bytes)
    if command is not Command.GET_TENSOR:
        whole = bytearray(n_bytes)
        server.fill(memoryview(whole))
        send(engine, wire.reply(server.answered(command, body, bytes(whole))), given_up)
        return
    head: bytes = SIZE.pack(n_bytes)
    while n_bytes:
        part = chunk[: min(n_bytes, CHUNK_BYTES - len(head))]
        server.fill(part)
        send(engine, head + bytes(part) if head else part, given_up)
        n_bytes, head = n_bytes - len(part), b""
