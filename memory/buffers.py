"""What llama.cpp's graph needs beside weights and cache: temporaries, rows of logits, scratch of the CPU's products.

The allocator packs temporaries by lifetime, so their sum follows from the widest moment of one layer, from the rows of
logits, or from both. The terms below were read off llama.cpp 0.5.0 by sizing some hundred shapes with `no_alloc`;
tests/runtime/test_probe.py holds them to it. Where llama.cpp itself can be asked, `runtime/bringup/probe.py` is exact.
"""

from __future__ import annotations

from edgellm.memory import encoders
from edgellm.memory.architectures import BESIDE, STREAMS
from edgellm.memory.buffer_sizes import BufferSizes
from edgellm.memory.context import KV_BLOCKS, ContextSettings
from edgellm.memory.kv import cache_bytes, cells, snapshots
from edgellm.memory.placed_sizes import GraphSizes, split
from edgellm.memory.shape import ModelShape, UnknownShape, has_fused_qkv

_FLOAT = 4
_UNPACKED_BYTES = 512 * 1024  # weights that the kernels keep unpacked in a thread's cache


def estimate(shape: ModelShape, settings: ContextSettings, repack: bool = False, *, isa: str = "x86") -> BufferSizes:
    """Sizes by formula.

    Raises:
        UnknownShape: nothing is known of the model's cache.
        UnsupportedCache: a cache type that the model's heads do not divide into.
    """
    if shape.onnx is not None:
        from edgellm.memory import onnx_plan

        return onnx_plan.estimate(shape, settings)
    if not shape.known:
        raise UnknownShape(f"the cache of {shape.name} ({shape.architecture}) is not known; plan it with --probe")
    doubled_bytes = max(shape.doubled_bytes(isa) if repack else 0, shape.read_twice_bytes)
    whole = BufferSizes(
        weights_bytes=shape.weight_bytes + doubled_bytes,
        repacked_bytes=shape.repacked_bytes(isa) if repack else 0,
        kv_bytes=cache_bytes(shape, settings),
        compute_bytes=compute_bytes(shape, settings),
        output_bytes=output_bytes(shape, settings),
        state_bytes=shape.state_elements * _FLOAT,
        exact=False,
    )
    return split(shape, settings, whole, _graph(shape, settings)) if settings.placed else whole


def compute_bytes(shape: ModelShape, settings: ContextSettings) -> int:
    """Bytes of the graph's temporaries, flash attention on. Within a few percent; exact for plain dense models, f16."""
    if shape.has_encoder:
        return encoders.compute_bytes(shape, settings)
    graph = _graph(shape, settings)
    layer = graph.n_tokens * graph.layer_elements * _FLOAT
    return max(graph.inputs_bytes + layer, graph.logits_bytes)  # the mask is let go of before the logits are computed


def _graph(shape: ModelShape, settings: ContextSettings) -> GraphSizes:
    tokens, rows = min(settings.n_ubatch, settings.n_cells), min(settings.n_outputs, settings.n_ubatch)
    return GraphSizes(
        inputs_bytes=_input_bytes(shape, settings, tokens),
        layer_elements=_layer_elements(shape, settings),
        logits_bytes=rows * (shape.n_vocab + 4 * shape.n_embd) * _FLOAT + tokens * _kept_elements(shape) * _FLOAT,
        n_tokens=tokens,
    )


def compute_formula(shape: ModelShape, settings: ContextSettings) -> str:
    if shape.has_encoder:
        return encoders.compute_formula(shape, settings)
    tokens, rows = min(settings.n_ubatch, settings.n_cells), min(settings.n_outputs, settings.n_ubatch)
    inputs = _input_bytes(shape, settings, tokens)
    layer = _layer_elements(shape, settings)
    return (
        f"larger of inputs and mask {inputs:,} B + {tokens} tokens x {layer:,} x 4 B, "
        f"and {rows} rows x {shape.n_vocab + 4 * shape.n_embd:,} x 4 B "
        f"+ {tokens} tokens x {_kept_elements(shape):,} x 4 B"
    )


def adapter_bytes(shape: ModelShape, settings: ContextSettings) -> int:
    """Bytes that applying adapters adds to the graph's temporaries, at most: one product beside the one it is added
    to.
    """
    tokens, rows = min(settings.n_ubatch, settings.n_cells), min(settings.n_outputs, settings.n_ubatch)
    return max(tokens * shape.adapter_width, rows * shape.adapter_head_width) * _FLOAT


def adapter_formula(shape: ModelShape, settings: ContextSettings) -> str:
    tokens, rows = min(settings.n_ubatch, settings.n_cells), min(settings.n_outputs, settings.n_ubatch)
    head = f", or {rows} rows x {shape.adapter_head_width:,} x 4 B," if shape.adapter_head_width else ""
    return f"adapters' {tokens} tokens x {shape.adapter_width:,} x 4 B{head}"


def output_bytes(shape: ModelShape, settings: ContextSettings) -> int:
    """Logits handed to the caller, which stay valid until the next pass."""
    if shape.has_encoder:
        return encoders.output_bytes(shape, settings)
    return settings.n_outputs * shape.n_vocab * _FLOAT


def output_formula(shape: ModelShape, settings: ContextSettings) -> str:
    if shape.has_encoder:
        return encoders.output_formula(shape, settings)
    return f"{settings.n_outputs} rows x {shape.n_vocab:,} logits x 4 B"


def work_bytes(shape: ModelShape, settings: ContextSettings) -> int:
    """Scratch of the CPU backend: activations for the widest product, or tiles of attention a thread.

    Beside the activations each thread unpacks weights once for all of them: 16 rows of a matrix at least.
    """
    widest = max(max(shape.n_ff, shape.n_embd) * shape.n_experts_used, shape.n_ff, shape.q_width, shape.n_embd)
    per_256 = 256 * _FLOAT if _has_floats(shape) else 292  # Q8_K, the widest of the 8-bit forms
    activations = _n_at_once(shape, settings) * widest * per_256 // 256
    n_chosen = min(shape.n_experts, settings.n_ubatch * shape.n_experts_used)
    # Tiles of 8 columns, an expert's last not full.
    activations += 8 * n_chosen * max(shape.n_ff, shape.n_embd) * per_256 // 256
    activations += settings.n_threads * max(_UNPACKED_BYTES, 16 * widest * 4 // 3)
    head = max((group.head_dim for group in shape.attention), default=0)
    tiles = settings.n_threads * _FLOAT * (4 * 64 * head + 2 * 64 * 64) if head else 0
    return max(activations, tiles)


def _has_floats(shape: ModelShape) -> bool:
    return any(kind in ("F16", "BF16") for kind, _ in shape.matrix_bytes)


def work_formula(shape: ModelShape, settings: ContextSettings) -> str:
    widest = max(max(shape.n_ff, shape.n_embd) * shape.n_experts_used, shape.n_ff, shape.q_width, shape.n_embd)
    kind = "floats" if _has_floats(shape) else "in 8 bits"
    tokens = f"{_n_at_once(shape, settings)} tokens x {widest:,} {kind}"
    return f"{tokens} and weights unpacked by {settings.n_threads} threads, or their attention tiles"


def _n_at_once(shape: ModelShape, settings: ContextSettings) -> int:
    """Tokens that are computed at once; an encoder's input is never cut."""
    return settings.n_ctx if shape.has_encoder else settings.n_ubatch


def _input_bytes(shape: ModelShape, settings: ContextSettings, tokens: int) -> int:
    """Token ids, positions, cache rows, a float16 mask for each kind of layer, rotations of a quantised cache."""
    kinds = {group.window: group for group in shape.attention}
    n_bytes = 32 + 8 * tokens
    for group in kinds.values():
        n_bytes += tokens * (2 * cells(group, settings) + (16 if group.v_width else 8))
        if _rotates(group.head_dim, settings):
            largest = group.head_dim & -group.head_dim  # the largest power of two that divides it
            n_bytes += _FLOAT * (largest**2 + (64**2 if group.v_width else 0))
    if shape.is_recurrent:
        n_bytes += shape.state_elements * _FLOAT * (1 + snapshots(shape, settings)) // max(shape.n_recurrent, 1)
    return n_bytes


def _kept_elements(shape: ModelShape) -> int:
    """Float32 elements a token that are there when the logits are computed."""
    return shape.n_embd + (0 if shape.architecture in STREAMS else 3 * shape.per_layer_width // 2)


def _layer_elements(shape: ModelShape, settings: ContextSettings) -> int:
    """Float32 elements a token at the widest moment of a layer."""
    embd, ff, q = shape.n_embd, shape.n_ff, shape.q_width
    if not shape.attention:  # a state-space model: its inner width is all it has
        return shape.recurrent_width or 13 * embd
    if shape.architecture in STREAMS:  # what is predicted and what is corrected, of each stream
        return max(max(3 * ff + 10 * embd, 18 * embd) + shape.per_layer_width, 4 * shape.per_layer_width + 2 * embd)
    rotated = any(_rotates(group.head_dim, settings) for group in shape.attention)
    if has_fused_qkv(shape) or shape.architecture.startswith("lfm2"):
        beside = 0
    elif shape.is_recurrent:
        beside = embd
    elif rotated:
        beside = 0 if q == embd else q if q > embd else 2 * q
    else:
        beside = q
    used = max(shape.n_experts_used, 1)
    elements = 3 * used * ff + 3 * embd + beside
    if used > 1 and 2 * ff < embd:  # narrow experts: their outputs are wider than their insides
        elements = max(elements, 2 * used * embd + embd + q + (used * ff if 3 * ff >= embd else 0))
    kv = max(group.k_width for group in shape.attention)
    elements = max(elements, 2 * q + 3 * embd + max(ff, kv)) + shape.per_layer_width
    beside_attention = 2 * embd if shape.architecture in BESIDE else 0
    return max(elements, shape.recurrent_width + beside_attention, 3 * ff + 2 * embd + 2 * shape.per_layer_width)


def _rotates(head_dim: int, settings: ContextSettings) -> bool:
    """llama.cpp rotates heads before it quantises them, where their size allows."""
    return KV_BLOCKS[settings.kv][0] > 1 and head_dim % 64 == 0
