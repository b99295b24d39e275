"""Which layers of a header keep keys and values, behind a window or not, and which a state, as llama.cpp has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.memory.architectures import (
    BESIDE,
    FEED_FORWARD_APART,
    FULL_ATTENTION_INTERVAL,
    HYBRID,
    LATENT,
    LAYERS_WITH_CACHE,
    MAMBA_2,
    RECURRENT,
    SHARED_CACHE,
    WINDOWS,
    slides,
)
from edgellm.memory.gguf import GgufArray, GgufHeader
from edgellm.memory.hparams import MAX_LAYERS, MAX_WIDTH, Hparams, UnknownShape


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """Layers that keep the same cache. Widths are elements a token and layer."""

    n_layers: int
    k_width: int
    v_width: int  # 0: values are part of the key row (MLA)
    head_dim: int  # of a key
    window: int | None = None  # tokens; None: all of the context


def attending(told: Hparams, architecture: str, kv_heads: Sequence[int]) -> list[int]:
    """The layers that keep keys and values."""
    if architecture in RECURRENT:
        return []
    n_layers = len(kv_heads)
    kept = [layer for layer, n_heads in enumerate(kv_heads[: _first_shared(told, architecture, n_layers)]) if n_heads]
    if architecture in FEED_FORWARD_APART:
        n_ff = told.counts("feed_forward_length", n_layers, [0] * n_layers, most=MAX_WIDTH)
        return [layer for layer in kept if not n_ff[layer]]
    if architecture not in FULL_ATTENTION_INTERVAL:
        return kept
    every = told.count("full_attention_interval", FULL_ATTENTION_INTERVAL[architecture], least=1, most=MAX_LAYERS)
    recurrent = told.listed("attention.recurrent_layers")
    if recurrent and len(recurrent) < len(kv_heads):
        raise UnknownShape(f"{told.where} lists {len(recurrent)} of {len(kv_heads)} layers: {told.remedy}")
    return [layer for layer in kept if not (recurrent[layer] if recurrent else (layer + 1) % every)]


def _first_shared(told: Hparams, architecture: str, n_layers: int) -> int:
    """The layer from which on keys and values are those of earlier ones; `n_layers` where there is none."""
    if architecture in SHARED_CACHE:
        return n_layers - told.count("attention.shared_kv_layers", 0, most=n_layers)
    return min(LAYERS_WITH_CACHE.get(architecture, n_layers), n_layers)


def check_shared_cache(told: Hparams, architecture: str) -> None:
    """Layers without a cache find one: the last of their kind must be where llama.cpp looks, or it ends the process.

    Raises:
        UnknownShape: it is not.
    """
    if architecture not in SHARED_CACHE | LAYERS_WITH_CACHE.keys():
        return
    n_layers = told.count("block_count", least=1, most=MAX_LAYERS)
    first = _first_shared(told, architecture, n_layers)
    _, sliding = _windows(told, architecture, n_layers)
    sharing = {layer in sliding for layer in range(first, n_layers)}
    found = {slides: (first - 2 if slides else first - 1) for slides in sharing}
    if first < 2 or any((layer in sliding) != slides for slides, layer in found.items()):
        raise UnknownShape(
            f"{told.where} has layers that share a cache with layers of another kind, on which llama.cpp aborts: "
            f"{told.remedy}"
        )


def recurrent_layers(told: Hparams, architecture: str, kv_heads: Sequence[int], kept: Sequence[int]) -> int:
    """Layers that keep a state."""
    n_layers = len(kv_heads)
    if architecture in FEED_FORWARD_APART:
        n_ff = told.counts("feed_forward_length", n_layers, [0] * n_layers, most=MAX_WIDTH)
        return sum(not n_heads and not n for n_heads, n in zip(kv_heads, n_ff, strict=True))
    return n_layers if architecture in BESIDE else n_layers - len(kept)


def attending_layers(
    header: GgufHeader,
    told: Hparams,
    kept: Sequence[int],
    kv_heads: Sequence[int],
    heads: tuple[int, int],
    sliding_heads: tuple[int, int],
) -> dict[int, AttentionLayers]:
    """What each of the layers that attend keeps, alone.

    Args:
        heads: elements of a head's key and of its value; `sliding_heads` where the window slides.
    """
    latent = header.architecture in LATENT and header.hparam("attention.key_length_mla") is not None
    window, sliding = _windows(told, header.architecture, len(kv_heads))
    return {
        layer: AttentionLayers(
            n_layers=1,
            k_width=key * kv_heads[layer],
            v_width=0 if latent else value * kv_heads[layer],
            head_dim=key,
            window=window if layer in sliding else None,
        )
        for layer in kept
        for key, value in (sliding_heads if layer in sliding else heads,)
    }


def _windows(told: Hparams, architecture: str, n_layers: int) -> tuple[int, set[int]]:
    """(tokens, the layers that slide), as llama.cpp decides it."""
    rule = WINDOWS.get(architecture)
    if rule is None or rule.n_layers not in (None, n_layers):
        return 0, set()
    if isinstance(told.raw("attention.sliding_window"), GgufArray):
        raise UnknownShape(f"{told.where}: windows that differ by layer are not known; plan it with --probe")
    window = told.count("attention.sliding_window", rule.default, most=2**32 - 1)
    if window == 0 and rule.default == 0:
        return 0, set()
    listed = told.listed("attention.sliding_window_pattern") if rule.every else []
    if listed:
        sliding = {layer for layer, is_sliding in enumerate(listed[:n_layers]) if is_sliding}
    else:
        every = rule.every and told.count("attention.sliding_window_pattern", rule.every, most=2**32 - 1)
        sliding = {layer for layer in range(n_layers) if slides(rule, layer, every)}
    if not sliding:
        raise UnknownShape(f"{told.where} has a window that no layer uses, on which llama.cpp aborts: {told.remedy}")
    return window, sliding


def state_elements(told: Hparams, architecture: str, n_recurrent: int, n_embd: int) -> int:
    if architecture not in RECURRENT | HYBRID:
        return 0
    if l_cache := told.count("shortconv.l_cache", 0, most=MAX_LAYERS):
        return n_recurrent * n_embd * (l_cache - 1)
    inner, state = told.count("ssm.inner_size", least=1), told.count("ssm.state_size", least=1)
    groups, kernel = told.count("ssm.group_count", 0), told.count("ssm.conv_kernel", least=1)
    return n_recurrent * ((kernel - 1) * (inner + 2 * groups * state) + state * inner)


def recurrent_width(told: Hparams, architecture: str, n_embd: int) -> int:
    """Of Mamba 2: the input's projection, three times what the convolution mixes, and what comes out."""
    if architecture not in MAMBA_2:
        return 0
    inner, state = told.count("ssm.inner_size", least=1), told.count("ssm.state_size", least=1)
    groups, n_heads = told.count("ssm.group_count", 0), told.count("ssm.time_step_rank", least=1)
    return n_embd + 6 * inner + 8 * groups * state + n_heads
