"""The front of a worker: one port on which an engine elsewhere finds llama.cpp's RPC server, and what watches over it.

The server trusts what it is sent, serves one connection at a time and ends the process on much that it does not expect.
It runs in a child on the loopback; the front looks at each request before it hands it on, lends no more memory than it
was told to, says to whoever asks what this worker is and that it lives, and starts the child again when it ends.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from edgellm.runtime.workers import survey as words
from edgellm.runtime.workers import wire
from edgellm.runtime.workers.relay import relay
from edgellm.runtime.workers.server import RpcServer
from edgellm.runtime.workers.sockets import Gone, Strange, close, connect, into, peek, prepare, receive, send
from edgellm.runtime.workers.survey import GREETING, WATCH, Facts
from edgellm.runtime.workers.wire import SIZE, Command

_BEAT_S = 0.5
_LOOK_S = 0.5  # between looks at whether the server runs and whether it is to stop
_PATIENCE_S = 5.0  # for the first words of a connection, and for a session before to end
_STILL_S = 3.5  # without a tick of the processor while an answer is waited for, after which the server is ended
_MOST_PING_BYTES = 2**23
_MOST_CONNECTIONS = 32
Say = Callable[[str], None]


class Front:
    """Listens until `stop`. `say` is told a sentence of whatever happens."""

    def __init__(self, server: RpcServer, host: str, port: int, lent_bytes: int, say: Say) -> None:
        """
        Args:
            port: 0 takes one that is free.
            lent_bytes: of memory, for buffers of all that engines put here.

        Raises:
            OSError: the port is taken, or no address of this machine.
        """
        self._server, self._lent_bytes, self._say = server, lent_bytes, say
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=8)
        self.port: int = self._listener.getsockname()[1]
        self._in_use = threading.Lock()
        self._n_connections = 0

    @property
    def facts(self) -> Facts:
        return replace(
            self._server.facts,
            free_bytes=self._lent_bytes,
            total_bytes=self._lent_bytes,
            busy=self._in_use.locked() or not self._server.is_up,
            keeps_graphs=True,
        )

    def run(self, stop: threading.Event) -> None:
        self._listener.settimeout(_LOOK_S)
        while not stop.is_set():
            self._server.keep_up(self._say)
            try:
                sock, peer = self._listener.accept()
            except TimeoutError:
                continue
            sock.settimeout(None)
            if self._n_connections >= _MOST_CONNECTIONS:
                close(sock)
                continue
            self._n_connections += 1
            threading.Thread(target=self._take, args=(sock, peer[0]), daemon=True).start()
        close(self._listener)

    def _take(self, sock: socket.socket, peer: str) -> None:
        try:
            prepare(sock)
            first = peek(sock, _within(_PATIENCE_S))
            if first == GREETING[:1]:
                self._tell(sock)
            elif first == bytes([Command.HELLO]):
                self._serve(sock, peer)
            else:
                raise Strange(f"its first byte is {first[0]}, no greeting of an engine")
        except Strange as error:
            self._say(f"a connection from {peer} was ended: {error}")
        except (Gone, OSError):
            pass
        finally:
            self._n_connections -= 1
            close(sock)

    def _tell(self, sock: socket.socket) -> None:
        """What this is, how fast bytes come, and then that it lives."""
        if receive(sock, len(GREETING), _within(_PATIENCE_S)) != GREETING:
            raise Strange("it greets as no engine does")
        send(sock, self.facts.to_line(), _within(_PATIENCE_S))
        sink = memoryview(bytearray(2**16))
        while (line := _line(sock)) != WATCH:
            word, _, number = line.partition(b" ")
            if word != b"ping" or not number.strip().isdigit() or int(number) > _MOST_PING_BYTES:
                raise Strange("it asks for what is not to be had")
            n_bytes, within = int(number), _within(10 * _PATIENCE_S)
            while n_bytes:
                part = sink[: min(n_bytes, len(sink))]
                into(sock, part, within)
                n_bytes -= len(part)
            send(sock, b"pong\n", within)
        n_starts = self._server.n_starts
        while self._server.is_up and self._server.n_starts == n_starts:
            send(sock, b".", _within(_PATIENCE_S))
            time.sleep(_BEAT_S)
        with contextlib.suppress(Gone):
            send(sock, b"x", _within(_PATIENCE_S))

    def _serve(self, engine: socket.socket, peer: str) -> None:
        if not self._in_use.acquire(timeout=_PATIENCE_S):
            raise Strange(words.BUSY)
        try:
            server = _Lender(self._server, self._lent_bytes)
            try:
                relay(engine, server, self._lent_bytes, server.ended)
            finally:
                close(server.sock)
                if server.refused_bytes:
                    self._say(f"{peer} asked for {server.refused_bytes:,} bytes more than are lent")
        finally:
            self._in_use.release()


class _Lender:
    """The child's end of a session, and how much of its memory the session holds."""

    def __init__(self, server: RpcServer, lent_bytes: int) -> None:
        self._server, self._n_starts, self._left_bytes = server, server.n_starts, lent_bytes
        self._lent_bytes = lent_bytes
        self._buffers: dict[bytes, int] = {}
        self._graphs = wire.KeptGraphs()
        self._looked_s, self._cpu_s = 0.0, -1.0
        self.refused_bytes = 0
        try:
            self.sock = connect(("127.0.0.1", server.port), _PATIENCE_S)
        except OSError as error:
            raise Gone("its engine is not up") from error

    def ended(self) -> str:
        return "" if self._server.is_up and self._server.n_starts == self._n_starts else "its engine ended"

    def send(self, data: bytes | memoryview) -> None:
        send(self.sock, data, self.ended)

    def compute(self, graph: bytes) -> None:
        self._graphs.place_of(graph)
        self.send(wire.request(Command.GRAPH_COMPUTE, graph))

    def compute_kept(self, place: int) -> None:
        if (graph := self._graphs.at(place)) is None:
            raise Strange(f"it means a pass that it never described: {place}")
        self.send(wire.request(Command.GRAPH_COMPUTE, graph))

    def expect(self, n_bytes: int) -> None:
        self._looked_s, self._cpu_s = time.monotonic(), self._server.cpu_s
        if SIZE.unpack(receive(self.sock, SIZE.size, self._still))[0] != n_bytes:
            raise Gone("its engine answers something else")

    def fill(self, view: memoryview) -> None:
        into(self.sock, view, self._still)

    def _still(self) -> str:
        """As `ended`, or that it stands still; then it is ended."""
        if (why := self.ended()) or time.monotonic() - self._looked_s < _STILL_S:
            return why
        before, self._cpu_s = self._cpu_s, self._server.cpu_s
        self._looked_s = time.monotonic()
        if before != self._cpu_s or not self._server.facts.macs_s:  # a GPU leaves the processor alone
            return ""
        self._server.end_child()
        raise Strange("its engine stands still, and is started again")

    def intercept(self, command: Command, body: bytes) -> bytes | None:
        if command is Command.GET_DEVICE_MEMORY:
            return struct.pack("<QQ", max(self._left_bytes, 0), self._lent_bytes)
        if command is Command.FREE_BUFFER:
            self._left_bytes += self._buffers.pop(body, 0)
        elif command is Command.ALLOC_BUFFER and (n_bytes := SIZE.unpack_from(body, 4)[0]) > self._left_bytes:
            self.refused_bytes = max(self.refused_bytes, n_bytes - self._left_bytes)
            return bytes(16)
        return None

    def answered(self, command: Command, body: bytes, answer: bytes) -> bytes:
        if command is Command.ALLOC_BUFFER:
            buffer, n_bytes = answer[:8], SIZE.unpack_from(answer, 8)[0]
            if any(buffer):
                self._buffers[buffer] = n_bytes
                self._left_bytes -= n_bytes
        return answer


def _line(sock: socket.socket) -> bytes:
    line, within = b"", _within(4 * _PATIENCE_S)
    while not line.endswith(b"\n") and len(line) < 32:
        line += receive(sock, 1, within)
    return line


def _within(seconds: float) -> Callable[[], str]:
    ends = time.monotonic() + seconds
    return lambda: f"nothing came for {seconds:.0f} s" if time.monotonic() > ends else ""
