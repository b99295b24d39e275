"""The seam between the loop and whatever computes logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class LoadError(RuntimeError):
    """A model that cannot be loaded; the message says why and what to do."""


class EngineError(RuntimeError):
    """The engine failed on a model that had loaded."""


class ContextFull(EngineError):
    """More tokens than the context holds."""


class CannotTruncate(EngineError):
    """The model's memory cannot be cut back (recurrent state), which speculation needs."""


class Backend(Protocol):
    """One sequence of tokens and the keys and values computed for it."""

    n_vocab: int
    n_ctx: int  # tokens
    max_keep: int  # logits rows that one forward pass can return; the widest verification is this many tokens
    busy_s: float  # seconds spent inside the engine so far

    @property
    def length(self) -> int:
        """Tokens whose keys and values are cached."""
        ...

    def forward(self, tokens: Sequence[int], keep: int) -> Logits:
        """Append `tokens` and return the logits of the last `keep` of them, shape (keep, n_vocab).

        The rows are a view into the engine's own buffer, valid until the next call.

        Raises:
            ContextFull: the tokens do not fit behind the cached ones.
            EngineError: the engine refused or failed.
        """
        ...

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens.

        Raises:
            CannotTruncate: the model cannot do so.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory; the backend is unusable afterwards."""
        ...
