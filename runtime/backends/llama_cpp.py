"""One text on llama.cpp."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

from edgellm.memory.context import ContextSettings
from edgellm.memory.draft_heads import ASSISTANTS, serves
from edgellm.runtime.backends.base import (
    CannotTruncate,
    ContextFull,
    EngineError,
    Interrupted,
    LayersLost,
    LoadError,
    Logits,
    StopSignal,
)
from edgellm.runtime.backends.llama_context import ContextLimits, interruptible, new_context
from edgellm.runtime.backends.llama_heads import Head, TrimmedHead, WholeHead, rows_at
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_nextn import HiddenRows, LlamaHead
from edgellm.runtime.backends.llama_process import one_pass, reason
from edgellm.runtime.backends.llama_states import SavedStates
from edgellm.runtime.backends.thread_choice import WIDEST, ThreadChoice
from edgellm.runtime.kernels.load import compiled

MAX_JOINED = 24  # tokens that are read in the pass of those whose logits are wanted
MAX_AGAIN = 8  # likewise, of those that a state has to read again; more are worth a pass, behind which it is saved
MIN_TURN = 32  # tokens read at once, behind which later texts may well go on


class LlamaBackend:
    """One sequence on llama.cpp. See `Backend` for the contract.

    Raises:
        LoadError: the context's memory could not be had.
    """

    def __init__(
        self,
        model: LlamaModel,
        settings: ContextSettings,
        *,
        pad_single: bool = False,
        stop_asked: StopSignal | None = None,
    ) -> None:
        """
        Args:
            settings: every allocation follows from these numbers.
            pad_single: run single tokens as two, which agree in every bit with wider passes on more kernels.
            stop_asked: once set, reading text ends with `Interrupted`.
        """
        self.model, self.settings = model, settings
        self.n_vocab = model.vocabulary.n_tokens
        self.n_embd = int(api.llama_model_n_embd(model.handle))
        # Where every layer lies elsewhere, a pass shares neither the kernels nor the cores: looking up embeddings is
        # less work than waking threads for it.
        self.n_threads = settings.n_threads if model.n_layers_here else 1
        self._threads = ThreadChoice(self.n_threads)
        self._cores = one_pass if model.n_layers_here else contextlib.nullcontext()
        self._rows: HiddenRows | None = None  # for a draft head
        self._n_states = 0  # rows of the last pass that hidden states are kept of
        self.engine_s = 0.0
        self.tokens: list[int] = []
        self._stop_asked: StopSignal = stop_asked or threading.Event()
        self._abort = api.ggml_abort_callback(lambda _: self._stop_asked.is_set())
        n_outputs = max(settings.n_outputs, 2 if pad_single else 1)
        self._ctx: Any = new_context(
            model.handle, settings, n_outputs, name=model.path.name, rolls_back=model.is_hybrid
        )
        model.adapt(self._ctx)
        self._memory = api.llama_get_memory(self._ctx)
        if not self._memory:
            api.llama_free(self._ctx)
            raise LoadError(
                f"{model.path.name} ({model.architecture}) keeps no cache of what it reads: it is made for embeddings "
                "or for filling in, and neither chats nor drafts here; take a decoder-only model"
            )
        limits = ContextLimits.of(self._ctx)
        # The engine rounds contexts up to whole blocks of cells; what a model was not trained for is not used.
        self.n_ctx = min(limits.n_ctx, max(settings.n_ctx, model.n_ctx_train))
        self._n_batch = limits.n_batch
        stateful = model.is_recurrent or model.is_hybrid
        # Where the engine keeps no snapshots, rejected tokens are taken back with a copy of the state.
        self._saves_rounds = stateful and not limits.n_rs_seq
        self.max_outputs = min(n_outputs, limits.n_batch)
        self._states: SavedStates | None = None
        self.keeps_turns = False
        if stateful:
            # Cells of a sliding window are restored in another order than they were written in.
            n_turns = 0 if model.n_window else max(0, settings.n_saved_states - self._saves_rounds)
            self._states = SavedStates(self._ctx, model.path.name, n_turns)
            self.keeps_turns = n_turns > 0
        self._n_again = 0  # of `tokens`, the last, which the state has not seen: the next pass reads them again
        self._shared_at = 0  # where another text parted, and no copy of the state was at hand
        self.can_shift = not (stateful or model.n_window) and bool(api.llama_memory_can_shift(self._memory))
        full = model.full_vocabulary
        # A window's cells are used again in an order that rejected drafts change. Told what is where, our kernels go
        # through them in the order of the text; what a state is restored from takes cells that nobody knows.
        ordered = model.same_bits and model.n_window and not stateful
        self._library = compiled() if ordered else None
        self._cells = self._library.edgellm_sequences_new() if self._library is not None else None
        self.pads_single = pad_single and full is None and self.max_outputs > 1 and not self._saves_rounds
        name = model.path.name
        self._head: Head = (
            TrimmedHead(name, full, self.max_outputs) if full is not None else WholeHead(name, self.n_vocab)
        )
        self._batch = self._head.new_batch(self._n_batch)
        self._positions: NDArray[np.int32] = np.ctypeslib.as_array(self._batch.pos, (self._n_batch,))
        self._wanted: NDArray[np.int8] = np.ctypeslib.as_array(self._batch.logits, (self._n_batch,))
        self._ids: NDArray[np.int32] = np.zeros(self._n_batch, np.int32)
        for i in range(self._n_batch):
            self._batch.n_seq_id[i] = 1
            self._batch.seq_id[i][0] = 0

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        if self._ctx is None:
            raise EngineError(f"{self.model.path.name} is closed")
        if self._n_again and tokens:
            tokens = [*self._owed(), *tokens]
        if n_outputs > self.max_outputs or n_outputs > len(tokens):
            raise EngineError(
                f"{n_outputs} rows of logits asked for, {min(self.max_outputs, len(tokens))} are to be had"
            )
        n_body = len(tokens) - n_outputs
        joins = not self.pads_single and self._head.joins
        n_joined = MAX_AGAIN if self._saves_rounds and n_outputs > 1 else MAX_JOINED
        if n_outputs and joins and n_body <= n_joined and len(tokens) <= self._n_batch:
            n_body = 0  # what a drafter missed of the last round is read in the pass that drafts
        if n_body:
            self._read_on(tokens[:n_body])
        if not n_outputs:
            return np.empty((0, self.n_vocab), np.float32)
        if n_outputs == 1 and self.pads_single:
            # Both rows are wanted: where one is, the last layer's products are of one token.
            self._decode([tokens[-1], tokens[-1]], 2)
            self.truncate(len(self.tokens) - 1)
            self._n_states = min(self._n_states, 1)
            return self._head.logits(self._ctx, 2)[:1]
        else:
            if self._saves_rounds and n_outputs > 1 and self.tokens:
                self._saved.save_round(len(self.tokens))
            self._decode(tokens[n_body:], n_outputs)
            if self._saves_rounds and self.max_outputs == 1 and len(tokens) > 1:  # a drafter's, behind which it drafts
                self._saved.save_round(len(self.tokens))
        return self._head.logits(self._ctx, n_outputs)

    def want_hidden_states(self, wanted: bool = True) -> bool:
        before, self._head.wants_states = self._head.wants_states, wanted
        api.llama_set_embeddings(self._ctx, False)  # each pass that keeps them says so
        return before

    def hidden_states(self) -> NDArray[np.float32]:
        if not (self._n_states and self._head.wants_states):
            raise EngineError(f"{self.model.path.name}: the last pass kept no hidden states")
        return rows_at(api.llama_get_embeddings(self._ctx), self._n_states, self.n_embd)

    def with_head(self, model: LlamaModel, settings: ContextSettings) -> LlamaHead:
        """A draft head for this text, which is given the states of the tokens that are read from now on.

        Args:
            model: this model, loaded with its head, or an assistant's.
            settings: of the head's context.

        Raises:
            LoadError: its memory could not be had, it is for another model, or llama.cpp lacks the calls.
        """
        if model.architecture in ASSISTANTS:
            if not serves(model.header, self.model.header):
                raise LoadError(f"{model.path.name} is the draft head of another model than {self.model.path.name}")
            self.truncate(0)  # the engine forgets which cells hold what when another context shares them
        if self._rows is None:
            self._rows = HiddenRows(self._ctx, int(api.llama_model_n_embd_out(self.model.handle)))
        head = LlamaHead(model, self._ctx, self._rows, settings, stop_asked=self._stop_asked)
        if head.n_embd != self._rows.n_embd or head.n_vocab != self.n_vocab:
            head.close()
            raise LoadError(f"{model.path.name} is the draft head of another model than {self.model.path.name}")
        return head

    @property
    def _saved(self) -> SavedStates:
        assert self._states is not None
        return self._states

    def _owed(self) -> list[int]:
        """Take out what the state has to read again."""
        n_true, self._n_again = len(self.tokens) - self._n_again, 0
        owed = self.tokens[n_true:]
        del self.tokens[n_true:]
        return owed

    def _read_on(self, tokens: Sequence[int]) -> None:
        """Append a text, and keep the state where others may go on."""
        n_first = self._shared_at - len(self.tokens)
        if self._states is not None and 0 < n_first < len(tokens):
            self._read_on(tokens[:n_first])
            tokens = tokens[n_first:]
        self._read(tokens)
        if self._states is not None and len(tokens) >= MIN_TURN:
            self._states.save_turn(len(self.tokens))

    def _read(self, tokens: Sequence[int]) -> None:
        """Append any number of tokens; this may take long, and may be interrupted."""
        with interruptible(self._ctx, self._abort):
            for start in range(0, len(tokens), self._n_batch):
                if self._stop_asked.is_set():
                    raise Interrupted("stopped while reading")
                self._decode(tokens[start : start + self._n_batch], 0)

    def encode(self, batch: Any) -> int:
        """The engine's status of letting its encoder read a batch."""
        api.llama_set_n_threads(self._ctx, self.n_threads, self.n_threads)
        with interruptible(self._ctx, self._abort), self._cores:
            return int(api.llama_encode(self._ctx, batch))

    def _decode(self, tokens: Sequence[int], n_rows: int) -> None:
        """One engine call over at most n_batch tokens; logits of the last `n_rows`."""
        n, n_held = len(tokens), len(self.tokens)
        if not n:
            return
        if n_held + n > self.n_ctx:
            raise ContextFull(f"the context of {self.n_ctx:,} tokens is full: raise --ctx or /clear the conversation")
        self._head.put(self._ctx, tokens, n_rows)
        self._positions[:n] = range(n_held, n_held + n)
        self._wanted[:n] = 0
        self._wanted[n - n_rows : n] = 1
        self._batch.n_tokens = n
        self._n_states = n_rows if n_rows == n else 0
        # Prompts take all. On stock kernels bits depend on how many threads there are.
        chooses = bool(n_rows) and n <= WIDEST and self.model.same_bits
        n_threads = self._threads.next(n) if chooses else self.n_threads
        api.llama_set_n_threads(self._ctx, n_threads, n_threads)  # the second is of passes of several tokens
        status, took_s = self._pass(n)
        self.engine_s += took_s
        if chooses:
            self._threads.took(n, n_threads, took_s)
        if lost := self.model.lost_layers:
            raise LayersLost(lost)
        if status == 0:
            self.tokens.extend(tokens)
            if self._rows is not None:
                self._rows.take(n_held, n)
        elif status == 1:
            raise ContextFull(f"no room for {n} more tokens in a context of {self.n_ctx:,}: raise --ctx")
        else:
            self._undo(n_held)
            if status == 2:
                raise Interrupted("stopped while reading")
            raise EngineError(f"{self.model.path.name}: the engine failed with status {status}: {reason()}")

    def _pass(self, n: int) -> tuple[int, float]:
        """The engine's status and the seconds that it took."""
        positions, told = np.ascontiguousarray(self._positions[:n]), self._library
        with self._cores:
            if told is not None:
                told.edgellm_sequences_tell(self._cells, n, self._ids.ctypes.data, positions.ctypes.data)
            started = time.perf_counter()
            try:
                status = self.model.run(self._ctx, self._batch)
            finally:
                took_s = time.perf_counter() - started
                if told is not None:
                    told.edgellm_sequences_tell(None, 0, None, None)
        return status, took_s

    def truncate(self, length: int) -> None:
        if length >= len(self.tokens):
            return
        n_true = len(self.tokens) - self._n_again
        if self._states is not None:
            self._states.forget_after(length)
        if length <= 0:
            api.llama_memory_clear(self._memory, False)
        elif length > n_true:
            self._n_again = length - n_true
            del self.tokens[length:]
            return
        elif self._window_lost(length):
            raise CannotTruncate(
                f"{self.model.path.name} has let go of tokens before {length} that its sliding window needs again: "
                "it must read the text once more"
            )
        elif not api.llama_memory_seq_rm(self._memory, 0, length, -1):
            self._restore(length)
            return
        self._n_again = 0
        del self.tokens[max(0, length) :]

    def _restore(self, length: int) -> None:
        """Go back to a copy of the state before `length`: few tokens behind it are read again by the next pass."""
        latest = self._states.latest(length) if self._states is not None else None
        if length - (latest or 0) >= MIN_TURN:
            self._shared_at = length  # who comes next may part here too
        if latest is None and length > MAX_JOINED:
            raise CannotTruncate(
                f"{self.model.path.name} ({self.model.architecture}) keeps recurrent state that cannot be cut back "
                f"from {len(self.tokens)} to {length} tokens: it must read the text once more"
            )
        position = self._go_back(length)
        self._n_again = length - position if length - position <= MAX_JOINED else 0
        del self.tokens[position + self._n_again :]

    def _undo(self, n_held: int) -> None:
        """Take out what a failed call may have left of its tokens."""
        if api.llama_memory_seq_rm(self._memory, 0, n_held, -1):
            return
        del self.tokens[self._go_back(n_held) :]

    def _go_back(self, length: int) -> int:
        """To the latest copy of the state before `length`, or to the beginning; returns the tokens until there."""
        position = self._states.restore(length) if self._states is not None else None
        if position is None:
            api.llama_memory_clear(self._memory, False)
            return 0
        api.llama_memory_seq_rm(self._memory, 0, position, -1)
        return position

    def forget_oldest(self, n: int) -> None:
        api.llama_memory_seq_rm(self._memory, 0, 0, n)
        api.llama_memory_seq_add(self._memory, 0, n, -1, -n)  # keys are turned to their new positions by the next pass
        del self.tokens[:n]
        if self._rows is not None:
            self._rows.forget_oldest(n)

    def _window_lost(self, length: int) -> bool:
        """Whether layers with a sliding window have reused cells that token `length` would look at."""
        n_window = self.model.n_window
        if n_window and self.model.is_hybrid:  # its smallest position is the state's; n_batch cells are spare
            return len(self.tokens) - length > self._n_batch
        return n_window > 0 and api.llama_memory_seq_pos_min(self._memory, 0) > max(0, length - n_window)

    def warm_up(self) -> None:
        """One pass of the widest verification: weights are paged in and no row of logits is allocated later."""
        vocabulary = self.model.vocabulary
        token = vocabulary.bos if vocabulary.bos is not None else 0
        self.forward([token] * min(self.max_outputs, self.n_ctx), n_outputs=min(self.max_outputs, self.n_ctx))
        self.truncate(0)
        self.engine_s = 0.0

    def close(self) -> None:
        if self._ctx is not None:
            api.llama_batch_free(self._batch)
            self.model.free(self._ctx)
            if self._library is not None:
                self._library.edgellm_sequences_free(self._cells)
        self._ctx = None
        self.tokens.clear()
