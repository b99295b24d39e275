"""A draft head that ships with its target (MTP, NextN), on llama.cpp: the target's states in, guesses out.

The head reads token p together with the target's state of token p - 1, and its logits are of token p + 1. Its context
is one of its own: over the layer behind the target's, with a cache of that layer; or, of an assistant in a file of its
own, over the target's very cache, in which it writes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

from edgellm.memory.context import HEAD_REACH, ContextSettings
from edgellm.runtime.backends.base import (
    ContextFull,
    EngineError,
    Interrupted,
    LoadError,
    Logits,
    StopSignal,
    checked,
)
from edgellm.runtime.backends.llama_context import ContextLimits, new_context
from edgellm.runtime.backends.llama_heads import rows_at
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import one_pass, reason


def calls() -> Any:
    """llama.cpp's calls that hand states from a target to its head; they are none of its stable interface.

    Raises:
        LoadError: this build of llama.cpp has them not.
    """
    try:
        from llama_cpp import llama_cpp_ext
    except (AttributeError, ImportError) as error:  # a library of another release
        raise LoadError(
            f"draft heads cannot be used: this llama.cpp lacks a call that they need ({error}); install the release "
            "of llama-cpp-python that edgellm names, or leave the head out (`--draft none`)"
        ) from error
    return llama_cpp_ext


class HiddenRows:
    """States of a target's tokens, those read last: what the head is given. Positions are tokens of the text."""

    def __init__(self, context: Any, n_embd: int, n_kept: int = HEAD_REACH) -> None:
        """From now on each pass of `context` hands out a row for each of its tokens."""
        self._context, self._calls, self.n_embd = context, calls(), n_embd
        self._rows = np.empty((n_kept, n_embd), np.float32)  # that of position p is at p % n_kept
        self.first = self.end = 0  # of the positions held
        self._calls.llama_set_embeddings_nextn(context, True, False)

    def take(self, position: int, n: int) -> None:
        """Keep the rows of the pass that was just made, over `n` tokens from `position` on.

        Raises:
            EngineError: it handed out none.
        """
        pointer = self._calls.llama_get_embeddings_nextn(self._context)
        if not pointer:
            raise EngineError("the engine handed out no states for the draft head")
        n_most, n_embd = self._rows.shape
        if not self.first <= position <= self.end:
            self.first = position
        self.end = position + n
        kept = np.arange(max(position, self.end - n_most), self.end)
        self._rows[kept % n_most] = rows_at(pointer, n, n_embd)[kept - position]
        self.first = max(self.first, self.end - n_most)

    def before(self, first: int, end: int) -> NDArray[np.float32]:
        """The rows of the tokens before those at positions `first` to `end`, (end - first, n_embd).

        Before the first token of a text there is none, and zeros stand for it.
        """
        positions = np.arange(first - 1, end - 1)
        rows: NDArray[np.float32] = self._rows[positions % len(self._rows)]
        if first == 0:
            rows[:1] = 0.0
        return rows

    @property
    def first_readable(self) -> int:
        """The first position whose token can be read: the row before it is held."""
        return self.first + 1 if self.first else 0

    def forget_oldest(self, n: int) -> None:
        """The text lost its first `n` tokens; what is held cannot be told from what was computed without them."""
        self.first = self.end = max(0, self.end - n)


class LlamaHead:
    """A draft head as a backend: one sequence, one row of logits a pass. See `Backend` for the contract.

    Raises:
        LoadError: the context's memory could not be had, or llama.cpp lacks the calls.
    """

    can_shift = False
    max_outputs = 1

    def __init__(
        self,
        model: LlamaModel,
        target: Any,
        rows: HiddenRows,
        settings: ContextSettings,
        *,
        stop_asked: StopSignal | None = None,
    ) -> None:
        """
        Args:
            model: the file that the head is in, loaded with it.
            target: the target's context, which an assistant reads the cache of.
            rows: the states of the target's tokens.
            settings: of the head's own context.
        """
        self.model = model
        self.settings, self.n_threads, self._name = settings, settings.n_threads, f"the draft head of {model.path.name}"
        self.rows, self._calls = rows, calls()
        self.n_vocab = model.vocabulary.n_tokens
        self.n_embd = int(api.llama_model_n_embd_out(model.handle))
        self._stop_asked: StopSignal = stop_asked or threading.Event()
        self.engine_s = 0.0
        self.tokens: list[int] = []
        self.start = 0  # position of the first of `tokens`
        self._guesses_at = 0  # position of all guesses of a head that shares the target's cache
        self._ctx: Any = new_context(model.handle, settings, 1, name=self._name, rolls_back=False, head_of=target)
        # Such a head reads the target's cache and has none: it is given one token, at whose position guesses stay.
        self.shares = bool(self._calls.llama_get_ctx_other(self._ctx))
        limits = ContextLimits.of(self._ctx)
        self.n_ctx, self._n_batch = settings.n_ctx, limits.n_batch
        self._memory = api.llama_get_memory(self._ctx)
        self._calls.llama_set_embeddings_nextn(self._ctx, True, self.shares)
        self._row = np.zeros(self.n_embd, np.float32)  # its own state of the last token
        self._batch = api.llama_batch_init(self._n_batch, self.n_embd, 1)
        self._ids = np.zeros(self._n_batch, np.int32)
        self._batch.token = np.ctypeslib.as_ctypes(self._ids)
        self._embeddings: NDArray[np.float32] = np.ctypeslib.as_array(self._batch.embd, (self._n_batch, self.n_embd))
        self._positions: NDArray[np.int32] = np.ctypeslib.as_array(self._batch.pos, (self._n_batch,))
        self._wanted: NDArray[np.int8] = np.ctypeslib.as_array(self._batch.logits, (self._n_batch,))
        for i in range(self._n_batch):
            self._batch.n_seq_id[i] = 1
            self._batch.seq_id[i][0] = 0

    def begin_at(self, position: int) -> None:
        """Hold nothing; the next token to be read is at `position`."""
        self.truncate(0)
        self.start = position

    def read(self, tokens: Sequence[int]) -> Logits:
        """Append settled tokens, each with the target's state before it; the logits behind the last, (n_vocab,).

        The states must be held: `rows.first_readable` is no later than the first, and `rows.end` than the last.

        Raises:
            ContextFull, EngineError, Interrupted, BadNumbers
        """
        first = self.start + len(self.tokens)
        rows = self.rows.before(first, first + len(tokens))
        self._guesses_at = first + len(tokens) - 1
        for at in range(0, len(tokens), self._n_batch):
            if self._stop_asked.is_set():
                raise Interrupted("stopped while reading")
            piece = tokens[at : at + self._n_batch]
            self._decode(piece, rows[at : at + len(piece)], wanted=at + len(piece) == len(tokens))
        return self._logits()

    def extend(self, token: int) -> Logits:
        """Append a token that is only guessed, with the head's own state before it; the logits behind it, (n_vocab,).

        Raises:
            ContextFull, EngineError, BadNumbers
        """
        self._decode([token], self._row[None], wanted=True)
        return self._logits()

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        """As a backend, for timing: with no states before the tokens. Shape (n_outputs, n_vocab)."""
        if not tokens:
            return np.empty((0, self.n_vocab), np.float32)
        if self.shares:  # a pass of it is of one token, whatever was read
            n_known = len(tokens) - min(n_outputs, 1)
            self.tokens += tokens[:n_known]
            tokens = tokens[n_known:]
        for at in range(0, len(tokens), self._n_batch):
            piece = tokens[at : at + self._n_batch]
            wanted = n_outputs > 0 and at + len(piece) == len(tokens)
            self._decode(piece, np.zeros((len(piece), self.n_embd), np.float32), wanted=wanted)
        if not n_outputs:
            return np.empty((0, self.n_vocab), np.float32)
        return rows_at(api.llama_get_logits(self._ctx), 1, self.n_vocab)

    def truncate(self, length: int) -> None:
        if length >= len(self.tokens):
            return
        if not self.shares:
            api.llama_memory_seq_rm(self._memory, 0, self.start + max(0, length), -1)
        del self.tokens[max(0, length) :]

    def forget_oldest(self, n: int) -> None:
        raise EngineError(f"{self._name} is not moved")

    def warm_up(self) -> None:
        """One pass, so that weights are paged in."""
        if not self.shares:
            self.forward([0], 1)
        self.truncate(0)
        self.engine_s = 0.0

    def close(self) -> None:
        if self._ctx is not None:
            self._batch.token = None  # numpy's, which the engine would free
            api.llama_batch_free(self._batch)
            self.model.free(self._ctx)
        self._ctx = None
        self.tokens.clear()

    def _logits(self) -> Logits:
        logits: Logits = checked(rows_at(api.llama_get_logits(self._ctx), 1, self.n_vocab), self._name)[0]
        return logits

    def _decode(self, tokens: Sequence[int], rows: NDArray[np.float32], *, wanted: bool) -> None:
        """One call; `wanted`: the logits behind the last token, and the head's own state of it."""
        if self._ctx is None:
            raise EngineError(f"{self._name} is closed")
        n, n_held = len(tokens), len(self.tokens)
        if n_held + n > self.n_ctx:
            raise ContextFull(f"the context of {self._name}, {self.n_ctx:,} tokens, is full")
        position = self._guesses_at if self.shares else self.start + n_held
        self._ids[:n], self._embeddings[:n] = tokens, rows
        self._positions[:n] = range(position, position + n)
        self._wanted[:n] = 0
        self._wanted[n - 1] = wanted
        self._batch.n_tokens = n
        with one_pass:
            started = time.perf_counter()
            status = self.model.run(self._ctx, self._batch)
        self.engine_s += time.perf_counter() - started
        if status:
            if not self.shares:
                api.llama_memory_seq_rm(self._memory, 0, position, -1)
            raise EngineError(f"{self._name}: the engine failed with status {status}: {reason()}")
        self.tokens.extend(tokens)
        if wanted:
            pointer = self._calls.llama_get_embeddings_nextn(self._ctx)
            if not pointer:
                raise EngineError(f"{self._name} handed out no state to go on from")
            self._row = rows_at(pointer, n, self.n_embd)[n - 1].copy()
