"""Many sequences of one model in one context of llama.cpp: a pass over all of them costs little more than over one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api

from edgellm.runtime.backends.base import EngineError, LoadError, Logits
from edgellm.runtime.backends.llama_cpp import LlamaModel
from edgellm.runtime.backends.llama_process import failure, listen, reason


class LlamaSequences:
    """`n_sequences` independent texts, each with a cache of its own of `n_ctx` tokens.

    Raises:
        LoadError: the context's memory could not be had, or the model cannot be read this way.
    """

    def __init__(self, model: LlamaModel, n_sequences: int, *, n_ctx: int, n_threads: int, n_ubatch: int = 256) -> None:
        if model.full_vocabulary is not None:
            raise LoadError(f"{model.path.name} writes only a part of its vocabulary; take the file that was trimmed")
        self.model, self.n_ctx, self.n_sequences = model, n_ctx, n_sequences
        self.n_vocab = model.vocabulary.n_tokens
        params = api.llama_context_default_params()
        params.n_ctx = n_sequences * n_ctx
        params.n_seq_max = n_sequences
        params.n_batch = params.n_ubatch = max(n_ubatch, n_sequences)
        params.n_outputs_max = n_sequences
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.kv_unified = False  # attention of a sequence then looks at its own cells alone
        params.no_perf = True
        listen()
        self._ctx: Any = api.llama_init_from_model(model.handle, params)
        if not self._ctx:
            raise failure(f"{model.path.name}: no context of {n_sequences} sequences could be made: {reason()}")
        model.adapt(self._ctx)
        self._memory = api.llama_get_memory(self._ctx)
        self._n_batch = int(api.llama_n_batch(self._ctx))
        self._batch = api.llama_batch_init(self._n_batch, 0, 1)
        self._n_held = [0] * n_sequences

    def forward(self, texts: Mapping[int, Sequence[int]]) -> Logits:
        """Append tokens to some sequences: logits behind the last token of each, [n, n_vocab], in the order given.

        They are valid until the next call.

        Raises:
            EngineError: there is no room, or the engine failed; what the sequences hold is then unknown.
        """
        for sequence, tokens in texts.items():
            if self._n_held[sequence] + len(tokens) > self.n_ctx:
                raise EngineError(f"sequence {sequence} has no room for {len(tokens)} more of {self.n_ctx} tokens")
        waiting = {sequence: list(tokens) for sequence, tokens in texts.items()}
        while sum(map(len, waiting.values())) > self._n_batch:  # all but the last token of a long text goes ahead
            sequence = max(waiting, key=lambda s: len(waiting[s]))
            self._decode({sequence: waiting[sequence][: self._n_batch - 1][:-1]}, wanted=False)
            waiting[sequence] = waiting[sequence][: self._n_batch - 1][-1:] + waiting[sequence][self._n_batch - 1 :]
        rows = self._decode(waiting, wanted=True)
        return np.stack([np.ctypeslib.as_array(api.llama_get_logits_ith(self._ctx, i), (self.n_vocab,)) for i in rows])

    def _decode(self, texts: Mapping[int, Sequence[int]], *, wanted: bool) -> list[int]:
        batch, n, rows = self._batch, 0, []
        for sequence, tokens in texts.items():
            for i, token in enumerate(tokens):
                batch.token[n], batch.pos[n] = token, self._n_held[sequence] + i
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                batch.logits[n] = last = wanted and i == len(tokens) - 1
                if last:
                    rows.append(n)
                n += 1
        batch.n_tokens = n
        if status := api.llama_decode(self._ctx, batch):
            raise EngineError(f"{self.model.path.name}: the engine failed with status {status}: {reason()}")
        for sequence, tokens in texts.items():
            self._n_held[sequence] += len(tokens)
        return rows

    def drop(self, sequence: int) -> None:
        """Make a sequence empty."""
        api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._n_held[sequence] = 0

    def close(self) -> None:
        if self._ctx is not None:
            api.llama_batch_free(self._batch)
            api.llama_free(self._ctx)
        self._ctx = None
