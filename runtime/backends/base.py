"""The seam between the loop and whatever computes logits."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.errors import EdgellmError

Logits = NDArray[np.float32]


class LoadError(EdgellmError, RuntimeError):
    """A model that cannot be loaded; the message says why and what to do."""


class OneTextOnly(LoadError):
    """A model that cannot be kept for several texts side by side; for one it can."""


class OutOfMemory(LoadError):
    """The memory for a model or its context could not be had; less of it might be."""


class EngineError(EdgellmError, RuntimeError):
    """The engine failed on a model that had loaded."""


class LayersLost(EngineError):
    """A machine or a device that held layers is gone: the model has to be loaded anew, without it."""


class ContextFull(EngineError):
    """More tokens than the context holds."""


class PromptTooLong(ContextFull):
    """A prompt that leaves no room for an answer."""

    def __init__(self, sentence: str, n_prompt: int, n_ctx: int, *, at_least: bool = False) -> None:
        """`at_least`: it was not tokenised, and may have more tokens."""
        super().__init__(sentence)
        self.n_prompt, self.n_ctx, self.at_least = n_prompt, n_ctx, at_least  # tokens


class Interrupted(EngineError):
    """Somebody asked to stop while text was being read; what was read before is kept."""


class BadNumbers(EngineError):
    """Logits that are not finite: nothing that follows from them is an answer."""


class CannotTruncate(EngineError):
    """The model's memory cannot be cut back (recurrent state), which speculation needs."""


class StopSignal(Protocol):
    """What a backend looks at while it reads text; a `threading.Event` is one."""

    def is_set(self) -> bool: ...


stops_loading: ContextVar[StopSignal | None] = ContextVar("stops_loading", default=None)
"""Ends loads of whoever sets it with Interrupted, as of a server that is stopped while it loads."""


class StopSwitch:
    """The stop signal of the request that runs: a context is made once and serves many requests."""

    def __init__(self) -> None:
        self.signal: StopSignal | None = None

    def is_set(self) -> bool:
        signal = self.signal
        return signal is not None and signal.is_set()


class Backend(Protocol):
    """One sequence of tokens and the keys and values computed for it."""

    n_vocab: int
    n_ctx: int  # tokens
    max_outputs: int  # logits rows that one forward pass can return; the widest verification is this many tokens
    engine_s: float  # seconds spent inside the engine so far
    can_shift: bool  # whether `forget_oldest` is to be had

    @property
    def tokens(self) -> list[int]:
        """Whose keys and values are cached; only the backend changes them."""
        ...

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        """Append `tokens` and return the logits of the last `n_outputs` of them, shape (n_outputs, n_vocab).

        The rows are a view into the engine's own buffer, valid until the next call.

        Raises:
            ContextFull: the tokens do not fit behind the cached ones.
            EngineError: the engine refused or failed.
        """
        ...

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens.

        Where a recurrent state is kept, a cut far back may leave fewer: those before a copy of it that is at hand. What
        the last pass of several rows appended is cut exactly.

        Raises:
            CannotTruncate: the model cannot do so.
        """
        ...

    def forget_oldest(self, n: int) -> None:
        """Forget the first `n` tokens and move the others up without reading them again; needs `can_shift`.

        What is held was computed with the forgotten ones in sight: near to what a new reading would give, not the same.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory; the backend is unusable afterwards."""
        ...


@runtime_checkable
class HiddenStates(Protocol):
    """What a backend may offer to drafters that are trained on it: the states that its head computes logits from."""

    n_embd: int

    def want_hidden_states(self, wanted: bool = True) -> bool:
        """Passes that follow keep them; text is then read in passes of its own. Returns whether they did before."""
        ...

    def hidden_states(self) -> NDArray[np.float32]:
        """Of the tokens whose logits the last pass returned, (n_outputs, n_embd); valid until the next call.

        Raises:
            EngineError: that pass kept none: they were not wanted, or it ran a single token as two.
        """
        ...


@runtime_checkable
class KeepsTurns(Protocol):
    """A backend that can be cut back to few places alone: where what it was given to read at once ended."""

    keeps_turns: bool


@runtime_checkable
class SharesBeginnings(Protocol):
    """A backend whose context holds other texts too, which may begin alike."""

    def adopt(self, tokens: Sequence[int]) -> None:
        """Begin with what another text has in common with `tokens`, where that is much more than is held.

        What gives way is kept for others as long as there is room.
        """
        ...

    def forget(self) -> None:
        """Hold nothing, and keep nothing of it for others."""
        ...


def checked(logits: Logits, name: str) -> Logits:
    """The same rows, once all of their numbers are finite; 20 us a row of 150,000, where a pass takes tens of ms.

    Raises:
        BadNumbers: one is not. `name` is the model's, for the sentence.
    """
    if not np.isfinite(logits).all():
        raise BadNumbers(
            f"{name} computes numbers that are none (NaN or infinite): its weights are damaged, or too large for its "
            "type; pull it again, or take another quantisation"
        )
    return logits


def keep_common_prefix(backend: Backend, tokens: Sequence[int], n_most: int, *, n_known: int = 0) -> int:
    """Cut the backend back to what it shares with `tokens`, `n_most` at most; returns how many it keeps.

    `n_known`: how many are known to be shared where both are that long.
    """
    if isinstance(backend, SharesBeginnings) and not n_known:
        backend.adopt(tokens[: max(0, n_most)])
    held = backend.tokens
    n_max = max(0, min(n_most, len(held)))
    n = min(n_known, n_max)
    while n < n_max and held[n] == tokens[n]:
        n += 1
    try:
        backend.truncate(n)
    except CannotTruncate:  # recurrent state: begin again
        backend.truncate(0)
    return len(backend.tokens)
