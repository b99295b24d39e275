"""A relay in this process before each worker, so that the engine outlives it.

llama.cpp ends the process where a worker does not answer as it must. It is connected to the relay instead: when the
worker is gone, the relay takes what comes and answers with zeros, the pass ends as any other, and whoever ran it asks
`lost` before its logits are looked at.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence

from edgellm.runtime.workers import wire
from edgellm.runtime.workers.relay import relay
from edgellm.runtime.workers.sockets import (
    SILENCE_S,
    Gone,
    Strange,
    address_of,
    close,
    connect,
    into,
    prepare,
    receive,
    send,
)
from edgellm.runtime.workers.survey import CONNECT_S, Survey, survey
from edgellm.runtime.workers.wire import SIZE, Command

_MOST_BYTES = 2**40  # of a request of our own engine


class Link:
    """A worker, as this process's engine has it. `lost` says how it went away; "" while it is there."""

    def __init__(self, found: Survey, watch: socket.socket | None) -> None:
        self.survey = found
        self.lost = ""
        self.n_sent_bytes = self.n_received_bytes = self.n_round_trips = 0  # what the engine had to wait for
        self._target = address_of(found.address)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4)
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True, name=f"worker {found.address}").start()
        self._watch = watch
        if watch is not None:
            threading.Thread(target=self._heed, args=(watch,), daemon=True).start()

    @property
    def address(self) -> str:
        return self.survey.address

    def lose(self, why: str) -> None:
        """The worker is given up: what is asked of it from now on is answered here."""
        if not self.lost:
            self.lost = why

    def close(self) -> None:
        """Let go of the worker; an engine that is still connected goes on with zeros."""
        self.lose("it was let go of")
        close(self._watch)

    def _listen(self) -> None:
        while True:
            try:
                engine, _ = self._listener.accept()
            except OSError:
                return
            prepare(engine)
            threading.Thread(target=self._serve, args=(engine,), daemon=True).start()

    def _serve(self, engine: socket.socket) -> None:
        way = _Way(self)
        with contextlib.suppress(Gone):  # the engine's end
            relay(engine, way, _MOST_BYTES)
        close(engine, way.sock)

    def _heed(self, watch: socket.socket) -> None:
        """A byte comes twice a second as long as the worker lives."""
        watch.settimeout(SILENCE_S)
        try:
            while said := watch.recv(64):
                if b"x" in said:
                    return self.lose("its engine ended")
            self.lose("it ended")
        except TimeoutError:
            self.lose(f"no sign of life for {SILENCE_S:.0f} s")
        except OSError as error:
            self.lose((error.strerror or "the connection was closed").lower())


class _Way:
    """One connection to the worker, or, once that is lost, nobody."""

    def __init__(self, link: Link) -> None:
        self._link, self._graphs = link, wire.KeptGraphs()
        self.sock: socket.socket | None = None
        if not link.lost:
            try:
                self.sock = connect(link._target, CONNECT_S)
            except OSError as error:
                link.lose((error.strerror or str(error)).lower())

    def send(self, data: bytes | memoryview) -> None:
        self._link.n_sent_bytes += len(data)
        if self.sock is not None and not self._link.lost:
            try:
                send(self.sock, data, self._why)
            except Gone as error:
                self._link.lose(str(error))

    def compute(self, graph: bytes) -> None:
        place = self._graphs.place_of(graph) if self._link.survey.facts.keeps_graphs else None
        if place is None:
            self.send(wire.request(Command.GRAPH_COMPUTE, graph))
        else:
            self.send(wire.request(Command.KEPT_GRAPH, bytes([place])))

    def compute_kept(self, place: int) -> None:
        raise Strange("an engine keeps no passes")

    def expect(self, n_bytes: int) -> None:
        self._link.n_round_trips += 1
        if self.sock is not None and not self._link.lost:
            try:
                (size,) = SIZE.unpack(receive(self.sock, SIZE.size, self._why))
            except Gone as error:
                self._link.lose(str(error))
            else:
                if size != n_bytes:
                    self._link.lose("it does not answer what it is asked")

    def fill(self, view: memoryview) -> None:
        self._link.n_received_bytes += len(view)
        if self.sock is not None and not self._link.lost:
            try:
                return into(self.sock, view, self._why)
            except Gone as error:
                self._link.lose(str(error))
        view[:] = bytes(len(view))

    def intercept(self, command: Command, body: bytes) -> bytes | None:
        return None

    def answered(self, command: Command, body: bytes, answer: bytes) -> bytes:
        if not self._link.lost and not wire.is_sound(command, answer):
            self._link.lose("it does not answer what it is asked")
        if self._link.lost:
            return wire.fake(command)
        if command is Command.DEVICE_COUNT:
            return wire.fake(command)  # its first alone
        # Offers of other transports would go around this relay.
        return answer[:4] + bytes(len(answer) - 4) if command is Command.HELLO else answer

    def _why(self) -> str:
        return self._link.lost


_links: dict[str, Link] = {}  # by address; those that are lost give way to new ones


def linked(addresses: Sequence[str], engine: str = "") -> list[Link]:
    """Links to these workers, those of before where they are still there.

    Raises:
        BadAddress, WorkerError: as `survey`.
    """
    found = []
    for address in dict.fromkeys(addresses):
        held = _links.get(address)
        if held is None or held.lost:
            held = _links[address] = Link(*survey(address, engine))
        found.append(held)
    return found


def link_of(address: str) -> Link | None:
    """The link to a worker that was linked last."""
    return _links.get(address)
