"""What llama.cpp's caches hold: keys and values of attention, latent rows, the state of recurrent layers.

Checked to the byte against llama.cpp 0.5.0 (as in llama-cpp-python 0.3.36) in tests/runtime/test_probe.py.
"""

from __future__ import annotations

from edgellm.memory.cache_layers import AttentionLayers
from edgellm.memory.context import KV_BLOCKS, ContextSettings, KvType, kv_row_bytes, pad
from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.memory.shape import ModelShape


class UnsupportedCache(EdgellmError, ValueError):
    """A cache type that the model's heads do not divide into; the message names one that works."""

    exit_code = USAGE


def cells(layers: AttentionLayers, settings: ContextSettings) -> int:
    """Tokens that these layers keep. A window needs room for one batch more, and is rounded up like the context."""
    if layers.window is None:
        return settings.n_cells
    return pad(min(settings.n_cells, layers.window * settings.n_sequences + settings.n_ubatch), 256)


def cache_bytes(shape: ModelShape, settings: ContextSettings) -> int:
    """Bytes of keys, values and recurrent state.

    Raises:
        UnsupportedCache: heads that are no whole number of the type's blocks.
    """
    check_cache(shape, settings.kv)
    kept = sum(group.n_layers * _layer_bytes(group, settings) for group in shape.attention)
    return kept + shape.state_elements * 4 * (1 + snapshots(shape, settings))


def layer_cache_bytes(shape: ModelShape, settings: ContextSettings) -> list[int]:
    """The same of each layer; in equal shares where it is not known which layer keeps what."""
    whole, n_layers = cache_bytes(shape, settings), max(shape.n_layers, 1)
    if not shape.layer_groups:
        return [whole // n_layers] * n_layers
    by_group = [_layer_bytes(group, settings) for group in shape.attention]
    kept = [by_group[group] if group >= 0 else 0 for group in shape.layer_groups]
    recurrent = [layer for layer, group in enumerate(shape.layer_groups) if group < 0] or range(n_layers)
    for layer in recurrent if shape.state_elements else ():
        kept[layer] += shape.state_elements * 4 * (1 + snapshots(shape, settings)) // len(recurrent)
    return kept


def _layer_bytes(group: AttentionLayers, settings: ContextSettings) -> int:
    row = kv_row_bytes(group.k_width, settings.kv) + kv_row_bytes(group.v_width, settings.kv)
    return cells(group, settings) * row


def token_bytes(shape: ModelShape, kv: KvType) -> int:
    """Bytes of one token's keys and values in all layers."""
    return sum(
        group.n_layers * (kv_row_bytes(group.k_width, kv) + kv_row_bytes(group.v_width, kv))
        for group in shape.attention
    )


def cache_formula(shape: ModelShape, settings: ContextSettings) -> str:
    """The same with the numbers put in."""
    parts = []
    for group in shape.attention:
        k, v = kv_row_bytes(group.k_width, settings.kv), kv_row_bytes(group.v_width, settings.kv)
        row = f"({k} + {v}) B" if v else f"{k} B"
        window = f" (window {group.window:,})" if group.window else ""
        parts.append(f"{group.n_layers} layers x {cells(group, settings):,} tokens{window} x {row}")
    if shape.state_elements:
        copies = 1 + snapshots(shape, settings)
        parts.append(f"state {shape.state_elements:,} x 4 B x {copies}")
    return f"{' + '.join(parts)}, {settings.kv}"


def snapshots(shape: ModelShape, settings: ContextSettings) -> int:
    """Copies of the recurrent state kept to take tokens back."""
    return settings.n_rs_seq if shape.keeps_snapshots else 0


def saved_states(shape: ModelShape, n_turns: int = 0) -> int:
    """Copies of the recurrent state that are kept beside the engine's: of prompts' ends, and of where a draft began."""
    return n_turns + (not shape.keeps_snapshots) if shape.is_recurrent else 0


def fits_cache(shape: ModelShape, kv: KvType) -> bool:
    """Whether the model's heads are whole blocks of the type, and attention can read it."""
    if shape.has_encoder and KV_BLOCKS[kv][0] > 1:  # biases are added to scores, which flash attention does not
        return False
    return not any(group.head_dim % KV_BLOCKS[kv][0] for group in shape.attention)


def check_cache(shape: ModelShape, kv: KvType) -> None:
    if shape.has_encoder and not fits_cache(shape, kv):
        raise UnsupportedCache(f"{shape.name} ({shape.architecture}) runs with no cache of {kv}: use --kv f16")
    if not fits_cache(shape, kv):
        raise UnsupportedCache(
            f"{shape.name} has heads of {shape.attention[0].head_dim}, which {kv} cannot store in blocks of "
            f"{KV_BLOCKS[kv][0]}: use --kv f16"
        )
