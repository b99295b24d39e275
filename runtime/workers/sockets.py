"""Connections between an engine and its workers: opened within a time, read whole, ended when the other end is gone."""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections.abc import Callable

from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.memory.limits import WORKER_PORT

CHUNK_BYTES = 2**20
SILENCE_S = 3.0  # without a sign of life, after which the other end is given up
_LOOK_S = 0.2  # between looks at whether it was given up


class BadAddress(EdgellmError, ValueError):
    """No HOST:PORT."""

    exit_code = USAGE


class Gone(EdgellmError):
    """The other end is gone; the message says how."""


class Strange(Gone):
    """What the other end says is none of what it may say."""


def address_of(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, HOST or [HOST]:PORT.

    Raises:
        BadAddress: it is none.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text.strip(), str(WORKER_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise BadAddress(f"{text!r} is no address of a worker: it is HOST:PORT, as 192.168.1.20:{WORKER_PORT}")
    return host, int(port)


def connect(address: tuple[str, int], timeout_s: float) -> socket.socket:
    """
    Raises:
        OSError: nobody answers there.
    """
    sock = socket.create_connection(address, timeout_s)
    prepare(sock)
    return sock


def prepare(sock: socket.socket) -> None:
    """Send at once, and hear of a machine that is gone without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        for option, value in (
            (socket.TCP_KEEPIDLE, 1),
            (socket.TCP_KEEPINTVL, 1),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_USER_TIMEOUT, int(1000 * SILENCE_S)),
        ):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def send(sock: socket.socket, data: bytes | memoryview, given_up: Callable[[], str]) -> None:
    """All of it, however slowly it is taken.

    Args:
        given_up: why the other end is given up; "" while it is not.

    Raises:
        Gone: it is.
    """
    rest = memoryview(data)
    while rest:
        if _ready(sock, given_up, writing=True):
            try:
                rest = rest[sock.send(rest[:CHUNK_BYTES]) :]
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise Gone(_how(error)) from error


def receive(sock: socket.socket, n_bytes: int, given_up: Callable[[], str]) -> bytes:
    """Exactly so many bytes. Raises as `send`."""
    whole = bytearray(n_bytes)
    into(sock, memoryview(whole), given_up)
    return bytes(whole)


def peek(sock: socket.socket, given_up: Callable[[], str]) -> bytes:
    """The first byte that comes, which is left there. Raises as `send`."""
    while not _ready(sock, given_up, writing=False):
        pass
    try:
        first = sock.recv(1, socket.MSG_PEEK)
    except OSError as error:
        raise Gone(_how(error)) from error
    if not first:
        raise Gone("it closed the connection")
    return first


def into(sock: socket.socket, view: memoryview, given_up: Callable[[], str]) -> None:
    """Fill `view`. Raises as `send`."""
    while view:
        if _ready(sock, given_up, writing=False):
            try:
                n = sock.recv_into(view, min(len(view), CHUNK_BYTES))
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise Gone(_how(error)) from error
            if not n:
                raise Gone("it closed the connection")
            view = view[n:]


def close(*socks: socket.socket | None) -> None:
    for sock in socks:
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                sock.close()


def _ready(sock: socket.socket, given_up: Callable[[], str], *, writing: bool) -> bool:
    if why := given_up():
        raise Gone(why)
    try:
        ready = select.select([] if writing else [sock], [sock] if writing else [], [], _LOOK_S)
    except (OSError, ValueError) as error:  # closed by another thread
        raise Gone("the connection was closed") from error
    return bool(ready[0] or ready[1])


def _how(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
