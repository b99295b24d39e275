"""What drafting may remember, in bytes: budgets that the runtime keeps and a plan counts."""

from __future__ import annotations

STORE_TOKENS = 1 << 17  # of earlier answers, for each target
STORE_BYTES = STORE_TOKENS * 22  # the tokens, and for three lengths of context a chain of places and its heads
NGRAM_BYTES = 2 * 2**20  # spellings of one vocabulary in another (OmniDraft's cache), for each pair


def conversation_bytes(n_ctx: int) -> int:
    """The index of a conversation of at most so many tokens."""
    capacity = 1 << max(8, n_ctx.bit_length())
    return capacity * 22 + 3 * 4 * 256
