"""Texts one after another, as a pass of the trainer reads them, and what a pass finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.quantised import Floats
from edgellm.runtime.distillation.lesson import Sample


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts one after another, as a pass reads them."""

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    texts: tuple[slice, ...]
    lasts: tuple[slice, ...]  # of `answered`, of each text
    answered: NDArray[np.int64]  # rows behind which a token of an answer comes: the last ones of each text
    answers: NDArray[np.int32]  # those tokens
    n_answers: tuple[int, ...]  # of each text

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Rows:
        tokens, positions, texts, answered, start = [], [], [], [], 0
        ends = np.cumsum([len(sample.answer) for sample in samples]).tolist()
        for sample in samples:
            text = np.concatenate((sample.prompt, sample.answer))[:-1]
            stop = start + len(text)
            tokens.append(text)
            positions.append(np.arange(len(text), dtype=np.int32))
            texts.append(slice(start, stop))
            answered.append(np.arange(stop - len(sample.answer), stop))
            start = stop
        return cls(
            np.concatenate(tokens),
            np.concatenate(positions),
            tuple(texts),
            tuple(slice(end - len(sample.answer), end) for end, sample in zip(ends, samples, strict=True)),
            np.concatenate(answered),
            np.concatenate([sample.answer for sample in samples]),
            tuple(len(sample.answer) for sample in samples),
        )


@dataclass(slots=True)
class Gradients:
    """Of the sum of losses over some answer tokens."""

    loss: float = 0.0
    n_tokens: int = 0
    n_right: int = 0  # whose likeliest token was the answer's
    thetas: dict[str, Floats] = field(default_factory=dict)

    def add(self, other: Gradients) -> None:
        self.loss += other.loss
        self.n_tokens += other.n_tokens
        self.n_right += other.n_right
        for name, theta in other.thetas.items():
            if name in self.thetas:
                self.thetas[name] += theta
            else:
                self.thetas[name] = theta
