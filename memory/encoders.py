"""What llama.cpp's graphs of a model with an encoder and a decoder need, T5 for one.

The encoder reads its whole input in one piece, so the context is set up for pieces as long as itself, and the engine
reserves a row of logits for each token of one. Biases by distance are added to scores, which flash attention does not
do: the scores of all heads are held. Keys and values of the encoder's output are computed anew in every pass. The
terms were read off llama.cpp 0.5.0 with `no_alloc`; tests/runtime/test_encoder_decoder.py holds them to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.memory.context import ContextSettings

if TYPE_CHECKING:
    from edgellm.memory.shape import ModelShape

_FLOAT = 4


def compute_bytes(shape: ModelShape, settings: ContextSettings) -> int:
    """Bytes of the widest moment: the scores of the decoder's own text or of the input, the attention to the encoder's
    output, a feed-forward network, or the logits.
    """
    n, n_cells, n_input = settings.n_ctx, settings.n_cells, _longest_input(shape, settings)
    inputs = n * (1.5 * n_cells + 0.5 * n_input) + n_input * shape.n_embd  # distances, two masks, the encoder's output
    scores = n * (3 * shape.n_heads * n_cells + 3 * shape.n_embd + 2 * shape.q_width)
    crossed = n * (2 * shape.n_embd + shape.q_width) + 3 * n_input * shape.q_width
    inside = n * (3 * shape.n_ff + 3 * shape.n_embd)
    logits = n * (shape.n_vocab + 4 * shape.n_embd)
    return int(max(inputs + max(scores, crossed, inside), logits)) * _FLOAT


def compute_formula(shape: ModelShape, settings: ContextSettings) -> str:
    n, n_cells, n_input = settings.n_ctx, settings.n_cells, _longest_input(shape, settings)
    return (
        f"widest of scores of {n:,} tokens, {n:,} x {n_cells:,} x {shape.n_heads} heads x 3 x 4 B with their masks, "
        f"attention to {n_input:,} tokens, and {n:,} rows of {shape.n_vocab:,} logits x 4 B"
    )


def output_bytes(shape: ModelShape, settings: ContextSettings) -> int:
    """Rows of logits and of the encoder's output for each token, and that output once more for the decoder."""
    return settings.n_ctx * (shape.n_vocab + 2 * shape.n_embd) * _FLOAT


def output_formula(shape: ModelShape, settings: ContextSettings) -> str:
    return f"{settings.n_ctx:,} rows x ({shape.n_vocab:,} logits + 2 x {shape.n_embd:,}) x 4 B"


def _longest_input(shape: ModelShape, settings: ContextSettings) -> int:
    """Tokens of the encoder's output that graphs are made for; a file's own context where that is longer."""
    return max(settings.n_ctx, shape.n_ctx_train // 2)
