"""The shape of a drafter that can be trained, and why another cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgellm.memory.errors import EdgellmError
from edgellm.memory.gguf import GgufHeader
from edgellm.memory.training_size import TRAINABLE

ARCHITECTURES = TRAINABLE
_GEMMA_GLOBAL_EVERY = 6  # layers; the others see a window


class DistillationError(EdgellmError, ValueError):
    """A drafter that cannot be trained; the message says why and what can."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a header that the arithmetic needs."""

    architecture: str
    n_layers: int
    n_heads: int
    n_kv: int
    head_dim: int
    n_embd: int
    eps: float
    base: float
    window: int

    @classmethod
    def of(cls, header: GgufHeader) -> Shape:
        """Raises DistillationError: an architecture that cannot be trained, or a header that lacks a number."""
        name = header.architecture
        if name not in ARCHITECTURES:
            raise DistillationError(
                f"{header.path.name} ({name or 'unknown'}) cannot be trained: "
                f"take a drafter of {', '.join(ARCHITECTURES)}"
            )
        n_embd, n_heads = header.hparam("embedding_length"), header.hparam("attention.head_count")
        numbers: dict[str, Any] = {
            "n_layers": header.hparam("block_count"),
            "n_heads": n_heads,
            "n_kv": header.hparam("attention.head_count_kv", n_heads),
            "n_embd": n_embd,
            "eps": header.hparam("attention.layer_norm_rms_epsilon"),
        }
        wrong = [key for key, value in numbers.items() if not isinstance(value, int | float) or value <= 0]
        if wrong:
            raise DistillationError(
                f"{header.path.name} cannot be trained: its header has no usable {', '.join(wrong)}"
            )
        head_dim = header.hparam("attention.key_length", n_embd // n_heads)
        return cls(
            architecture=name,
            head_dim=head_dim,
            base=float(header.hparam("rope.freq_base", 10_000.0)),
            window=int(header.hparam("attention.sliding_window", 0)) if name == "gemma3" else 0,
            **numbers,
        )

    def window_of(self, layer: int) -> int:
        """Tokens that a layer sees; 0 for all."""
        return self.window if self.window and (layer + 1) % _GEMMA_GLOBAL_EVERY else 0
