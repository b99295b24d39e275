"""A server of llama.cpp's RPC for tests: it keeps bytes and computes nothing, and can fail in many ways."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

from edgellm.runtime.workers import wire
from edgellm.runtime.workers.wire import PROTOCOL, SIZE, Command


class PlayedServer:
    """On a free port of the loopback; answers as an RPC server with one device would, one connection at a time.

    Args:
        protocol: the version that it says.
        answers: what it says in the place of an answer, framed as it stands.
        silent_at: a command at which it takes the request and says nothing more.
        ends_at: a command at which it closes the connection.
    """

    def __init__(
        self,
        *,
        protocol: tuple[int, int, int] = PROTOCOL,
        answers: dict[Command, bytes] | None = None,
        silent_at: Command | None = None,
        ends_at: Command | None = None,
    ) -> None:
        self.protocol, self.answers = protocol, answers or {}
        self.silent_at, self.ends_at = silent_at, ends_at
        self.requests: list[tuple[Command, int]] = []
        self.graphs: list[bytes] = []  # that it was to compute
        self.buffers: dict[int, int] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        for sock in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(sock)
            with contextlib.suppress(OSError, ValueError), sock:
                self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        while True:
            head = _exactly(sock, wire.HEAD_BYTES)
            command, n_bytes = Command(head[0]), wire.size_of(head)
            if not self.requests and command is not Command.HELLO:
                return
            body = _exactly(sock, n_bytes)
            self.requests.append((command, n_bytes))
            if command is Command.GRAPH_COMPUTE:
                self.graphs.append(body)
            if command is self.ends_at:
                return
            if command is self.silent_at:
                while sock.recv(2**16):
                    pass
                return
            if command in self.answers:
                sock.sendall(self.answers[command])
            elif wire.is_answered(command):
                sock.sendall(wire.reply(self._answer(command, body)))
            elif command is Command.FREE_BUFFER:
                self.buffers.pop(SIZE.unpack(body)[0], None)

    def _answer(self, command: Command, body: bytes) -> bytes:
        if command is Command.HELLO:
            return bytes([*self.protocol, *bytes(25)])
        if command is Command.GET_DEVICE_MEMORY:
            return struct.pack("<QQ", 2**30, 2**31)
        if command is Command.ALLOC_BUFFER:
            n_bytes = SIZE.unpack_from(body, 4)[0]
            self.buffers[4096 + len(self.buffers)] = n_bytes
            return struct.pack("<QQ", 4095 + len(self.buffers), n_bytes)
        if command is Command.GET_TENSOR:
            return b"\x07" * wire.reply_bytes(command, body)
        return wire.fake(command)


def _exactly(sock: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        part = sock.recv(n_bytes - len(data))
        if not part:
            raise OSError("closed")
        data += part
    return data


class Client:
    """The engine's end of a connection."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 10.0)

    def ask(self, command: Command, body: bytes) -> bytes:
        self.tell(command, body)
        return _exactly(self.sock, SIZE.unpack(_exactly(self.sock, 8))[0])

    def tell(self, command: Command, body: bytes) -> None:
        self.sock.sendall(wire.request(command, body))

    def hello(self) -> bytes:
        return self.ask(Command.HELLO, b"\xff" * 24)

    def get(self, n_bytes: int) -> bytes:
        """A part of a tensor of so many bytes."""
        return self.ask(Command.GET_TENSOR, bytes(304) + SIZE.pack(n_bytes))

    def is_closed(self) -> bool:
        with contextlib.suppress(ConnectionResetError):
            return not self.sock.recv(1)
        return True


def until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    """Whether it holds within so long."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True
