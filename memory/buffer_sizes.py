"""What one model takes in one context, part by part: by formula, or as the engine says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgellm.memory.context import ContextSettings
from edgellm.memory.shape import ModelShape


@dataclass(frozen=True, slots=True)
class DeviceSizes:
    """Bytes of the layers that lie on one accelerator."""

    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int


@dataclass(frozen=True, slots=True)
class BufferSizes:
    """Bytes of one model in one context; those on accelerators stand in `devices` alone."""

    weights_bytes: int  # as the engine would hold them
    repacked_bytes: int  # of these: rearranged for the CPU's fast kernels, so no longer the file's own pages
    kv_bytes: int  # keys, values and recurrent state
    compute_bytes: int  # temporaries of the graph
    output_bytes: int  # logits handed to the caller, once a pass has asked for `n_outputs` rows
    state_bytes: int  # of these: one recurrent state
    exact: bool  # to the byte, from llama.cpp itself; False: from formulas or its rounded log
    devices: tuple[DeviceSizes, ...] = ()


Sizer = Callable[[ModelShape, ContextSettings, bool], BufferSizes]
"""(shape, settings, repack) -> sizes: `estimate`, or one that asks the engine."""
