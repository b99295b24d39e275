"""Several independent texts in one context of llama.cpp: a pass over a token of each costs little more than over one.

Sixteen rows read the weights once, as one row does. On our kernels each row has the bits that its text alone would
have given: products and attention look at a row and its own cells, and a text is read in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_cpp import llama_cpp as api

from edgellm.memory.limits import N_UBATCH
from edgellm.memory.talking import sequence_settings
from edgellm.runtime.backends.base import ContextFull, EngineError, LoadError, Logits, checked
from edgellm.runtime.backends.llama_context import ContextLimits, new_context
from edgellm.runtime.backends.llama_cpp import LlamaModel
from edgellm.runtime.backends.llama_heads import rows_at
from edgellm.runtime.backends.llama_process import reason


class LlamaSequences:
    """`n_sequences` texts, each with a cache of its own of `n_ctx` tokens.

    Raises:
        LoadError: the context's memory could not be had, or the model's memory cannot be kept for several texts.
    """

    def __init__(
        self, model: LlamaModel, n_sequences: int, *, n_ctx: int, n_threads: int, n_ubatch: int = N_UBATCH
    ) -> None:
        """`n_ubatch`: tokens of a text that are read at once."""
        refuse_sequences(model)
        if not 1 <= n_sequences <= (most := int(api.llama_max_parallel_sequences())):
            raise LoadError(f"{n_sequences} sequences were asked for; the engine keeps between 1 and {most}")
        self.model, self.n_sequences, self.n_ctx = model, n_sequences, n_ctx
        self.n_vocab = model.vocabulary.n_tokens
        settings = sequence_settings(n_sequences, n_ctx, n_threads, n_ubatch)
        name = model.path.name
        self._ctx: Any = new_context(
            model.handle, settings, n_sequences, name=name, rolls_back=False, n_sequences=n_sequences
        )
        model.adapt(self._ctx)
        self._memory = api.llama_get_memory(self._ctx)
        if not self._memory:
            api.llama_free(self._ctx)
            raise LoadError(f"{name} ({model.architecture}) keeps no cache of what it reads: take a decoder-only model")
        self._n_batch = ContextLimits.of(self._ctx).n_batch
        self._batch = api.llama_batch_init(self._n_batch, 0, 1)
        self._n_held = [0] * n_sequences

    def read(self, sequence: int, tokens: Sequence[int]) -> None:
        """Append tokens to a sequence, without logits.

        Raises:
            ContextFull: there is no room for them.
            EngineError: the engine failed; what the sequence holds is then unknown until it is dropped.
        """
        self._check_room(sequence, len(tokens))
        for start in range(0, len(tokens), self._n_batch):
            piece = tokens[start : start + self._n_batch]
            for i, token in enumerate(piece):
                self._put(i, sequence, self._n_held[sequence] + i, token, wanted=False)
            self._decode(len(piece))
            self._n_held[sequence] += len(piece)

    def forward(self, texts: Mapping[int, Sequence[int]]) -> Logits:
        """Append tokens to some sequences: logits behind the last of each, [n, n_vocab], sequences in rising order.

        The rows are a view into the engine's own buffer, valid until the next call.

        Raises:
            ContextFull: there is no room for some of them; none was read.
            EngineError: no tokens were given for one, or the engine failed; what the sequences hold is then unknown.
            BadNumbers: the logits are none.
        """
        if self._ctx is None:
            raise EngineError(f"{self.model.path.name} is closed")
        for sequence, tokens in texts.items():
            if not tokens:
                raise EngineError(f"sequence {sequence} was given no token to go on from")
            self._check_room(sequence, len(tokens))
        for sequence, tokens in texts.items():
            self.read(sequence, tokens[:-1])
        return self._step({sequence: texts[sequence][-1] for sequence in sorted(texts)})

    def drop(self, sequence: int) -> None:
        """Make a sequence empty."""
        api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._n_held[sequence] = 0

    def close(self) -> None:
        if self._ctx is not None:
            api.llama_batch_free(self._batch)
            api.llama_free(self._ctx)
        self._ctx = None

    def _step(self, tokens: Mapping[int, int]) -> Logits:
        """One pass over a token of each of these sequences, which are in rising order."""
        if not tokens:
            raise EngineError("no sequence was given a token")
        fillers, n = [], 0
        for sequence in range(min(tokens), max(tokens) + 1):
            held = self._n_held[sequence]
            if sequence in tokens:
                self._put(n, sequence, held, tokens[sequence], wanted=True)
            elif held == 0:
                # The engine cuts a pass where a sequence is missing, and each part would read all weights again.
                self._put(n, sequence, 0, next(iter(tokens.values())), wanted=False)
                fillers.append(sequence)
            else:
                continue
            n += 1
        self._decode(n)
        for sequence in fillers:
            self.drop(sequence)
        for sequence in tokens:
            self._n_held[sequence] += 1
        return checked(rows_at(api.llama_get_logits(self._ctx), len(tokens), self.n_vocab), self.model.path.name)

    def _put(self, i: int, sequence: int, position: int, token: int, *, wanted: bool) -> None:
        """The `i`-th token of the next pass."""
        batch = self._batch
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence

    def _decode(self, n_tokens: int) -> None:
        self._batch.n_tokens = n_tokens
        if status := api.llama_decode(self._ctx, self._batch):
            raise EngineError(f"{self.model.path.name}: the engine failed with status {status}: {reason()}")

    def _check_room(self, sequence: int, n: int) -> None:
        if self._n_held[sequence] + n > self.n_ctx:
            raise ContextFull(
                f"sequence {sequence} holds {self._n_held[sequence]} of {self.n_ctx} tokens: no room for {n} more"
            )


def refuse_sequences(model: LlamaModel) -> None:
    """Raises LoadError: what the model remembers cannot be kept for several texts side by side."""
    name = model.path.name
    if model.full_vocabulary is not None:
        raise LoadError(
            f"{name} writes only a part of its vocabulary, and its head serves one text at a time: "
            "take the model that it was trimmed from"
        )
    if model.is_recurrent or model.is_hybrid:
        raise LoadError(
            f"{name} ({model.architecture}) keeps recurrent state, and cannot go on with several texts at once: "
            "take a target whose layers all keep keys and values"
        )
