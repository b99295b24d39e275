"""llama.cpp's form of a sequence's keys and values, taken apart into a row of bytes for each token, and put together.

What is taken apart comes from the engine; what is put together is its form around rows of numbers, so that no length or
type is ever read from a file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.backends.base import EngineError

Rows = NDArray[np.uint8]  # (n_tokens, row_bytes): the keys of all layers, then their values
_MAGIC = 0xAF143CD8
_BEGIN = struct.Struct("<IiII")  # magic, sequence, streams, cells
_CELL = struct.Struct("<iI")  # position, sequences that follow
_LAYERS = struct.Struct("<II")  # whether values are transposed, layers
_TENSOR = struct.Struct("<iQ")  # type, bytes a token
_MOST_LAYERS = 4096


class UnknownState(EngineError):
    """The engine keeps a model's state in a form that is not known here."""


@dataclass(frozen=True, slots=True)
class StateLayout:
    """What each layer keeps of a token."""

    keys: tuple[tuple[int, int], ...]  # type as the engine numbers it, bytes
    values: tuple[tuple[int, int], ...]

    @property
    def row_bytes(self) -> int:
        return sum(n for _, n in (*self.keys, *self.values))

    def join(self, rows: Rows, first: int, sequence: int) -> NDArray[np.uint8]:
        """The engine's form of tokens at positions from `first` on."""
        n = len(rows)
        parts = [_BEGIN.pack(_MAGIC, sequence, 1, n)]
        parts += [_CELL.pack(first + i, 1) + struct.pack("<i", sequence) for i in range(n)]
        parts.append(_LAYERS.pack(0, len(self.keys)))
        at = 0
        for kind, n_bytes in (*self.keys, *self.values):
            parts.append(_TENSOR.pack(kind, n_bytes))
            parts.append(rows[:, at : at + n_bytes].tobytes())
            at += n_bytes
        return np.frombuffer(b"".join(parts), np.uint8)


def split(data: NDArray[np.uint8]) -> tuple[StateLayout, list[int], Rows]:
    """The layout, the positions in the order of their cells, and the rows in that order.

    Raises:
        UnknownState: it is in another form, or holds more than keys and values.
    """
    try:
        return _Reader(data).read()
    except struct.error as error:
        raise UnknownState("the engine's state is shorter than what it should hold") from error


class _Reader:
    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data, self._at = data, 0

    def read(self) -> tuple[StateLayout, list[int], Rows]:
        magic, _, n_streams, n = self._take(_BEGIN)
        if magic != _MAGIC or n_streams != 1 or not 0 < n <= len(self._data):
            raise UnknownState("the engine's state begins in a form that is not known")
        positions = [self._position() for _ in range(n)]
        is_transposed, n_layers = self._take(_LAYERS)
        if is_transposed or not 0 < n_layers <= _MOST_LAYERS:
            raise UnknownState("the engine keeps values in a form that is not known")
        keys, key_rows = self._tensors(n, n_layers)
        values, value_rows = self._tensors(n, n_layers)
        if self._at != len(self._data):
            raise UnknownState("the engine's state holds more than keys and values")
        return StateLayout(keys, values), positions, np.concatenate([*key_rows, *value_rows], axis=1)

    def _position(self) -> int:
        position, n_sequences = self._take(_CELL)
        if n_sequences > 1 or position < 0:
            raise UnknownState("the engine's state tells of cells in a form that is not known")
        self._at += 4 * n_sequences
        return int(position)

    def _tensors(self, n: int, n_layers: int) -> tuple[tuple[tuple[int, int], ...], Sequence[Rows]]:
        kinds: list[tuple[int, int]] = []
        rows: list[Rows] = []
        for _ in range(n_layers):
            kind, n_bytes = self._take(_TENSOR)
            end = self._at + n * n_bytes
            if not 0 < n_bytes <= len(self._data) or end > len(self._data):
                raise UnknownState("the engine's state has a layer that is longer than itself")
            kinds.append((int(kind), int(n_bytes)))
            rows.append(self._data[self._at : end].reshape(n, n_bytes))
            self._at = end
        return tuple(kinds), rows

    def _take(self, form: struct.Struct) -> tuple[int, ...]:
        found = form.unpack_from(self._data.data, self._at)
        self._at += form.size
        return found
