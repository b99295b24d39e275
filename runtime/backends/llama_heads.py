"""What goes into a pass and how its logits come out: of a whole model, and of one with a trimmed vocabulary.

A trimmed model is fed embeddings of the whole vocabulary, read from the file beside it, and its logits are completed by
those of tokens that the context holds (see `text.full_vocabulary`). Both have the same interface.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

from edgellm.runtime.backends.base import Logits, checked
from edgellm.runtime.text.full_vocabulary import FullHead, FullVocabulary


class Head(Protocol):
    """Tokens in, logits out; the batch is llama.cpp's, made by `new_batch`."""

    @property
    def joins(self) -> bool:
        """Whether text may be read in the pass of tokens whose logits are wanted."""
        ...

    wants_states: bool  # whether passes keep the states that the head is given

    def new_batch(self, n_tokens: int) -> Any: ...

    def put(self, context: Any, tokens: Sequence[int], n_rows: int) -> None:
        """The next pass is over `tokens`, and logits of `n_rows` of them are wanted."""
        ...

    def logits(self, context: Any, n_rows: int) -> Logits:
        """Of the last pass, (n_rows, n_vocab), valid until the next. Raises BadNumbers."""
        ...


class WholeHead:
    """The model's own embedding and head."""

    def __init__(self, name: str, n_vocab: int) -> None:
        """`name`: of the model, for the sentence where it computes nonsense."""
        self._name, self._n_vocab = name, n_vocab
        self.wants_states = False

    @property
    def joins(self) -> bool:
        return not self.wants_states  # which are kept for all tokens of a pass or for none

    def new_batch(self, n_tokens: int) -> Any:
        batch = api.llama_batch_init(n_tokens, 0, 1)
        self._tokens: NDArray[np.int32] = np.ctypeslib.as_array(batch.token, (n_tokens,))
        return batch

    def put(self, context: Any, tokens: Sequence[int], n_rows: int) -> None:
        self._tokens[: len(tokens)] = tokens
        if self.wants_states:
            api.llama_set_embeddings(context, n_rows == len(tokens))

    def logits(self, context: Any, n_rows: int) -> Logits:
        return checked(rows_at(api.llama_get_logits(context), n_rows, self._n_vocab), self._name)


class TrimmedHead:
    """Embeddings of the whole vocabulary, and logits of all that was kept or lies in the context."""

    joins = False  # what the head is given is returned for all tokens of a pass or for none
    wants_states = True

    def __init__(self, name: str, full: FullVocabulary, max_outputs: int) -> None:
        self._name, self._full, self._head = name, full, FullHead(full, max_outputs)

    def new_batch(self, n_tokens: int) -> Any:
        batch = api.llama_batch_init(n_tokens, self._full.n_embd, 1)
        self._embeddings: NDArray[np.float32] = np.ctypeslib.as_array(batch.embd, (n_tokens, self._full.n_embd))
        return batch

    def put(self, context: Any, tokens: Sequence[int], n_rows: int) -> None:
        self._embeddings[: len(tokens)] = self._full.embed(tokens)
        self._head.see(tokens)
        api.llama_set_embeddings(context, n_rows == len(tokens))

    def logits(self, context: Any, n_rows: int) -> Logits:
        kept = checked(rows_at(api.llama_get_logits(context), n_rows, len(self._full.kept)), self._name)
        return self._head.logits(kept, rows_at(api.llama_get_embeddings(context), n_rows, self._full.n_embd))


def rows_at(pointer: Any, n_rows: int, n_columns: int) -> NDArray[np.float32]:
    """The engine's own memory, (n_rows, n_columns); `as_array` builds new types for a pointer at every call."""
    values = (ctypes.c_float * (n_rows * n_columns)).from_address(ctypes.addressof(pointer.contents))
    return np.frombuffer(memoryview(values), np.float32).reshape(n_rows, n_columns)
