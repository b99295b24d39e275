"""A text as one vector: its tokens' states behind the last layer's norm, pooled as the model's header says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.runtime.backends.base import (
    Backend,
    BadNumbers,
    HiddenStates,
    Interrupted,
    PromptTooLong,
    SharesBeginnings,
)
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.bringup.loading import Model
from edgellm.runtime.engine import Engine

Pooling: TypeAlias = Literal["mean", "first", "last"]
_POOLINGS: dict[object, Pooling] = {None: "mean", 0: "mean", 1: "mean", 2: "first", 3: "last"}  # GGUF's numbers


class CannotEmbed(EdgellmError, ValueError):
    """A model or a text that gives no vector; the message says why."""

    exit_code = USAGE


def embed_all(
    texts: Sequence[Sequence[int]], seat: Callable[[], AbstractContextManager[Engine]], cancel: threading.Event
) -> NDArray[np.float32]:
    """The vectors of several texts, (n_texts, n_embd), each in a seat of its own turn. Raises as `embed`."""
    return np.stack([_embed_in(seat, tokens, cancel) for tokens in texts])


def _embed_in(
    seat: Callable[[], AbstractContextManager[Engine]], tokens: Sequence[int], cancel: threading.Event
) -> NDArray[np.float32]:
    with seat() as engine:
        return embed(engine, tokens, cancel)


def embed(engine: Engine, tokens: Sequence[int], cancel: threading.Event) -> NDArray[np.float32]:
    """A vector of unit length, (n_embd,). Takes the place of what the engine's context holds, and no further memory.

    Raises:
        CannotEmbed: the engine that runs the model keeps no states, or the header asks for a pooling that is not known.
        PromptTooLong: more tokens than the context holds.
        Interrupted: `cancel` was set.
        BadNumbers: states that are none.
    """
    backend, pooling = engine.backend, pooling_of(engine.model)
    if not isinstance(backend, HiddenStates):
        raise CannotEmbed(f"{engine.model.path.name} gives no embeddings: its engine tells no states; take it as GGUF")
    tokens = ended(engine.model, tokens, pooling)
    if len(tokens) > backend.n_ctx:
        raise PromptTooLong(f"the text is {len(tokens):,} tokens long", len(tokens), backend.n_ctx)
    before = backend.want_hidden_states(True)
    try:
        backend.truncate(0)
        pooled = _pooled(_states(backend, tokens, cancel), pooling)
    finally:
        backend.want_hidden_states(before)
        if isinstance(backend, SharesBeginnings):  # no conversation begins like it
            backend.forget()
    length = float(np.linalg.norm(pooled))
    if not np.isfinite(length):
        raise BadNumbers(f"{engine.model.path.name} computes numbers that are none (NaN or infinite): pull it again")
    return (pooled / (length or 1.0)).astype(np.float32)


def pooling_of(model: Model) -> Pooling:
    """Raises CannotEmbed: the header names a way that is not known, as that of models that score pairs."""
    if not isinstance(model, LlamaModel):
        return "mean"
    kind = model.header.metadata.get(f"{model.architecture}.pooling_type")
    if kind not in _POOLINGS:
        raise CannotEmbed(f"{model.path.name} gives no embeddings: its header asks for pooling of type {kind!r:.20}")
    return _POOLINGS[kind]


def ended(model: Model, tokens: Sequence[int], pooling: Pooling) -> Sequence[int]:
    """With the token behind a text whose state is pooled, where the model was trained with one."""
    end = model.vocabulary.eos
    if pooling != "last" or not isinstance(model, LlamaModel) or end is None or tokens[-1] == end:
        return tokens
    return [*tokens, end] if model.header.metadata.get("tokenizer.add_eos_token") is True else tokens


def _states(backend: Backend, tokens: Sequence[int], cancel: threading.Event) -> Iterator[NDArray[np.float32]]:
    """Of all tokens, in passes as wide as the context returns rows; each is valid until the next."""
    assert isinstance(backend, HiddenStates)
    for part in _parts(tokens, backend.max_outputs):
        if cancel.is_set():
            raise Interrupted("stopped while reading")
        # A backend may run a single token as two and keep no state of it: it is given two, and one state is taken.
        given = [*part, *part] if len(part) == 1 and backend.max_outputs > 1 else part
        backend.forward(given, len(given))
        yield backend.hidden_states()[: len(part)]


def _parts(tokens: Sequence[int], width: int) -> Iterator[Sequence[int]]:
    """At most so many at once, and a single one only where there is but one, or no room for two."""
    start = 0
    while start < len(tokens):
        n_left = len(tokens) - start
        n = width - 1 if n_left == width + 1 and width > 2 else min(width, n_left)
        yield tokens[start : start + n]
        start += n


def _pooled(states: Iterator[NDArray[np.float32]], pooling: Pooling) -> NDArray[np.float64]:
    total = first = last = np.zeros(0)
    n = 0
    for rows in states:
        of_pass: NDArray[np.float64] = rows.astype(np.float64)
        first, last = (of_pass[0] if not n else first), of_pass[-1]
        total = of_pass.sum(axis=0) + (total if n else 0.0)
        n += len(rows)
    found: dict[Pooling, NDArray[np.float64]] = {"mean": total / n, "first": first, "last": last}
    return found[pooling]
