"""The wire format of protocol buffers: the fields of one message, nothing copied, no length believed unchecked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from edgellm.memory.errors import EdgellmError

Data = TypeVar("Data", bytes, memoryview)


class ProtobufError(EdgellmError, ValueError):
    """Not a message, or a truncated one."""


def fields(data: Data) -> Iterator[tuple[int, Any]]:
    """(field number, value) in order: ints for varints, slices of `data` for all else.

    Raises:
        ProtobufError: a length or a number that leaves the message.
    """
    offset, end = 0, len(data)
    while offset < end:
        key, offset = varint(data, offset)
        wire = key & 7
        if wire == 0:
            value, offset = varint(data, offset)
            yield key >> 3, value
            continue
        if wire == 2:
            length, offset = varint(data, offset)
        else:
            length = {1: 8, 5: 4}.get(wire, -1)
        if length < 0 or length > end - offset:
            raise ProtobufError("a field leaves its message")
        yield key >> 3, data[offset : offset + length]
        offset += length


def varint(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    """(value, offset behind it) of a number of 64 bits at most.

    Raises:
        ProtobufError: the number does not end.
    """
    value = shift = 0
    while True:
        if offset >= len(data) or shift > 63:
            raise ProtobufError("a number does not end")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, offset
