"""States of recurrent layers as they were after so many tokens, so that a text can be cut back to there.

Keys and values can be cut anywhere; a recurrent state cannot be computed backwards. llama.cpp keeps snapshots of it
inside a pass for a few architectures alone. Here the state is copied before tokens that may be rejected, and where
prompts end, and put back; what was accepted behind it is read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

from edgellm.runtime.backends.base import EngineError

_PARTIAL = api.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY  # what cannot be cut back, without keys and values


@dataclass(slots=True)
class _Saved:
    position: int  # tokens that it has seen
    data: NDArray[np.uint8]


class SavedStates:
    """Copies of the state of one sequence. Positions are tokens."""

    def __init__(self, context: Any, name: str, n_turns: int) -> None:
        """`n_turns`: copies of where prompts ended; the one that was not used for longest goes first."""
        self._context, self._name, self._n_turns = context, name, n_turns
        self._round: _Saved | None = None
        self._turns: list[_Saved] = []  # the one used last is the last

    @property
    def round_position(self) -> int | None:
        """Where the tokens began that may be rejected."""
        return self._round.position if self._round is not None else None

    def save_round(self, position: int) -> None:
        """Copy the state before tokens that may be rejected; there is one such copy."""
        if self.round_position != position:
            self._round = self._copied(position, self._round)

    def save_turn(self, position: int) -> None:
        """Copy the state where later texts may go on."""
        if not self._n_turns:
            return
        same = next((one for one in self._turns if one.position == position), None)
        if same is not None:
            self._turns.remove(same)
            self._turns.append(same)
            return
        oldest = self._turns.pop(0) if len(self._turns) == self._n_turns else None
        self._turns.append(self._copied(position, oldest))

    def restore(self, most: int) -> int | None:
        """Go back to the latest copy at or before `most`; returns where that is, or None where there is none.

        Raises:
            EngineError: the engine does not take its own copy back.
        """
        found = self._latest(most)
        if found is None:
            return None
        if found in self._turns:
            self._turns.remove(found)
            self._turns.append(found)
        n = api.llama_state_seq_set_data_ext(self._context, _pointer(found.data), found.data.size, 0, _PARTIAL)
        if n != found.data.size:
            raise EngineError(f"{self._name}: the engine did not take back its state after {found.position} tokens")
        return found.position

    def latest(self, most: int) -> int | None:
        """Where `restore` would go back to."""
        found = self._latest(most)
        return found.position if found is not None else None

    def forget_after(self, position: int) -> None:
        """Drop copies of a text that goes on in another way behind `position`."""
        self._turns = [one for one in self._turns if one.position <= position]
        if self._round is not None and self._round.position > position:
            self._round = None

    def _latest(self, most: int) -> _Saved | None:
        return max((one for one in self._all() if one.position <= most), key=lambda one: one.position, default=None)

    def _all(self) -> Iterator[_Saved]:
        yield from self._turns
        if self._round is not None:
            yield self._round

    def _copied(self, position: int, over: _Saved | None) -> _Saved:
        size = int(api.llama_state_seq_get_size_ext(self._context, 0, _PARTIAL))
        data = over.data if over is not None and over.data.size == size else np.empty(size, np.uint8)
        n = api.llama_state_seq_get_data_ext(self._context, _pointer(data), size, 0, _PARTIAL)
        if n != size:
            raise EngineError(f"{self._name}: the engine did not hand out its state after {position} tokens")
        return _Saved(position, data)


def _pointer(data: NDArray[np.uint8]) -> Any:
    return np.ctypeslib.as_ctypes(data)
