"""What llama.cpp's RPC says on a connection, as far as somebody between its two ends must know it.

A request is a byte that names the command, the size of what follows (8 bytes, little-endian) and that; some are
answered by a size and so many bytes. Numbers and sizes are those of protocol 7.0.0 (ggml 0.25.3, ggml-rpc.cpp).
"""

from __future__ import annotations

import struct
from enum import IntEnum

PROTOCOL = (7, 0, 0)
HEAD_BYTES = 9  # of a request: command and size
GRAPH_BYTES = 2**22  # of a pass's description that is kept, at most: some 200 layers
_N_GRAPHS = 16  # that are kept: passes of each width, behind contexts of one rounded length
SIZE = struct.Struct("<Q")

_TENSOR_BYTES = 296  # a tensor's description


class Command(IntEnum):
    ALLOC_BUFFER = 0
    GET_ALIGNMENT = 1
    GET_MAX_SIZE = 2
    BUFFER_GET_BASE = 3
    FREE_BUFFER = 4
    BUFFER_CLEAR = 5
    SET_TENSOR = 6
    SET_TENSOR_HASH = 7
    GET_TENSOR = 8
    COPY_TENSOR = 9
    GRAPH_COMPUTE = 10
    GET_DEVICE_MEMORY = 11
    INIT_TENSOR = 12
    GET_ALLOC_SIZE = 13
    HELLO = 14
    DEVICE_COUNT = 15
    GRAPH_RECOMPUTE = 16
    MEMSET_TENSOR = 17
    KEPT_GRAPH = 250  # our own, none of the engine's: a GRAPH_COMPUTE that both ends know, by its place


_REQUEST_BYTES: dict[Command, int] = {  # of those that have one size
    Command.ALLOC_BUFFER: 12,
    Command.GET_ALIGNMENT: 4,
    Command.GET_MAX_SIZE: 4,
    Command.BUFFER_GET_BASE: 8,
    Command.FREE_BUFFER: 8,
    Command.BUFFER_CLEAR: 9,
    Command.SET_TENSOR_HASH: _TENSOR_BYTES + 16,
    Command.GET_TENSOR: _TENSOR_BYTES + 16,
    Command.COPY_TENSOR: 2 * _TENSOR_BYTES,
    Command.GET_DEVICE_MEMORY: 4,
    Command.INIT_TENSOR: _TENSOR_BYTES,
    Command.GET_ALLOC_SIZE: 4 + 11 * _TENSOR_BYTES,
    Command.HELLO: 24,
    Command.DEVICE_COUNT: 0,
    Command.GRAPH_RECOMPUTE: 4,
    Command.MEMSET_TENSOR: _TENSOR_BYTES + 17,
    Command.KEPT_GRAPH: 1,
}
_LEAST_BYTES = {Command.SET_TENSOR: _TENSOR_BYTES + 9, Command.GRAPH_COMPUTE: 12}  # of those of any size
_REPLY_BYTES: dict[Command, int] = {  # of those that are answered, but for GET_TENSOR
    Command.ALLOC_BUFFER: 16,
    Command.GET_ALIGNMENT: 8,
    Command.GET_MAX_SIZE: 8,
    Command.BUFFER_GET_BASE: 8,
    Command.SET_TENSOR_HASH: 1,
    Command.COPY_TENSOR: 1,
    Command.GET_DEVICE_MEMORY: 16,
    Command.GET_ALLOC_SIZE: 8,
    Command.HELLO: 28,
    Command.DEVICE_COUNT: 4,
}
_FAKES: dict[Command, bytes] = {  # answers that the engine takes without ending the process
    Command.ALLOC_BUFFER: bytes(16),  # no buffer: the engine reports that it has no memory
    Command.GET_ALIGNMENT: SIZE.pack(64),
    Command.GET_MAX_SIZE: SIZE.pack(2**63),
    Command.BUFFER_GET_BASE: SIZE.pack(2**20),
    Command.SET_TENSOR_HASH: b"\x01",
    Command.COPY_TENSOR: b"\x01",
    Command.HELLO: bytes([*PROTOCOL, *bytes(25)]),
    Command.DEVICE_COUNT: struct.pack("<I", 1),
}


class KeptGraphs:
    """Descriptions of the last passes of a connection. Both its ends keep the same, so that a place says it all."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}  # the one used longest ago first

    def place_of(self, graph: bytes) -> int | None:
        """Where it is kept already; else it is from now on, and None is returned."""
        place = self._places.pop(graph, None)
        if place is not None:
            self._places[graph] = place
        elif len(self._places) < _N_GRAPHS:
            self._places[graph] = len(self._places)
        else:
            self._places[graph] = self._places.pop(next(iter(self._places)))
        return place

    def at(self, place: int) -> bytes | None:
        """What is kept there, used once more."""
        graph = next((graph for graph, at in self._places.items() if at == place), None)
        if graph is not None:
            self.place_of(graph)
        return graph


def known(head: bytes, most_bytes: int) -> Command | None:
    """The command of a request's first 9 bytes; None where there is none such, or its size is none of its sizes.

    Args:
        most_bytes: of a request whose size is not fixed.
    """
    n_bytes = size_of(head)
    try:
        command = Command(head[0])
    except ValueError:
        return None
    fixed = _REQUEST_BYTES.get(command)
    if fixed is not None:
        return command if n_bytes == fixed else None
    return command if _LEAST_BYTES[command] <= n_bytes <= most_bytes else None


def size_of(head: bytes) -> int:
    """Bytes that follow the first 9 of a request."""
    return int(SIZE.unpack_from(head, 1)[0])


def request(command: Command, body: bytes = b"") -> bytes:
    return bytes([command]) + SIZE.pack(len(body)) + body


def reply(body: bytes) -> bytes:
    return SIZE.pack(len(body)) + body


def is_answered(command: Command) -> bool:
    return command in _REPLY_BYTES or command is Command.GET_TENSOR


def reply_bytes(command: Command, body: bytes) -> int:
    """Of the answer to a request, without the size before it."""
    return int(SIZE.unpack_from(body, _TENSOR_BYTES + 8)[0]) if command is Command.GET_TENSOR else _REPLY_BYTES[command]


def fake(command: Command) -> bytes:
    """What the engine may be told in the place of a worker that is gone; all but GET_TENSOR's, which are zeros."""
    return _FAKES.get(command) or bytes(_REPLY_BYTES[command])


def is_sound(command: Command, answer: bytes) -> bool:
    """Whether the engine takes this answer without a check of its own ending the process."""
    if command is Command.HELLO:
        return tuple(answer[:3]) == PROTOCOL
    if command is Command.GET_ALIGNMENT:
        alignment = SIZE.unpack(answer)[0]
        return bool(0 < alignment <= 2**16 and alignment & (alignment - 1) == 0)
    if command in (Command.GET_MAX_SIZE, Command.BUFFER_GET_BASE):
        return bool(SIZE.unpack(answer)[0])
    if command is Command.DEVICE_COUNT:
        return bool(0 < struct.unpack("<I", answer)[0] <= 16)
    return True
