"""What one model is run with: everything about a context that decides how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgellm.memory.gguf import TENSOR_TYPES, TYPE_IDS
from edgellm.memory.limits import N_UBATCH

KvType = Literal["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]

KV_BLOCKS: dict[KvType, tuple[int, int]] = {kv: TENSOR_TYPES[TYPE_IDS[kv.upper()]][1:] for kv in get_args(KvType)}
"""(elements a block, bytes a block), as ggml lays them out."""
N_TURN_STATES = 4  # copies of a target's recurrent state where prompts ended, from which later ones go on
N_DRAFT_MOST = 15  # tokens a round; how many of them are drafted is decided every round
DRAFT_TOKENS_MOST = 4  # of a drafter's own tokens for one of the target's, before a round gives up
HEAD_REACH = 512  # of a target's tokens, the latest, whose states are kept for a draft head that reads late
CELL_PAD = 256  # llama.cpp rounds the context up to this many tokens


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """How one model's context is set up. Counts are tokens.

    Flash attention is always on: without it the scores of every head are held, and a quantised V cache is refused.
    """

    n_ctx: int
    n_ubatch: int = N_UBATCH  # tokens computed at once; a prompt is cut into pieces of this size
    n_outputs: int = 1  # rows of logits that one pass may return: draft length + 1 for a target, 1 for a drafter
    kv: KvType = "f16"
    n_rs_seq: int = 0  # snapshots of the recurrent state, which cutting back a hybrid model needs
    n_threads: int = 2
    n_saved_states: int = 0  # copies of the recurrent state beside the engine's: what a text can be cut back to
    n_sequences: int = 1  # conversations at once, of `n_ctx` tokens each, whose cells are one pool
    placed: tuple[tuple[str, int], ...] = ()  # (accelerator, layers on it), the last of them with the output head
    head_stays: bool = False  # of what is placed elsewhere no layer is the output head
    largest_bytes: int = 0  # of a tensor that the accelerator can address; 0: whatever it holds

    def __post_init__(self) -> None:  # read back from JSON, they are lists
        object.__setattr__(self, "placed", tuple((str(name), int(n)) for name, n in self.placed))

    @property
    def n_cells(self) -> int:
        """Tokens the cache has room for: those of all texts, rounded up."""
        return pad(self.n_ctx * self.n_sequences, CELL_PAD)


MOST_ROWS = 32  # of logits in a pass that several conversations share; who does not fit in waits for the next


def rows_for(n_draft: int, n_sequences: int = 1) -> int:
    """Rows of logits that a target's pass returns at most: of a whole draft, and one for each other conversation."""
    return min(n_sequences * (n_draft + 1), max(MOST_ROWS, n_draft + n_sequences))


def pad(value: int, multiple: int) -> int:
    """`value` rounded up to a whole multiple."""
    return -(-value // multiple) * multiple


def kv_row_bytes(n_elements: int, kv: KvType) -> int:
    """Bytes of one row of the cache. Quantised rows are whole blocks; ggml refuses others."""
    block_elements, block_bytes = KV_BLOCKS[kv]
    return -(-n_elements // block_elements) * block_bytes
