"""The front of a worker: it lends what it was told to, hands on nothing else, and outlives its engine."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rpc_server import Client, PlayedServer, until

from edgellm.runtime.workers.link import linked
from edgellm.runtime.workers.serving import Front
from edgellm.runtime.workers.survey import GREETING, Facts, WorkerError, survey
from edgellm.runtime.workers.wire import SIZE, Command

LENT_BYTES = 1_000_000


class PlayedEngine:
    """What a front needs of its child."""

    def __init__(self, **said: object) -> None:
        self.server = PlayedServer()
        self.facts = Facts("a board", 2**40, 2**40, edgellm="1", engine="x", kernels="avx2", **said)  # type: ignore[arg-type]
        self.is_up, self.n_starts, self.cpu_s = True, 1, 1.0

    @property
    def port(self) -> int:
        return self.server.port

    def keep_up(self, say: object) -> None:
        pass

    def end_child(self) -> None:
        self.end()

    def end(self) -> None:
        self.is_up = False
        self.server.close()


@contextmanager
def front_of(engine: PlayedEngine) -> Iterator[tuple[Front, list[str]]]:
    said: list[str] = []
    front = Front(engine, "127.0.0.1", 0, LENT_BYTES, said.append)  # type: ignore[arg-type]
    stop = threading.Event()
    thread = threading.Thread(target=front.run, args=(stop,))
    thread.start()
    try:
        yield front, said
    finally:
        stop.set()
        thread.join()
        engine.end()


@pytest.fixture
def engine() -> PlayedEngine:
    return PlayedEngine()


def allocate(client: Client, n_bytes: int) -> bytes:
    """Its handle; zeros where it is refused."""
    return client.ask(Command.ALLOC_BUFFER, struct.pack("<IQ", 0, n_bytes))[:8]


def test_it_says_what_it_is_how_far_and_that_it_lives(engine: PlayedEngine) -> None:
    with front_of(engine) as (front, _):
        found, watch = survey(f"127.0.0.1:{front.port}", "x")
        assert watch is not None
        assert (found.facts.device, found.facts.kernels, found.facts.free_bytes) == ("a board", "avx2", LENT_BYTES)
        assert found.round_trip_s < 1
        assert found.link_bytes_s > 1e6
        watch.settimeout(5)
        assert watch.recv(1) == b"."
        watch.close()


def test_one_of_another_engine_is_refused_in_a_sentence(engine: PlayedEngine) -> None:
    with front_of(engine) as (front, _), pytest.raises(WorkerError, match="another version"):
        survey(f"127.0.0.1:{front.port}", "y")


def test_one_that_serves_somebody_says_so(engine: PlayedEngine) -> None:
    with front_of(engine) as (front, _):
        client = Client(front.port)
        client.hello()
        with pytest.raises(WorkerError, match="serves somebody else"):
            survey(f"127.0.0.1:{front.port}")
        client.sock.close()
        assert until(lambda: not front.facts.busy)
        survey(f"127.0.0.1:{front.port}")


def test_no_more_memory_is_lent_than_it_was_told_to(engine: PlayedEngine) -> None:
    with front_of(engine) as (front, said):
        client = Client(front.port)
        client.hello()
        first = allocate(client, 600_000)
        assert any(first)
        assert struct.unpack("<QQ", client.ask(Command.GET_DEVICE_MEMORY, bytes(4))) == (400_000, LENT_BYTES)
        assert not any(allocate(client, 500_000))
        assert 500_000 not in engine.server.buffers.values()
        client.tell(Command.FREE_BUFFER, first)
        assert any(allocate(client, 1_000_000))
        client.sock.close()
        assert until(lambda: any("100,000 bytes more than are lent" in line for line in said))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00" * 50,
        bytes([Command.HELLO]) + SIZE.pack(2**63),
        bytes([Command.HELLO]) + SIZE.pack(23) + bytes(23),
        GREETING[:5] + b"?" * 50,
        GREETING + b"ping 99999999999\n",
        GREETING + b"ping -1\n",
    ],
)
def test_what_is_none_of_its_words_ends_the_connection_and_reaches_no_engine(engine: PlayedEngine, data: bytes) -> None:
    with front_of(engine) as (front, said):
        with socket.create_connection(("127.0.0.1", front.port), 10) as sock:
            sock.sendall(data)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionResetError:
                pass
        assert until(lambda: said)
        assert not engine.server.requests


@pytest.mark.parametrize(
    ("command", "n_bytes"),
    [
        (99, 0),
        (Command.GRAPH_COMPUTE, 2**62),
        (Command.SET_TENSOR, 10),
        (Command.GET_TENSOR, 311),
        (Command.ALLOC_BUFFER, 0),
    ],
)
def test_a_request_that_is_none_ends_the_session(engine: PlayedEngine, command: int, n_bytes: int) -> None:
    with front_of(engine) as (front, said):
        client = Client(front.port)
        client.hello()
        client.sock.sendall(bytes([command]) + SIZE.pack(n_bytes))
        assert client.is_closed()
        assert until(lambda: any("a request that is none" in line for line in said))
        assert [command for command, _ in engine.server.requests] == [Command.HELLO]


def test_a_pass_that_was_described_before_is_not_described_again(engine: PlayedEngine) -> None:
    rng = random.Random(0)
    bodies = [bytes([i]) * (100_000 + i) for i in range(24)]  # more than are kept
    sent = [bodies[min(rng.randrange(24), rng.randrange(24))] for _ in range(200)]
    with front_of(engine) as (front, _):
        (link,) = linked([f"127.0.0.1:{front.port}"])
        client = Client(int(link.endpoint.rpartition(":")[2]))
        client.hello()
        for graph in sent:
            client.tell(Command.GRAPH_COMPUTE, graph)
        client.get(8)
        assert engine.server.graphs == sent
        assert 24 * 100_000 <= link.n_sent_bytes < 0.5 * sum(map(len, sent))
        link.close()


def test_passes_are_described_each_time_to_a_worker_that_keeps_none(engine: PlayedEngine) -> None:
    (link,) = linked([f"127.0.0.1:{engine.port}"])
    client = Client(int(link.endpoint.rpartition(":")[2]))
    client.hello()
    for _ in range(3):
        client.tell(Command.GRAPH_COMPUTE, bytes(5000))
    client.get(8)
    assert engine.server.graphs == [bytes(5000)] * 3
    link.close()
    engine.end()


def test_a_pass_that_was_never_described_ends_the_session(engine: PlayedEngine) -> None:
    with front_of(engine) as (front, said):
        client = Client(front.port)
        client.hello()
        client.tell(Command.GRAPH_COMPUTE, bytes(100))
        client.tell(Command.KEPT_GRAPH, b"\x00")
        client.tell(Command.KEPT_GRAPH, b"\x01")
        assert client.is_closed()
        assert until(lambda: any("a pass that it never described" in line for line in said))
        assert until(lambda: engine.server.graphs == [bytes(100)] * 2)


def test_an_engine_that_ends_is_a_worker_lost_at_once(engine: PlayedEngine) -> None:
    with front_of(engine) as (front, _):
        (link,) = linked([f"127.0.0.1:{front.port}"])
        client = Client(int(link.endpoint.rpartition(":")[2]))
        client.hello()
        assert client.get(5) == b"\x07" * 5
        engine.end()
        started = time.monotonic()
        assert until(lambda: link.lost)
        assert client.get(5) == bytes(5)
        assert time.monotonic() - started < 5


def test_a_front_that_stands_still_is_lost_after_seconds(engine: PlayedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.runtime.workers.link.SILENCE_S", 0.5)
    monkeypatch.setattr("edgellm.runtime.workers.serving._BEAT_S", 60.0)
    with front_of(engine) as (front, _):
        engine.server.silent_at = Command.GET_TENSOR
        (link,) = linked([f"127.0.0.1:{front.port}"])
        client = Client(int(link.endpoint.rpartition(":")[2]))
        client.hello()
        assert client.get(5) == bytes(5)
        assert link.lost.startswith("no sign of life")
        monkeypatch.setattr("edgellm.runtime.workers.serving._BEAT_S", 0.1)


def test_an_engine_that_stands_still_is_ended(engine: PlayedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.runtime.workers.serving._STILL_S", 0.3)
    engine.facts = Facts("a board", 1, 1, macs_s=1.0)
    with front_of(engine) as (front, said):
        engine.server.silent_at = Command.GET_TENSOR
        client = Client(front.port)
        client.hello()
        client.tell(Command.GET_TENSOR, bytes(304) + SIZE.pack(5))
        assert client.is_closed()
        assert not engine.is_up
        assert until(lambda: any("stands still" in line for line in said))


def test_what_it_says_of_itself_is_one_line_of_json(engine: PlayedEngine) -> None:
    line = engine.facts.to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line)["protocol"] == [7, 0, 0]
