"""Keys and values of a sequence as rows of bytes, taken out of a shared context and put back, also by another process.

What is put back is believed only where the engine, given it, computes the last token's row anew to the last bit: that
row depends, layer by layer, on all that lies before it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

from edgellm.runtime.backends.base import EngineError
from edgellm.runtime.backends.state_rows import Rows, StateLayout, UnknownState, split

if TYPE_CHECKING:
    from edgellm.runtime.backends.llama_sequences import LlamaSequences

_P_BYTE = ctypes.POINTER(ctypes.c_uint8)


class SequenceStates:
    """The rows of a context's sequences. Called as the context is: by one thread at a time, between passes."""

    def __init__(self, context: LlamaSequences) -> None:
        """
        Raises:
            UnknownState: the model, or the kernels that run it, keep a state that cannot be taken out.
        """
        if not context.can_share:
            raise UnknownState(
                "what is kept of a sliding window, or by the engine's own kernels, is not put on the disk"
            )
        self._context = context
        context.truncate(0, 0)
        context.read(0, [0])  # a state of nothing says nothing of its form
        self.layout: StateLayout = split(self._part(0, 0, 1))[0]
        context.truncate(0, 0)

    def rows(self, sequence: int, first: int, last: int) -> Rows:
        """Of the tokens [first, last) of a sequence, (last - first, row_bytes)."""
        positions, rows = self._read(self._part(sequence, first, last), first, last)
        ordered = np.empty_like(rows)
        ordered[np.asarray(positions) - first] = rows
        return ordered

    def restore(self, sequence: int, tokens: Sequence[int], rows: Rows) -> bool:
        """Append `tokens`, at least two, whose rows were kept; the last is read, and must come to the row that was.

        False where it does not, or there is no room; the sequence is then what it was.
        """
        first = len(self._context.held[sequence])
        try:
            agrees = self._append(sequence, tokens, rows)
        except EngineError:
            agrees = False
        if not agrees:
            self._context.drop(sequence, first)
        return agrees

    def _append(self, sequence: int, tokens: Sequence[int], rows: Rows) -> bool:
        context, first, n = self._context, len(self._context.held[sequence]), len(tokens) - 1
        by_cell = self._put(sequence, first, rows[:n])
        if by_cell is None:
            return False
        context.held[sequence].extend(tokens[:n])
        if not context.place_restored(sequence, first, by_cell, tokens[n]):
            return False
        return np.array_equal(self.rows(sequence, first + n, first + n + 1)[0], rows[n])

    def _put(self, sequence: int, first: int, rows: Rows) -> list[int] | None:
        """Write rows into cells of the engine's choice; their positions in the order of these. None: no room."""
        context, last = self._context, first + len(rows)
        state = self.layout.join(rows, first, context.scratch)
        with self._scratch() as scratch:
            while api.llama_state_seq_set_data(context.handle, _bytes_of(state), state.size, scratch) != state.size:
                if not context.let_one_go():
                    return None
            positions, _ = self._read(self._state(), first, last)
            api.llama_memory_seq_cp(context.memory, scratch, sequence, first, last)
        return positions

    def _part(self, sequence: int, first: int, last: int) -> NDArray[np.uint8]:
        """A part of a sequence in the engine's form."""
        with self._scratch() as scratch:
            api.llama_memory_seq_cp(self._context.memory, sequence, scratch, first, last)
            return self._state()

    def _read(self, state: NDArray[np.uint8], first: int, last: int) -> tuple[list[int], Rows]:
        layout, positions, rows = split(state)
        if layout != self.layout or sorted(positions) != list(range(first, last)):
            raise UnknownState("the engine's state is not of the tokens that were asked for")
        return positions, rows

    @contextmanager
    def _scratch(self) -> Iterator[int]:
        try:
            yield self._context.scratch
        finally:
            api.llama_memory_seq_rm(self._context.memory, self._context.scratch, -1, -1)

    def _state(self) -> NDArray[np.uint8]:
        """Of the scratch sequence."""
        handle, scratch = self._context.handle, self._context.scratch
        state = np.empty(int(api.llama_state_seq_get_size(handle, scratch)), np.uint8)
        n = int(api.llama_state_seq_get_data(handle, _bytes_of(state), state.size, scratch))
        if not n or n != state.size:
            raise UnknownState("the engine does not say what it keeps of a sequence")
        return state


def _bytes_of(state: NDArray[np.uint8]) -> Any:
    return state.ctypes.data_as(_P_BYTE)
