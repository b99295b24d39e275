"""The seam between the loop and what an answer is held to: a JSON schema, a grammar.

Every row of logits is masked before a token is chosen, so whatever is drafted the answer is the one that the masked
target writes by itself. Text that can only come in one way is a draft that costs nothing (`drafters/constrained.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


class ConstraintState(Protocol):
    """Where one answer stands in its constraint."""

    def allowed(self, ahead: Sequence[int] = ()) -> Mask:
        """Which tokens may follow the answer and `ahead`, (n_vocab,); end tokens where the answer may end.

        Text that can only come in one way may come in its usual tokens alone. `ahead` are legal tokens that are not
        settled; asked for one more of them each time, it costs a step each.

        Raises:
            ConstraintFailed: there is none, or the constraint cannot be followed any further.
        """
        ...

    def n_legal(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` may follow the answer by their text, up to the first that may not."""
        ...

    def forced(self, ahead: Sequence[int] = ()) -> bytes:
        """The text that must follow the answer and `ahead`; b"" where there is a choice."""
        ...

    def advance(self, tokens: Sequence[int]) -> None:
        """These follow the answer for good; what stands behind an end token is passed over.

        Raises:
            ConstraintFailed: one of them may not.
        """
        ...

    @property
    def ending(self) -> list[int]:
        """The token that ends the answer, where nothing else may follow it; none elsewhere."""
        ...


class Constraint(Protocol):
    """What answers of one vocabulary are held to."""

    def start(self) -> ConstraintState:
        """The state at the beginning of an answer."""
        ...
