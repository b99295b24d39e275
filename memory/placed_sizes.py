"""What of a model lies on accelerators, and what is left to the processor, by formula.

As llama.cpp places it: the embedding stays with the processor, the last layers go, and the output head counts as one
more layer behind them. Checked against it in tests/runtime/test_placed_sizes.py.
"""

from __future__ import annotations

from dataclasses import replace

from edgellm.memory.buffer_sizes import BufferSizes, DeviceSizes
from edgellm.memory.context import ContextSettings
from edgellm.memory.shape import ModelShape

_FLOAT = 4


def split(shape: ModelShape, settings: ContextSettings, whole: BufferSizes, input_bytes: int) -> BufferSizes:
    """The sizes of a model that lies on the processor alone, cut by where `settings` place its layers.

    Args:
        input_bytes: of the graph's inputs, which the processor fills in.
    """
    if not settings.placed:
        return whole
    layers = shape.layer_bytes or (_in_layers(shape) // max(shape.n_layers, 1),) * shape.n_layers
    first = shape.n_layers + (not settings.head_stays) - sum(n for _, n in settings.placed)
    devices, weights, cache, compute = [], whole.weights_bytes, whole.kv_bytes, whole.compute_bytes
    for name, n in settings.placed:
        has_head = first + n > shape.n_layers
        kept = layers[max(first, 0) : first + n]
        moved = sum(kept)
        kv = whole.kv_bytes * len(kept) // max(shape.n_layers, 1)
        weights, cache = weights - moved, cache - kv
        if has_head:
            tied = shape.tied[1] if shape.tied else 0  # looked up by the processor, multiplied there: two copies
            head = tied or shape.weight_bytes - shape.lookup_bytes - sum(layers)
            weights -= 0 if tied else head
            moved += head
        devices.append(DeviceSizes(name, moved, kv, compute))
        first += n
    if first > shape.n_layers and sum(n for _, n in settings.placed) > shape.n_layers:  # none with `head_stays`
        compute = input_bytes + settings.n_ubatch * shape.n_embd * _FLOAT
    return replace(
        whole,
        weights_bytes=max(weights, 0),
        repacked_bytes=0,
        kv_bytes=cache,
        compute_bytes=compute,
        devices=tuple(devices),
    )


def _in_layers(shape: ModelShape) -> int:
    head = shape.lookup_bytes or (shape.tied[1] if shape.tied else 0)
    return shape.weight_bytes - head - shape.lookup_bytes
