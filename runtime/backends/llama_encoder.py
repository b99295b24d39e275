"""One text on a model with an encoder and a decoder, as T5: the prompt is encoded once, the answer attends to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from llama_cpp import llama_cpp as api

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.base import ContextFull, EngineError, Interrupted, LoadError, Logits, StopSignal
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import reason


class LlamaEncoderDecoder:
    """An encoder's input and the decoder's text behind it, as one sequence. See `Backend` for the contract.

    The input ends with the vocabulary's end of text, which no prompt spells, or where rows are first asked for; what
    follows is the decoder's. An input is computed whole or not at all, so a cut inside it leaves nothing.

    Raises:
        LoadError: the context's memory could not be had, or the cache's type is none that such a model runs with.
    """

    can_shift = False

    def __init__(
        self,
        model: LlamaModel,
        settings: ContextSettings,
        *,
        pad_single: bool = False,
        stop_asked: StopSignal | None = None,
    ) -> None:
        """Arguments as of `LlamaBackend`; `settings.n_ctx` bounds input and answer together."""
        if settings.kv not in ("f32", "f16"):
            raise LoadError(
                f"{model.path.name} ({model.architecture}) has positions that attention adds to its scores, which the "
                f"engine does not do over a cache of {settings.kv}: use --kv f16"
            )
        end = model.vocabulary.eos
        if end is None:
            raise LoadError(f"{model.path.name} names no end of text, with which its encoder's input would end")
        self.model, self.settings, self._end = model, settings, end
        # The encoder reads all of its input in one piece.
        self._decoder = LlamaBackend(
            model, replace(settings, n_ubatch=settings.n_ctx), pad_single=pad_single, stop_asked=stop_asked
        )
        self.n_vocab, self.n_ctx = self._decoder.n_vocab, min(settings.n_ctx, self._decoder.n_ctx)
        self.max_outputs, self.n_threads = self._decoder.max_outputs, self._decoder.n_threads
        self._source: list[int] = []
        self._is_encoded = self._is_closed = False
        self._encoder_s = self.engine_s = 0.0

    @property
    def tokens(self) -> list[int]:
        return [*self._source, *self._decoder.tokens]

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        if self._is_closed:
            raise EngineError(f"{self.model.path.name} is closed")
        if len(self._source) + len(self._decoder.tokens) + len(tokens) > self.n_ctx:
            raise ContextFull(f"the context of {self.n_ctx:,} tokens is full: raise --ctx or shorten the text")
        if not self._is_encoded:
            n_read = self._n_of_source(tokens, n_outputs)
            self._source += tokens[:n_read]
            tokens = tokens[n_read:]
            if n_outputs or tokens or self._source[-1:] == [self._end]:
                self._encode()
        rows = self._decoder.forward(tokens, n_outputs)
        self.engine_s = self._encoder_s + self._decoder.engine_s
        return rows

    def _n_of_source(self, tokens: Sequence[int], n_outputs: int) -> int:
        """How many of these tokens belong to the input."""
        for i in range(len(tokens) - n_outputs):
            if tokens[i] == self._end:
                return i + 1
        return len(tokens) - n_outputs

    def _encode(self) -> None:
        source = self._source or [self._end]
        try:
            self._run_encoder(source)
        except BaseException:
            self._source.clear()
            raise
        self._is_encoded = True

    def _run_encoder(self, source: Sequence[int]) -> None:
        """Raises Interrupted, EngineError."""
        name = self.model.path.name
        batch = api.llama_batch_init(len(source), 0, 1)
        for i, token in enumerate(source):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        batch.n_tokens = len(source)
        try:
            started = time.perf_counter()
            status = self._decoder.encode(batch)
        finally:
            api.llama_batch_free(batch)
        self._encoder_s += time.perf_counter() - started
        if status == 2:
            raise Interrupted("stopped while reading")
        if status:
            raise EngineError(f"{name}: the engine failed to encode {len(source):,} tokens: {status}: {reason()}")

    def truncate(self, length: int) -> None:
        n_source = len(self._source)
        if length >= n_source and self._is_encoded:
            self._decoder.truncate(length - n_source)
        elif length < n_source:
            self._decoder.truncate(0)
            self._source.clear()
            self._is_encoded = False

    def forget_oldest(self, n: int) -> None:
        raise EngineError(f"{self.model.path.name} reads its prompt whole: nothing of it can be forgotten")

    def warm_up(self) -> None:
        """One encoding and the widest verification: weights are paged in."""
        self._encode()
        self._decoder.warm_up()
        self.truncate(0)
        self._is_encoded = False
        self._encoder_s = self.engine_s = 0.0

    def close(self) -> None:
        self._is_closed = True
        self._decoder.close()
        self._source.clear()
