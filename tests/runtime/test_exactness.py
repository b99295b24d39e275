"""Every width of a pass gives the same bits, so that speculative and plain decoding write the same text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.memory.context import ContextSettings, KvType
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.bringup.exactness import rows_at_width

WIDTHS = (1, 3, 5, 8, 16)


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_on_our_kernels_passes_of_every_width_agree_in_every_bit_also_over_long_contexts(
    smollm2_path: Path, kv: KvType
) -> None:
    if not kernels().active:
        pytest.skip(f"llama.cpp's own kernels are in use: {kernels().reason}")
    model = LlamaModel(smollm2_path)
    backend = LlamaBackend(model, ContextSettings(n_ctx=1024, n_outputs=max(WIDTHS), kv=kv))
    tokens = [int(token) for token in np.random.default_rng(0).integers(1000, 20_000, 616)]
    for n_past in (8, 600):  # ggml's attention takes another way for one token from 512 cells on
        reference = rows_at_width(backend, tokens[:n_past], tokens[-16:], 2)
        for width in WIDTHS:
            rows = rows_at_width(backend, tokens[:n_past], tokens[-16:], width)
            assert np.array_equal(rows, reference), (n_past, width)
    backend.close()
    model.close()


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_on_our_kernels_no_bit_depends_on_how_a_text_was_cut_into_batches(smollm2_path: Path, kv: KvType) -> None:
    if not kernels().active:
        pytest.skip(f"llama.cpp's own kernels are in use: {kernels().reason}")
    model = LlamaModel(smollm2_path)
    tokens = [int(token) for token in np.random.default_rng(1).integers(1000, 20_000, 300)]
    reference = None
    for n_ubatch in (300, 128, 64, 33, 7):
        backend = LlamaBackend(model, ContextSettings(n_ctx=512, n_ubatch=n_ubatch, n_outputs=4, kv=kv))
        backend.forward(tokens[:-4], n_outputs=0)
        rows = backend.forward(tokens[-4:], n_outputs=4).copy()
        backend.close()
        reference = rows if reference is None else reference
        assert np.array_equal(rows, reference), n_ubatch
    model.close()
