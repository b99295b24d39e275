"""What a worker says of itself, and how long the way to it is: asked before the engine touches it.

`edgellm worker` answers a greeting of its own on the port of llama.cpp's RPC: what it is, how fast bytes arrive, and,
as long as the connection lasts, that it lives. A bare rpc-server of llama.cpp closes a connection that begins so.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgellm.memory.errors import EdgellmError
from edgellm.memory.placement import Accelerator, Remote
from edgellm.runtime.workers.sockets import Gone, address_of, close, connect, receive, send
from edgellm.runtime.workers.wire import PROTOCOL, SIZE, Command, request

GREETING = b"edgellm worker 1\n"
WATCH, PING = b"watch\n", b"ping %d\n"
CONNECT_S, ANSWER_S = 3.0, 4.0
_FACTS_BYTES = 4096  # of a worker's own words, at most
_N_PINGS = 5
_LOADS = (2**16, 2**18, 2**20, 2**22)  # bytes that are sent for the link's speed, until they take long enough
_LONG_S = 0.1
BUSY = "it serves somebody else"


class WorkerError(EdgellmError, RuntimeError):
    """A worker that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a worker is. Bytes are those that it lends."""

    device: str
    free_bytes: int
    total_bytes: int
    protocol: tuple[int, int, int] = PROTOCOL
    edgellm: str = ""  # its version; "": a bare rpc-server, which tells nothing of itself
    engine: str = ""  # version and commit of its ggml
    kernels: str = ""  # the variant of our kernels that multiplies; "": the engine's own
    bandwidth_bytes_s: float = 0.0  # of its memory; 0: not known
    macs_s: float = 0.0
    busy: bool = False
    keeps_graphs: bool = False  # a pass that it was told of before need not be described again

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Survey:
    """A worker and the way to it."""

    address: str
    facts: Facts
    round_trip_s: float
    link_bytes_s: float  # 0: not known

    @property
    def accelerator(self) -> Accelerator:
        facts = self.facts
        remote = Remote(
            self.round_trip_s, self.link_bytes_s, facts.bandwidth_bytes_s, facts.macs_s, bool(facts.kernels)
        )
        return Accelerator(
            self.address, facts.device, "worker", facts.free_bytes, facts.total_bytes, facts.kernels, remote=remote
        )


def survey(address: str, engine: str = "") -> tuple[Survey, socket.socket | None]:
    """Ask a worker what it is and measure the way to it.

    Args:
        engine: version and commit of the ggml here; a worker of another one is refused. "": any.

    Returns:
        what it is, and a connection on which it says that it lives; None: a bare rpc-server, which does not.

    Raises:
        BadAddress: no HOST:PORT.
        WorkerError: nobody is there, it is no worker, one of another version, or busy.
    """
    host = address_of(address)
    sock = _connect(address, host)
    try:
        facts = _greet(sock, address)
        if facts is None:
            close(sock)
            return _survey_bare(address, host), None
        _check(address, facts, engine)
        round_trip_s = min(_ping(sock, 0) for _ in range(_N_PINGS))
        speed = 0.0
        for n_bytes in _LOADS:
            took_s = _ping(sock, n_bytes)
            speed = max(speed, n_bytes / max(took_s - round_trip_s, 1e-6))
            if took_s > _LONG_S + round_trip_s:
                break
        send(sock, WATCH, _deadline())
        return Survey(address, facts, round_trip_s, speed), sock
    except Gone as error:
        close(sock)
        raise WorkerError(f"the worker {address} went away while it was asked: {error}") from error
    except BaseException:
        close(sock)
        raise


def _connect(address: str, host: tuple[str, int]) -> socket.socket:
    try:
        return connect(host, CONNECT_S)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise WorkerError(
            f"no worker answers at {address} ({why}): start one there with `edgellm worker --port {host[1]}`, or "
            "check the address and the tunnel"
        ) from error


def _greet(sock: socket.socket, address: str) -> Facts | None:
    """What it is; None where it closes the connection at our greeting, as a bare rpc-server does."""
    try:
        send(sock, GREETING, _deadline())
        line = _line(sock)
    except Gone as error:
        if "within" in str(error):
            raise WorkerError(
                f"{address} takes connections and says nothing: it is no worker, or a bare rpc-server of llama.cpp "
                "that serves somebody else; end that, or take another port"
            ) from error
        return None
    if (facts := _facts(line)) is None:
        raise WorkerError(f"what listens at {address} is no worker: it says {_shown(line)}; check the port")
    return facts


def _line(sock: socket.socket) -> bytes:
    line, deadline = b"", _deadline()
    while not line.endswith(b"\n") and len(line) < _FACTS_BYTES:
        try:
            line += receive(sock, 1, deadline)
        except Gone:
            if line:  # something that speaks without an end of line
                return line
            raise
    return line


def _facts(line: bytes) -> Facts | None:
    """Every value as the kind it must be; None where one is not."""
    try:
        said: Mapping[str, Any] = json.loads(line)
        major, minor, patch = (int(n) for n in said["protocol"])
        free, total = int(said["free_bytes"]), int(said["total_bytes"])
        bandwidth, macs = float(said["bandwidth_bytes_s"]), float(said["macs_s"])
        words = [str(said[key])[:80] for key in ("device", "edgellm", "engine", "kernels")]
        busy, keeps = said["busy"] is True, said.get("keeps_graphs") is True
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if not (0 <= free <= total < 2**60 and 0 <= bandwidth < 1e15 and 0 <= macs < 1e18):
        return None
    device, version, engine, kernels = ("".join(c for c in word if c.isprintable()) for word in words)
    return Facts(device, free, total, (major, minor, patch), version, engine, kernels, bandwidth, macs, busy, keeps)


def _check(address: str, facts: Facts, engine: str) -> None:
    if facts.protocol != PROTOCOL or (engine and facts.engine != engine):
        theirs = f"protocol {'.'.join(map(str, facts.protocol))}, ggml {facts.engine or 'unknown'}"
        ours = f"{'.'.join(map(str, PROTOCOL))} and {engine or 'its own'}"
        raise WorkerError(
            f"the worker {address} is of another version ({theirs}; here {ours}): install the same edgellm and "
            "llama.cpp on both machines"
        )
    if facts.busy:
        raise WorkerError(f"the worker {address} cannot be used: {BUSY}; one at a time can")


def _ping(sock: socket.socket, n_bytes: int) -> float:
    """Seconds until it has so many bytes and says so."""
    started = time.perf_counter()
    send(sock, PING % n_bytes + bytes(n_bytes), _deadline())
    if receive(sock, 5, _deadline()) != b"pong\n":
        raise Gone("it does not answer as a worker does")
    return time.perf_counter() - started


def _survey_bare(address: str, host: tuple[str, int]) -> Survey:
    """Of an rpc-server that is not ours: what its protocol says."""
    sock = _connect(address, host)
    try:
        version = _ask(sock, Command.HELLO, bytes(24), 28)
        _check(address, Facts("", 0, 0, (version[0], version[1], version[2])), "")
        started = time.perf_counter()
        (n_devices,) = struct.unpack("<I", _ask(sock, Command.DEVICE_COUNT, b"", 4))
        round_trip_s = time.perf_counter() - started
        if not n_devices:
            raise WorkerError(f"the worker {address} has no device")
        free, total = struct.unpack("<QQ", _ask(sock, Command.GET_DEVICE_MEMORY, bytes(4), 16))
    except Gone as error:
        raise WorkerError(
            f"what listens at {address} is no worker: it does not speak llama.cpp's RPC ({error}); check the port"
        ) from error
    finally:
        close(sock)
    return Survey(address, Facts("llama.cpp's rpc-server", min(free, total), total), round_trip_s, 0.0)


def _ask(sock: socket.socket, command: Command, body: bytes, n_bytes: int) -> bytes:
    send(sock, request(command, body), _deadline())
    head = receive(sock, 8, _deadline())
    if SIZE.unpack(head)[0] != n_bytes:
        raise Gone(f"it says {_shown(head)}")
    return receive(sock, n_bytes, _deadline())


def _deadline() -> Any:
    ends = time.monotonic() + ANSWER_S
    return lambda: f"no answer within {ANSWER_S:.0f} s" if time.monotonic() > ends else ""


def _shown(said: bytes) -> str:
    text = said[:40].decode("latin-1").strip()
    return repr(text) if text.isprintable() and text else f"{len(said)} bytes that are none of its words"
