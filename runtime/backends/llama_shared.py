"""Many texts in one context of llama.cpp, in passes of any mixture: one's token, another's draft, a slice of a third.

The cells of all texts come from one pool, and a beginning that two of them share is held once. On our kernels a row's
bits are those that its text would have given alone: products look at one row each, and attention goes through the cells
of a text in its own order, wherever in the pool they are (`kernels/src/sequences.h`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.base import CannotTruncate, ContextFull, EngineError, LoadError, Logits
from edgellm.runtime.backends.llama_context import ContextLimits, new_context
from edgellm.runtime.backends.llama_cpp import LlamaModel
from edgellm.runtime.backends.llama_heads import WholeHead
from edgellm.runtime.backends.llama_process import kernels, reason
from edgellm.runtime.backends.llama_sequences import refuse_sequences
from edgellm.runtime.backends.thread_choice import ThreadChoice
from edgellm.runtime.kernels.load import compiled

_one_pass = threading.Lock()  # the kernels are told of one pass at a time
_WIDEST_CHOICE = 32  # tokens; wider passes take all threads


@dataclass(frozen=True, slots=True)
class Part:
    """What a pass appends to one text."""

    text: int
    tokens: Sequence[int]
    n_outputs: int  # rows of logits, of the last tokens


class SharedContext:
    """`n_texts` texts over one set of weights. One thread at a time may call it.

    Raises:
        LoadError: the context's memory could not be had, or the model's memory cannot be kept for several texts.
    """

    def __init__(self, model: LlamaModel, settings: ContextSettings, n_texts: int) -> None:
        """`settings.n_ctx` tokens are each text's own; `settings.n_outputs` rows of logits a pass returns at most."""
        refuse_sequences(model)
        if not 1 <= n_texts <= (most := int(api.llama_max_parallel_sequences())):
            raise LoadError(f"{n_texts} conversations at once were asked for; the engine keeps between 1 and {most}")
        self.model, self.settings, self.n_texts = model, settings, n_texts
        self.n_vocab = model.vocabulary.n_tokens
        self.n_threads = settings.n_threads
        self.n_outputs = max(settings.n_outputs, n_texts)
        self._threads = ThreadChoice(settings.n_threads)
        name = model.path.name
        self._ctx: Any = new_context(
            model.handle, settings, self.n_outputs, name=name, rolls_back=False, n_sequences=n_texts, unified=True
        )
        model.adapt(self._ctx)
        self._memory = api.llama_get_memory(self._ctx)
        if not self._memory:
            api.llama_free(self._ctx)
            raise LoadError(f"{name} ({model.architecture}) keeps no cache of what it reads: take a decoder-only model")
        limits = ContextLimits.of(self._ctx)
        self.n_batch = limits.n_batch  # tokens of a pass, at most
        self.n_ctx = min(settings.n_ctx, int(api.llama_n_ctx(self._ctx)))
        self.held: list[list[int]] = [[] for _ in range(n_texts)]  # tokens of each text
        self._head = WholeHead(name, self.n_vocab)
        self._batch = self._head.new_batch(self.n_batch)
        self._texts: NDArray[np.int32] = np.zeros(self.n_batch, np.int32)
        self._positions: NDArray[np.int32] = np.ctypeslib.as_array(self._batch.pos, (self.n_batch,))
        self._wanted: NDArray[np.int8] = np.ctypeslib.as_array(self._batch.logits, (self.n_batch,))
        for i in range(self.n_batch):
            self._batch.n_seq_id[i] = 1
        self._library = compiled() if kernels().active else None
        self._cells = self._library.edgellm_sequences_new() if self._library is not None else None

    def forward(self, parts: Sequence[Part]) -> tuple[list[Logits], float]:
        """One pass: the logits of each part's last tokens, (n_outputs, n_vocab), and the seconds it took.

        Rows are views into the engine's own buffer, valid until the next pass. Texts are told apart, each once.

        Raises:
            ContextFull: no room for some of them; nothing was read.
            EngineError: more than a pass may hold, or the engine failed; nothing of the pass is kept.
            BadNumbers: logits that are none.
        """
        if self._ctx is None:
            raise EngineError(f"{self.model.path.name} is closed")
        n = self._fill(parts)
        self._batch.n_tokens = n
        n_rows = sum(part.n_outputs for part in parts)
        # On stock kernels bits depend on how many threads there are.
        chooses = bool(n_rows) and n <= _WIDEST_CHOICE and self._library is not None
        n_threads = self._threads.next(n) if chooses else self.n_threads
        api.llama_set_n_threads(self._ctx, n_threads, n_threads)
        started = time.perf_counter()
        status = self._decode(n)
        took_s = time.perf_counter() - started
        if chooses:
            self._threads.took(n, n_threads, took_s)
        if status:
            self._undo(parts)
            if status == 1:
                raise ContextFull(f"no room for {n} more tokens in the context's pool of cells: raise --ctx")
            raise EngineError(f"{self.model.path.name}: the engine failed with status {status}: {reason()}")
        for part in parts:
            self.held[part.text].extend(part.tokens)
        return self._rows(parts, n_rows), took_s

    def truncate(self, text: int, length: int) -> None:
        """Forget all of a text but its first `length` tokens.

        Raises:
            CannotTruncate: layers with a sliding window have let go of what they would look at; nothing is changed.
        """
        held = self.held[text]
        if length >= len(held):
            return
        if length > 0 and self._lost(text, length):
            raise CannotTruncate(f"{self.model.path.name} has let go of tokens before {length} that it needs again")
        api.llama_memory_seq_rm(self._memory, text, max(0, length), -1)
        del held[max(0, length) :]

    def copy(self, source: int, text: int, length: int) -> bool:
        """Let a text begin with the first `length` tokens of another: nothing is read, and no cell is taken.

        False where the other's window has moved on, and nothing is changed.
        """
        if self._lost(source, length):
            return False
        api.llama_memory_seq_rm(self._memory, text, -1, -1)
        api.llama_memory_seq_cp(self._memory, source, text, 0, length)
        if self._library is not None:
            self._library.edgellm_sequences_copy(self._cells, source, text, length)
        self.held[text] = self.held[source][:length]
        return True

    def close(self) -> None:
        if self._ctx is not None:
            api.llama_batch_free(self._batch)
            api.llama_free(self._ctx)
            if self._library is not None:
                self._library.edgellm_sequences_free(self._cells)
        self._ctx = None
        self.held = [[] for _ in self.held]

    def _fill(self, parts: Sequence[Part]) -> int:
        """Write the pass into the engine's batch; returns its tokens."""
        n = sum(len(part.tokens) for part in parts)
        n_rows = sum(part.n_outputs for part in parts)
        if not 0 < n <= self.n_batch or n_rows > self.n_outputs:
            raise EngineError(
                f"{n} tokens and {n_rows} rows of logits in a pass that holds {self.n_batch} and {self.n_outputs}"
            )
        self._head.put(self._ctx, [token for part in parts for token in part.tokens], n_rows)
        self._wanted[:n] = 0
        at = 0
        for part in parts:
            end, n_held = at + len(part.tokens), len(self.held[part.text])
            if n_held + len(part.tokens) > self.n_ctx:
                raise ContextFull(f"the context of {self.n_ctx:,} tokens is full: raise --ctx")
            self._texts[at:end] = part.text
            self._positions[at:end] = range(n_held, n_held + len(part.tokens))
            self._wanted[end - part.n_outputs : end] = 1
            for i in range(at, end):
                self._batch.seq_id[i][0] = part.text
            at = end
        return n

    def _decode(self, n: int) -> int:
        if self._library is None:
            return int(api.llama_decode(self._ctx, self._batch))
        positions = np.ascontiguousarray(self._positions[:n])
        with _one_pass:
            self._library.edgellm_sequences_tell(self._cells, n, self._texts.ctypes.data, positions.ctypes.data)
            try:
                return int(api.llama_decode(self._ctx, self._batch))
            finally:
                self._library.edgellm_sequences_tell(None, 0, None, None)

    def _undo(self, parts: Sequence[Part]) -> None:
        """A failed call may leave part of its tokens."""
        for part in parts:
            api.llama_memory_seq_rm(self._memory, part.text, len(self.held[part.text]), -1)

    def _rows(self, parts: Sequence[Part], n_rows: int) -> list[Logits]:
        rows = self._head.logits(self._ctx, n_rows) if n_rows else np.empty((0, self.n_vocab), np.float32)
        found, at = [], 0
        for part in parts:
            found.append(rows[at : at + part.n_outputs])
            at += part.n_outputs
        return found

    def _lost(self, text: int, length: int) -> bool:
        """Whether layers with a sliding window have let go of cells that token `length` would look at."""
        n_window = self.model.n_window
        return n_window > 0 and api.llama_memory_seq_pos_min(self._memory, text) > max(0, length - n_window)
