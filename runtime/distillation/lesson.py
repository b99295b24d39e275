"""What a drafter learns from: a question, and what its target answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Likely = tuple[tuple[int, float], ...]  # the likeliest next tokens with their probabilities, the likeliest first


@dataclass(frozen=True, slots=True)
class Lesson:
    """An answer of the target to a conversation."""

    messages: tuple[tuple[str, str], ...]  # (role, content), up to the question; a system prompt only if it was given
    tokens: tuple[int, ...]  # of the answer, in the target's vocabulary, without its end token
    ended: bool  # whether the target ended it by itself
    likely: tuple[Likely, ...] = ()  # what the target held likely for each token, and for its end; () where not known
    kind: str = "chat"  # where the question came from


@dataclass(frozen=True, slots=True)
class Sample:
    """A lesson in the drafter's own tokens, behind its own template."""

    prompt: NDArray[np.int32]  # [n_prompt]
    answer: NDArray[np.int32]  # [n_answer], with the end token where the target ended
    soft: tuple[Likely | None, ...] = ()  # the target's distribution where both vocabularies have a border, or ()

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + len(self.answer)
