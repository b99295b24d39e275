"""A pair as the default one, to plan with: its shapes, and no file."""

from __future__ import annotations

from edgellm.memory.counts import Counts, from_counts

TARGET = from_counts(
    "target", "Q4_K_M",
    Counts("qwen2", n_layers=28, n_heads=12, n_kv_heads=2, head_dim=128, n_embd=1536, n_ff=8960, n_vocab=151_936,
           n_ctx_train=32_768),
    weight_bytes=1_111_370_240,
)  # fmt: skip
DRAFTER = from_counts(
    "drafter", "Q4_1",
    Counts("llama", n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, n_embd=576, n_ff=1536, n_vocab=49_152,
           n_ctx_train=8192),
    weight_bytes=96_576_768,
)  # fmt: skip
