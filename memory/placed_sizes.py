"""What of a model lies on accelerators, and what is left to the processor, by formula.

As llama.cpp places it: the embedding stays with the processor, the last layers go, and the output head counts as one
more layer behind them; layers are computed where they lie. Checked against it in tests/runtime/test_placed_sizes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgellm.memory.buffer_sizes import BufferSizes, DeviceSizes
from edgellm.memory.context import ContextSettings
from edgellm.memory.kv import layer_cache_bytes
from edgellm.memory.shape import ModelShape

_FLOAT = 4
_TRIED_TOKENS = 512  # the batch with which llama.cpp asks a device whether it can compute with a matrix


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """Bytes of the temporaries of a graph that the processor computes alone, part by part."""

    inputs_bytes: int  # that the processor fills in
    layer_elements: int  # float32 a token at the widest moment of a layer
    logits_bytes: int  # behind the last layer
    n_tokens: int


def split(shape: ModelShape, settings: ContextSettings, whole: BufferSizes, graph: GraphSizes) -> BufferSizes:
    """The sizes of a model that lies on the processor alone, cut by where `settings` place its layers."""
    if not settings.placed:
        return whole
    layers, caches = _layers(shape), layer_cache_bytes(shape, settings)
    first = shape.n_layers + (not settings.head_stays) - sum(n for _, n in settings.placed)
    devices, weights, cache = [], whole.weights_bytes, whole.kv_bytes
    token = graph.n_tokens * _FLOAT
    host = graph.inputs_bytes + token * (graph.layer_elements if first > 0 else 2 * shape.n_embd)
    if settings.head_stays:
        host = max(host, graph.logits_bytes)
    for name, n in settings.placed:
        begin, end = max(first, 0), first + n
        moved, kv = sum(layers[begin:end]), sum(caches[begin:end])
        weights, cache = weights - moved, cache - kv
        compute = graph.inputs_bytes + token * _device_elements(shape, graph, begins=begin == 0)
        if end > shape.n_layers:
            head = shape.tied[1] if shape.tied else shape.weight_bytes - shape.lookup_bytes - sum(layers)
            widest = max(head, _TRIED_TOKENS * shape.n_vocab * _FLOAT)
            if 0 < settings.largest_bytes < widest:  # it stays, and twice if the device could look its rows up
                host = max(host, graph.logits_bytes)
                weights += head if shape.tied and head <= settings.largest_bytes else 0
            else:
                weights -= 0 if shape.tied else head  # tied: rows are looked up here, multiplied there: two copies
                moved += head
                compute = max(compute, graph.logits_bytes)
        devices.append(DeviceSizes(name, moved, kv, compute))
        first = end
    return replace(
        whole,
        weights_bytes=max(weights, 0),
        repacked_bytes=0,
        kv_bytes=cache,
        compute_bytes=host,
        devices=tuple(devices),
    )


def _device_elements(shape: ModelShape, graph: GraphSizes, *, begins: bool) -> int:
    """Float32 a token at the widest moment of a device's layer: its residual stream is the processor's to hold.

    Args:
        begins: it has the first layer.
    """
    embd, q, used = shape.n_embd, shape.q_width, max(shape.n_experts_used, 1)
    if not shape.attention or (used > 1 and 2 * shape.n_ff < embd):
        return graph.layer_elements
    elements = 3 * used * shape.n_ff + 2 * embd
    if used > 1 or (q > embd and begins):
        elements += q
    if not begins and (used > 1 or shape.is_recurrent):
        elements += embd
    kv = max(group.k_width for group in shape.attention)
    return min(max(elements, 2 * q + 2 * embd + max(shape.n_ff, kv)), graph.layer_elements)


def _layers(shape: ModelShape) -> Sequence[int]:
    """Weights of each layer, bytes."""
    if shape.layer_bytes:
        return shape.layer_bytes
    apart = shape.lookup_bytes or (shape.tied[1] if shape.tied else 0)
    return ((shape.weight_bytes - apart - shape.lookup_bytes) // max(shape.n_layers, 1),) * shape.n_layers
