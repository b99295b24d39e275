"""What training a drafter's scales takes in memory, from the shape of its file alone."""

from __future__ import annotations

from dataclasses import replace

from edgellm.memory.plan import RUNTIME_BASE_BYTES, Line, MemoryPlan
from edgellm.memory.shape import ModelShape
from edgellm.memory.units import format_bytes

TRAINABLE = ("llama", "qwen2", "qwen3", "gemma3")  # architectures
ROWS_AT_ONCE = 512  # tokens that a thread holds the activations of, at least
LONGEST_TOKENS = 768  # of a text that is learnt, which is never cut
HEAD_ROWS = 256  # answer tokens whose logits a thread holds
MARGIN = 1.1  # of what is computed
LINE = "drafter training"  # in a plan


def training_bytes(shape: ModelShape, n_threads: int = 1, longest: int = LONGEST_TOKENS) -> int:
    """Peak of a process that trains: the weights dense and as the file has them, what passes keep for their way back,
    slopes and moments, the program. Measured: 3 to 6 % less for one thread, 17 % less for two.

    Args:
        longest: tokens of the longest text.
    """
    n_scales = _n_scales(shape)
    kept = max(ROWS_AT_ONCE, longest) * _width(shape)
    largest = shape.n_embd * max(shape.n_ff, shape.q_width)
    thread = kept + 2 * largest + 2 * HEAD_ROWS * shape.n_vocab + n_scales
    blocks = sum(n_bytes for _, n_bytes in shape.matrix_bytes)
    needed = 4 * (shape.n_params + n_threads * thread + 7 * n_scales) + blocks + RUNTIME_BASE_BYTES
    return int(needed * MARGIN)


def training_line(shape: ModelShape) -> Line:
    """Of a plan in which a drafter learns beside a chat, on one thread."""
    kept = f"{max(ROWS_AT_ONCE, LONGEST_TOKENS)} tokens x {_width(shape):,} x 4 B"
    rest = f"{_n_scales(shape):,} scales, logits of {HEAD_ROWS} tokens"
    return Line(
        LINE, training_bytes(shape), f"{shape.n_params:,} weights x 4 B + {kept}, {rest}; between answers alone"
    )


def with_training(plan: MemoryPlan, drafter: ModelShape | None) -> MemoryPlan:
    """A plan in which the drafter learns beside a chat, where it can and there is room; else it says why not."""
    if not plan.fits:
        return plan
    if drafter is None or plan.drafter is None:
        return _without(plan, "nothing learns beside a chat: no draft model is planned")
    if drafter.onnx is not None or drafter.architecture not in TRAINABLE:
        kinds = ", ".join(TRAINABLE)
        return _without(plan, f"{drafter.name} does not learn beside a chat: only GGUF files of {kinds} can be trained")
    line = training_line(drafter)
    if line.n_bytes > plan.headroom_bytes:
        room = f"{format_bytes(line.n_bytes)}, and {format_bytes(plan.headroom_bytes)} are left"
        return _without(plan, f"{drafter.name} does not learn beside a chat: training takes {room}")
    at = next((i for i, other in enumerate(plan.lines) if other.name == "unaccounted"), len(plan.lines))
    return replace(plan, lines=(*plan.lines[:at], line, *plan.lines[at:]))


def _without(plan: MemoryPlan, why: str) -> MemoryPlan:
    return replace(plan, lost=(*plan.lost, why))


def _width(shape: ModelShape) -> int:
    """Numbers that a pass keeps of a token."""
    q_width = shape.n_heads * max((group.head_dim for group in shape.attention), default=0)
    attended = sum(group.n_layers * (q_width + group.k_width + group.v_width) for group in shape.attention)
    return attended + shape.n_layers * (4 * shape.n_embd + 2 * shape.n_ff)


def _n_scales(shape: ModelShape) -> int:
    from edgellm.memory.quantised import FORMATS  # numpy takes a tenth of a second

    return sum(
        n_bytes // FORMATS[kind].n_bytes * len(FORMATS[kind].fields)
        for kind, n_bytes in shape.matrix_bytes
        if kind in FORMATS
    )
