"""What a drafter with a trimmed vocabulary reads with: all tokens of the model that it was cut from.

`export --trim-vocab` keeps the few rows that are worth writing in the model itself, and the whole vocabulary with its
embeddings in a file beside it. Rows are read from the file as their tokens come, so that memory holds what is used.
The model then computes logits of the kept tokens alone, which is where the time went (FR-Spec, arXiv:2502.14856). Rare
words are rarely said once: the logits of those that the context holds are computed here, a few hundred rows more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.gguf import GgufError, GgufHeader, TensorInfo, read_header

PATTERN = "*-words.gguf"
N_CONTEXT_ROWS = 512  # tokens of the context, the newest, that can be written although they are not kept
_KEY = "edgellm.vocabulary.words"  # by which a model and its words know each other
_BLOCK = np.dtype([("scale", "<f2"), ("values", "i1", 32)])  # ggml's Q8_0

Rows = NDArray[np.void]  # (n_tokens, n_embd / 32) blocks, in the file until they are asked for


@dataclass(frozen=True, slots=True, eq=False)
class FullVocabulary:
    """The whole vocabulary's file, the tokens that the model kept of it, and the rows of all."""

    header: GgufHeader
    kept: NDArray[np.int32]  # (n_rows of the trimmed model,): ids of the whole vocabulary, ascending
    embedding: Rows
    output: Rows  # the same one where the model's head is its embedding
    scale: float  # of every embedding
    cap: float  # of logits, as `cap * tanh(x / cap)`; 0: none

    @property
    def n_embd(self) -> int:
        return int(self.embedding.shape[1]) * 32

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What the model would make of `tokens` itself, (len(tokens), n_embd)."""
        return _floats(self.embedding[np.asarray(tokens, np.int64)]) * np.float32(self.scale)


class FullHead:
    """Logits of the whole vocabulary: of kept tokens as the model computed them, of the context's, else -inf."""

    def __init__(self, words: FullVocabulary, n_rows: int) -> None:
        """`n_rows`: the most that are asked for at a time."""
        self._words = words
        self._logits = np.full((n_rows, len(words.embedding)), -np.inf, np.float32)
        self._is_kept = np.zeros(len(words.embedding), bool)
        self._is_kept[words.kept] = True
        self._ids = np.zeros(N_CONTEXT_ROWS, np.int64)
        self._matrix = np.zeros((N_CONTEXT_ROWS, words.n_embd), np.float32)
        self._known: set[int] = set()
        self._next = 0

    def see(self, tokens: Iterable[int]) -> None:
        """These are in the context; the oldest are forgotten when there are too many."""
        for token in tokens:
            if token in self._known or self._is_kept[token]:
                continue
            slot = self._next % N_CONTEXT_ROWS
            if self._next >= N_CONTEXT_ROWS:
                old = int(self._ids[slot])
                self._known.discard(old)
                self._logits[:, old] = -np.inf
            self._ids[slot] = token
            self._matrix[slot] = _floats(self._words.output[token : token + 1])[0]
            self._known.add(token)
            self._next += 1

    def logits(self, kept: NDArray[np.float32], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, n_tokens) for the model's own (n, n_kept) and what its head was given, (n, n_embd); valid until the next
        call.
        """
        n, n_known = len(kept), len(self._known)
        self._logits[:n, self._words.kept] = kept
        if n_known:
            rows = hidden @ self._matrix[:n_known].T
            if self._words.cap:
                rows = np.tanh(rows / self._words.cap) * self._words.cap
            self._logits[:n, self._ids[:n_known]] = rows
        return self._logits[:n]


def is_trimmed(header: GgufHeader) -> bool:
    """Whether the model was cut out of one with more tokens."""
    return isinstance(header.metadata.get(_KEY), str)


def full_vocabulary_of(path: Path, header: GgufHeader) -> FullVocabulary | None:
    """The words beside a trimmed model; None where it is not trimmed, or they are not there."""
    if not is_trimmed(header):
        return None
    n_rows = getattr(header.metadata.get("tokenizer.ggml.tokens"), "n_items", 0)
    for candidate in sorted(path.parent.glob(PATTERN)):
        try:
            found = read_header(candidate)
            if candidate != path and found.metadata.get(_KEY) == header.metadata[_KEY]:
                return _checked(found, n_rows, int(header.hparam("embedding_length", 0)))
        except (GgufError, OSError, OverflowError, TypeError, ValueError):
            continue
    return None


def _checked(header: GgufHeader, n_rows: int, n_embd: int) -> FullVocabulary | None:
    kept = np.array(header.array("edgellm.vocabulary.kept"), np.int32)
    n_tokens = getattr(header.metadata.get("tokenizer.ggml.tokens"), "n_items", 0)
    scale, cap = header.metadata.get("edgellm.embedding_scale"), header.hparam("final_logit_softcapping", 0.0)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    embedding = tensors.get("token_embd.weight")
    output = tensors.get("output.weight", embedding)
    is_sound = (
        embedding is not None
        and output is not None
        and all(tensor.type == "Q8_0" and tensor.shape == (n_embd, n_tokens) for tensor in (embedding, output))
        and n_embd % 32 == 0
        and n_rows == len(kept) > 0
        and kept[0] >= 0
        and kept[-1] < n_tokens
        and bool((np.diff(kept) > 0).all())
        and all(isinstance(number, float) and math.isfinite(number) for number in (scale, cap))
    )
    if not is_sound or embedding is None or output is None:
        return None
    return FullVocabulary(
        header, kept, _rows(header, embedding), _rows(header, output), float(scale or 0.0), float(cap)
    )


def _rows(header: GgufHeader, tensor: TensorInfo) -> Rows:
    offset = header.data_offset + tensor.offset
    return np.memmap(header.path, _BLOCK, "r", offset, (tensor.shape[1], tensor.shape[0] // 32))


def _floats(blocks: Rows) -> NDArray[np.float32]:
    values = blocks["values"].astype(np.float32) * blocks["scale"].astype(np.float32)[..., None]
    floats: NDArray[np.float32] = values.reshape(len(blocks), -1)
    return floats
