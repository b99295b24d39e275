"""Adapters of drafters that several rooms' tests share: tiny files, and changes that can be told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tiny_gguf import write_tiny

from edgellm.memory.draft_adapter import DraftAdapter, quantised_matrix
from edgellm.memory.files import sha256_of, write
from edgellm.memory.gguf import read_header
from edgellm.memory.quantised import FORMATS

MATRIX = "blk.0.ffn_down.weight"
RECORD: dict[str, Any] = {
    "target": "tiny-target",
    "drafter": "tiny-drafter",
    "n_tokens": 12_345,
    "before": {"tokens_per_pass": 2.76},
    "after": {"tokens_per_pass": 3.04},
}


def quantised_tiny(path: Path, **more: Any) -> Path:
    """A drafter of the type that adapters change."""
    return write_tiny(path, **{"weights": "Q4_1", "n_layers": 1, "n_ctx_train": 256, **more})


def adapter_for(base: Path, by: float = 0.1, **record: Any) -> DraftAdapter:
    """Every scale of the file's matrices, larger by a share."""
    header = read_header(base)
    changes = {}
    for tensor in header.tensors:
        if tensor.type in FORMATS and len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            theta = np.zeros_like(quantised_matrix(header, tensor).start)
            theta[0] = by
            changes[tensor.name] = theta
    return DraftAdapter(sha256_of(base), changes, {**RECORD, **record})


def write_adapter(path: Path, base: Path, by: float = 0.1, **record: Any) -> Path:
    write(path, adapter_for(base, by, **record).to_bytes())
    return path
