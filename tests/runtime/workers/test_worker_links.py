"""The relay before a worker: the engine's end is answered whatever becomes of the worker."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from rpc_server import Client, PlayedServer

from edgellm.runtime.workers import wire
from edgellm.runtime.workers.link import Link, link_of, linked
from edgellm.runtime.workers.sockets import BadAddress, address_of
from edgellm.runtime.workers.survey import WorkerError, survey
from edgellm.runtime.workers.wire import PROTOCOL, SIZE, Command

Servers = Callable[..., PlayedServer]


@pytest.fixture
def servers() -> Iterator[Servers]:
    made: list[PlayedServer] = []

    def make(**settings: object) -> PlayedServer:
        made.append(PlayedServer(**settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for server in made:
        server.close()


def connected(link: Link) -> Client:
    return Client(int(link.endpoint.rpartition(":")[2]))


def test_what_the_engine_asks_arrives_and_what_is_answered_comes_back(servers: Servers) -> None:
    server = servers()
    (link,) = linked([server.address])
    engine = connected(link)
    assert tuple(engine.hello()[:3]) == PROTOCOL
    assert struct.unpack("<I", engine.ask(Command.DEVICE_COUNT, b"")) == (1,)
    assert engine.get(3_000_000) == b"\x07" * 3_000_000
    engine.tell(Command.SET_TENSOR, bytes(5_000_000))
    assert engine.get(10) == b"\x07" * 10
    assert (Command.SET_TENSOR, 5_000_000) in server.requests
    assert not link.lost
    assert link.n_sent_bytes > 5_000_000
    assert link.n_received_bytes > 3_000_000


def test_no_other_transport_is_offered_around_the_relay(servers: Servers) -> None:
    server = servers(answers={Command.HELLO: wire.reply(bytes([*PROTOCOL, 0, *[9] * 24]))})
    (link,) = linked([server.address])
    assert connected(link).hello() == bytes([*PROTOCOL, *bytes(25)])


@pytest.mark.parametrize("command", [Command.GET_TENSOR, Command.ALLOC_BUFFER, Command.HELLO, Command.COPY_TENSOR])
def test_a_worker_that_goes_away_is_lost_and_the_engine_is_answered(servers: Servers, command: Command) -> None:
    server = servers()
    (link,) = linked([server.address])
    engine = connected(link)
    engine.hello()
    server.ends_at = command
    sizes = {Command.ALLOC_BUFFER: 12, Command.HELLO: 24, Command.COPY_TENSOR: 592}
    if command is Command.GET_TENSOR:
        assert engine.get(100) == bytes(100)
    else:
        assert engine.ask(command, bytes(sizes[command])) == wire.fake(command)
    assert "closed" in link.lost
    engine.tell(Command.SET_TENSOR, bytes(1000))
    engine.tell(Command.GRAPH_COMPUTE, bytes(2_000_000))
    assert engine.get(2_000_000) == bytes(2_000_000)
    assert SIZE.unpack(engine.ask(Command.GET_ALIGNMENT, bytes(4))) == (64,)


@pytest.mark.parametrize(
    ("command", "body", "wrong"),
    [
        (Command.GET_ALIGNMENT, bytes(4), SIZE.pack(0)),
        (Command.GET_ALIGNMENT, bytes(4), SIZE.pack(48)),
        (Command.BUFFER_GET_BASE, bytes(8), SIZE.pack(0)),
        (Command.DEVICE_COUNT, b"", struct.pack("<I", 0)),
        (Command.GET_MAX_SIZE, bytes(4), b"short"),
        (Command.GET_DEVICE_MEMORY, bytes(4), bytes(2000)),
    ],
)
def test_an_answer_that_would_end_the_process_does_not_reach_the_engine(
    servers: Servers, command: Command, body: bytes, wrong: bytes
) -> None:
    server = servers()
    (link,) = linked([server.address])
    engine = connected(link)
    engine.hello()
    server.answers[command] = wire.reply(wrong)
    assert engine.ask(command, body) == wire.fake(command)
    assert link.lost == "it does not answer what it is asked"


def test_a_lost_layers_is_linked_anew_when_it_is_asked_for_again(servers: Servers) -> None:
    server = servers()
    (link,) = linked([server.address])
    assert linked([server.address]) == [link]
    link.close()
    server.requests.clear()
    (again,) = linked([server.address])
    assert again is not link
    assert link_of(server.address) is again
    assert not again.lost


def speaks(said: bytes) -> tuple[socket.socket, str]:
    """A port where something else answers each connection so."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if said:
                sock.recv(16)
                sock.sendall(said)

    threading.Thread(target=run, daemon=True).start()
    return listener, f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\xff\xfe" * 2000,
        b'{"protocol": [7, 0, 0], "free_bytes": "much"}\n',
        b'{"protocol": [7], "free_bytes": 1, "total_bytes": 1}\n',
        b"[" * 4000 + b"\n",
    ],
)
def test_a_port_that_speaks_something_else_is_a_sentence(said: bytes) -> None:
    listener, address = speaks(said)
    with listener, pytest.raises(WorkerError, match="is no worker"):
        survey(address)


def test_a_port_that_says_nothing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.runtime.workers.survey.ANSWER_S", 0.3)
    listener, address = speaks(b"")
    with listener, pytest.raises(WorkerError, match="says nothing"):
        survey(address)


def test_where_nobody_listens_the_sentence_says_how_a_worker_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(WorkerError, match=f"edgellm worker --port {port}"):
        survey(f"127.0.0.1:{port}")


@pytest.mark.parametrize("protocol", [(6, 0, 0), (7, 1, 0), (8, 0, 0), (7, 0, 1)])
def test_an_rpc_server_of_another_version_is_a_sentence(servers: Servers, protocol: tuple[int, int, int]) -> None:
    with pytest.raises(WorkerError, match="of another version"):
        survey(servers(protocol=protocol).address)


def test_a_bare_rpc_server_serves_without_saying_that_it_lives(servers: Servers) -> None:
    found, watch = survey(servers().address)
    assert watch is None
    assert (found.facts.free_bytes, found.facts.total_bytes, found.facts.kernels) == (2**30, 2**31, "")


@pytest.mark.parametrize(
    ("text", "address"),
    [("a:1", ("a", 1)), ("a", ("a", 50052)), ("[::1]:7", ("::1", 7)), ("[::1]", ("::1", 50052))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:0", "a:65536", "a:-1", "a:x", "a:１"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadAddress):
        address_of(text)
