"""Several texts in one context of llama.cpp, in passes of any mixture: a token of one, a draft, a slice of a prompt.

On our kernels all cells come from one pool, a beginning that two sequences share is held once, and a row has the bits
that its text alone would have given: products look at one row each, and attention goes through the cells of a sequence
in the order of its text, wherever in the pool they are (`kernels/src/sequences.h`). On the engine's own kernels each
sequence has a cache of its own, since its attention would go over the cells of all; a pass of unequal parts is then cut
by the engine, and each part reads all weights again.

On our kernels further sequences keep beginnings that no conversation uses now. They share cells with those that do,
and those of their own go as soon as a pass finds none: what a sequence may hold is never less for them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.base import CannotTruncate, ContextFull, EngineError, LoadError, Logits, OneTextOnly
from edgellm.runtime.backends.llama_context import ContextLimits, new_context
from edgellm.runtime.backends.llama_heads import WholeHead, rows_at
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import one_pass, reason
from edgellm.runtime.backends.parked import NOBODY, Parked, n_common
from edgellm.runtime.backends.thread_choice import WIDEST, ThreadChoice
from edgellm.runtime.kernels.load import compiled


@dataclass(frozen=True, slots=True)
class Part:
    """What a pass appends to one sequence."""

    sequence: int
    tokens: Sequence[int]
    n_outputs: int  # rows of logits, of the last tokens


MIN_PARKED = 64  # tokens that are worth keeping: as many as the longest draft that may be rejected
_MIN_OWN = 16  # tokens in which two beginnings differ, for both to be kept


class LlamaSequences:
    """`n_sequences` texts over one set of weights. One thread at a time may call it.

    Raises:
        LoadError: the context's memory could not be had, or the model's memory cannot be kept for several sequences.
    """

    def __init__(self, model: LlamaModel, settings: ContextSettings, n_sequences: int, *, n_parked: int = 0) -> None:
        """
        Args:
            settings: `n_ctx` tokens are each text's own; `n_outputs` rows of logits a pass returns at most.
            n_parked: beginnings that may be kept beside them, where that is possible; they take no memory.
        """
        refuse_sequences(model)
        most = int(api.llama_max_parallel_sequences())
        if not 1 <= n_sequences <= most:
            raise LoadError(f"{n_sequences} sequences were asked for; the engine keeps between 1 and {most}")
        self.model, self.settings, self.n_sequences = model, settings, n_sequences
        self.n_vocab = model.vocabulary.n_tokens
        self.n_embd = int(api.llama_model_n_embd(model.handle))
        self.n_threads = settings.n_threads
        self.n_outputs = max(settings.n_outputs, n_sequences)
        self._threads = ThreadChoice(settings.n_threads)
        self._library = compiled() if model.same_bits else None
        pooled, name = self._library is not None, model.path.name
        self._ctx: Any = new_context(
            model.handle, settings, self.n_outputs, name=name, rolls_back=False, n_sequences=n_sequences, pooled=pooled
        )
        model.adapt(self._ctx)
        self._memory = api.llama_get_memory(self._ctx)
        if not self._memory:
            api.llama_free(self._ctx)
            raise LoadError(f"{name} ({model.architecture}) keeps no cache of what it reads: take a decoder-only model")
        limits = ContextLimits.of(self._ctx)
        self.n_batch = limits.n_batch  # tokens of a pass, at most
        self.n_ctx = min(settings.n_ctx, int(api.llama_n_ctx(self._ctx)))
        # A window's cells are as few as texts need, and are let go of only where one sequence alone has them.
        self.can_share = pooled and not model.n_window
        # One pool has as many ids as the engine knows, whatever the context was made for.
        spare = range(n_sequences, max(n_sequences, min(n_sequences + n_parked, most - 1) if self.can_share else 0))
        self.scratch = spare.stop  # an id that is always empty, to hand parts of others over with
        self._parked = Parked(spare)
        self.held: list[list[int]] = [[] for _ in range(spare.stop)]  # tokens of each sequence, then of parked ones
        self._head = WholeHead(name, self.n_vocab)
        self._batch = self._head.new_batch(self.n_batch)
        self._ids: NDArray[np.int32] = np.zeros(self.n_batch, np.int32)
        self._positions: NDArray[np.int32] = np.ctypeslib.as_array(self._batch.pos, (self.n_batch,))
        self._wanted: NDArray[np.int8] = np.ctypeslib.as_array(self._batch.logits, (self.n_batch,))
        for i in range(self.n_batch):
            self._batch.n_seq_id[i] = 1
        self._cells = self._library.edgellm_sequences_new() if self._library is not None else None

    def read(self, sequence: int, tokens: Sequence[int]) -> None:
        """Append any number of tokens to a sequence. Raises as `forward`."""
        for start in range(0, len(tokens), self.n_batch):
            self.forward([Part(sequence, tokens[start : start + self.n_batch], 0)])

    def forward(self, parts: Sequence[Part], *, wants_states: bool = False) -> tuple[list[Logits], float]:
        """One pass: the logits of each part's last tokens, (n_outputs, n_vocab), and the seconds it took.

        Rows are views into the engine's own buffer, valid until the next pass. Texts are told apart, each once.

        Args:
            wants_states: keep what the head is given, for `hidden_states`; logits must be wanted of all tokens.

        Raises:
            ContextFull: no room for some of them; nothing was read.
            EngineError: more than a pass may hold, or the engine failed; nothing of the pass is kept.
            BadNumbers: logits that are none.
        """
        if self._ctx is None:
            raise EngineError(f"{self.model.path.name} is closed")
        if wants_states != self._head.wants_states:
            self._head.wants_states = wants_states
            api.llama_set_embeddings(self._ctx, wants_states)
        n = self._fill(parts)
        self._batch.n_tokens = n
        n_rows = sum(part.n_outputs for part in parts)
        # On stock kernels bits depend on how many threads there are.
        chooses = bool(n_rows) and n <= WIDEST and self._library is not None
        n_threads = self._threads.next(n) if chooses else self.n_threads
        api.llama_set_n_threads(self._ctx, n_threads, n_threads)
        started = time.perf_counter()
        status = self._decode(n)
        while status == 1 and self.let_one_go():
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
            self.held[part.sequence].extend(part.tokens)
        return self._rows(parts, n_rows), took_s

    def hidden_states(self, n: int) -> NDArray[np.float32]:
        """Of the `n` tokens of the last pass, which wanted them, (n, n_embd); valid until the next."""
        return rows_at(api.llama_get_embeddings(self._ctx), n, self.n_embd)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all of a sequence but its first `length` tokens.

        Raises:
            CannotTruncate: layers with a sliding window have let go of what they would look at; nothing is changed.
        """
        held = self.held[sequence]
        if length >= len(held):
            return
        if length > 0 and self._lost(sequence, length):
            raise CannotTruncate(f"{self.model.path.name} has let go of tokens before {length} that it needs again")
        api.llama_memory_seq_rm(self._memory, sequence, max(0, length), -1)
        del held[max(0, length) :]

    def copy(self, source: int, sequence: int, length: int) -> bool:
        """Let a sequence begin with the first `length` tokens of another: nothing is read, and no cell is taken.

        False where caches are apart, or a window slides; then nothing is changed.
        """
        if not self.can_share:
            return False
        api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        api.llama_memory_seq_cp(self._memory, source, sequence, 0, length)
        assert self._library is not None
        self._library.edgellm_sequences_copy(self._cells, source, sequence, length)
        self.held[sequence] = self.held[source][:length]
        self._parked.use(source)
        return True

    def park(self, sequence: int, *, keep: int = NOBODY) -> None:
        """Keep what a sequence holds for texts that begin like it, in place of what is part of it; no cell is taken.

        `keep`: another sequence that must stay.
        """
        tokens = self.held[sequence]
        if self._parked.n < 2 or len(tokens) <= MIN_PARKED:
            return
        for other, held in enumerate(self.held):
            if other == sequence:
                continue
            n_alike = n_common(held, tokens)
            if n_alike > len(tokens) - _MIN_OWN:
                self._parked.use(other)
                return
            if other in self._parked and other != keep and n_alike > len(held) - _MIN_OWN:
                self._let_go(other)
        self.copy(sequence, self._parked.take(keep), len(tokens))

    def let_one_go(self) -> bool:
        """Forget the parked beginning that was used least recently; False where there is none."""
        oldest = next(iter(self._parked), NOBODY)
        if oldest != NOBODY:
            self._let_go(oldest)
        return oldest != NOBODY

    def _let_go(self, sequence: int) -> None:
        self.drop(sequence, 0)
        self._parked.let_go(sequence)

    def drop(self, sequence: int, length: int) -> None:
        """Forget all of a sequence but its first tokens, where nothing is read behind them."""
        api.llama_memory_seq_rm(self._memory, sequence, length, -1)
        del self.held[sequence][length:]

    def forget(self) -> None:
        """Begin anew: nothing is held or parked."""
        for sequence in range(self.n_sequences):
            self.drop(sequence, 0)
        while self.let_one_go():
            pass

    def place_restored(self, sequence: int, first: int, by_cell: Sequence[int], token: int) -> bool:
        """Read the token behind positions that came from elsewhere: what it sees shows where they are.

        `by_cell`: these positions, from `first` on, in the order of their cells. False where that is not seen.
        Raises as `forward`.
        """
        assert self._library is not None
        order = np.asarray(by_cell, np.int32)
        self._library.edgellm_sequences_restore(self._cells, sequence, first, order.size, order.ctypes.data)
        try:
            self.forward([Part(sequence, [token], 0)])
        finally:
            found = self._library.edgellm_sequences_end_restore(self._cells)
        return bool(found)

    @property
    def handle(self) -> Any:
        """The engine's context."""
        return self._ctx

    @property
    def memory(self) -> Any:
        """The engine's cells."""
        return self._memory

    def close(self) -> None:
        if self._ctx is not None:
            api.llama_batch_free(self._batch)
            self.model.free(self._ctx)
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
            end, n_held = at + len(part.tokens), len(self.held[part.sequence])
            if n_held + len(part.tokens) > self.n_ctx:
                raise ContextFull(f"the context of {self.n_ctx:,} tokens is full: raise --ctx")
            self._ids[at:end] = part.sequence
            self._positions[at:end] = range(n_held, n_held + len(part.tokens))
            self._wanted[end - part.n_outputs : end] = 1
            for i in range(at, end):
                self._batch.seq_id[i][0] = part.sequence
            at = end
        return n

    def _decode(self, n: int) -> int:
        if self._library is None:
            with one_pass:
                return self.model.run(self._ctx, self._batch)
        positions = np.ascontiguousarray(self._positions[:n])
        with one_pass:
            self._library.edgellm_sequences_tell(self._cells, n, self._ids.ctypes.data, positions.ctypes.data)
            try:
                return self.model.run(self._ctx, self._batch)
            finally:
                self._library.edgellm_sequences_tell(None, 0, None, None)

    def _undo(self, parts: Sequence[Part]) -> None:
        """A failed call may leave part of its tokens."""
        for part in parts:
            api.llama_memory_seq_rm(self._memory, part.sequence, len(self.held[part.sequence]), -1)

    def _rows(self, parts: Sequence[Part], n_rows: int) -> list[Logits]:
        rows = self._head.logits(self._ctx, n_rows) if n_rows else np.empty((0, self.n_vocab), np.float32)
        found, at = [], 0
        for part in parts:
            found.append(rows[at : at + part.n_outputs])
            at += part.n_outputs
        return found

    def _lost(self, sequence: int, length: int) -> bool:
        """Whether layers with a sliding window have let go of cells that token `length` would look at."""
        n_window = self.model.n_window
        return n_window > 0 and api.llama_memory_seq_pos_min(self._memory, sequence) > max(0, length - n_window)


def refuse_sequences(model: LlamaModel) -> None:
    """Raises OneTextOnly: what the model remembers cannot be kept for several texts side by side."""
    name = model.path.name
    if model.full_vocabulary is not None:
        raise OneTextOnly(
            f"{name} writes only a part of its vocabulary, and its head serves one text at a time: "
            "take the model that it was trimmed from"
        )
    if model.is_recurrent or model.is_hybrid:
        raise OneTextOnly(
            f"{name} ({model.architecture}) keeps recurrent state, and cannot go on with several texts at once: "
            "take a target whose layers all keep keys and values"
        )
