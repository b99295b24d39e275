"""What a target takes beside its weights while it answers many questions at once."""

from __future__ import annotations

from edgellm.memory.buffers import estimate, work_bytes
from edgellm.memory.context import ContextSettings
from edgellm.memory.limits import N_UBATCH
from edgellm.memory.shape import ModelShape

N_SEQUENCES = 16  # a pass over so many tokens costs some 2.3 times one token's


def sequence_settings(n_sequences: int, n_ctx: int, n_threads: int, n_ubatch: int = N_UBATCH) -> ContextSettings:
    """How such a context is set up; `n_ctx` is each sequence's own, in tokens."""
    return ContextSettings(n_ctx, max(n_ubatch, n_sequences), n_sequences, n_threads=n_threads, n_sequences=n_sequences)


def talk_bytes(shape: ModelShape, *, n_sequences: int = N_SEQUENCES, n_ctx: int, n_threads: int = 2) -> int:
    """Bytes of the caches of all sequences, temporaries, and a row of logits for each sequence.

    Raises:
        UnknownShape: nothing is known of the model's cache.
        UnsupportedCache: a cache type that the model's heads do not divide into.
    """
    settings = sequence_settings(n_sequences, n_ctx, n_threads)
    sizes = estimate(shape, settings)
    return sizes.kv_bytes + sizes.compute_bytes + sizes.output_bytes + work_bytes(shape, settings)
