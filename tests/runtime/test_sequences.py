"""Several texts in one context: each is answered as it would be alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp as api
from tiny_gguf import write_tiny

from edgellm.memory.buffers import compute_bytes, work_bytes
from edgellm.memory.context import ContextSettings
from edgellm.memory.kv import cache_bytes
from edgellm.memory.shape import from_header
from edgellm.memory.talking import sequence_settings, talk_bytes
from edgellm.runtime.backends.base import ContextFull, EngineError, LoadError, Logits
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.backends.llama_sequences import LlamaSequences, Part
from edgellm.runtime.bringup.probe import _breakdown

QUESTIONS = (b"The capital of France is", b"def add(a, b):", b"Once upon a time, there was a dog. " * 6, b"2 + 2 =")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[LlamaModel]:
    model = LlamaModel(write_tiny(tmp_path / "tiny.gguf", "llama"))
    yield model
    model.close()


@pytest.fixture
def sequences(tiny: LlamaModel) -> Iterator[LlamaSequences]:
    made = of(tiny, 4, n_ctx=256, n_ubatch=32)
    yield made
    made.close()


def of(model: LlamaModel, n_sequences: int, *, n_ctx: int = 256, n_ubatch: int = 128) -> LlamaSequences:
    return LlamaSequences(model, sequence_settings(n_sequences, n_ctx, 1, n_ubatch), n_sequences)


def forward(sequences: LlamaSequences, texts: Mapping[int, Sequence[int]]) -> Logits:
    """Each text goes on with these tokens; the logits behind the last of each, (n_texts, n_vocab)."""
    for sequence, tokens in texts.items():
        sequences.read(sequence, tokens[:-1])
    rows, _ = sequences.forward([Part(sequence, tokens[-1:], 1) for sequence, tokens in texts.items()])
    return np.concatenate(rows)


def rows_alone(model: LlamaModel, prompt: Sequence[int], n: int) -> Logits:
    """Rows of logits of a greedy answer, (n, n_vocab)."""
    backend = LlamaBackend(model, ContextSettings(n_ctx=256, n_threads=1))
    rows = [backend.forward(prompt, 1)[0].copy()]
    while len(rows) < n:
        rows.append(backend.forward([int(rows[-1].argmax())], 1)[0].copy())
    backend.close()
    return np.stack(rows)


def rows_together(sequences: LlamaSequences, prompts: Sequence[Sequence[int]], n: int) -> Logits:
    """The same of several at once, (n_prompts, n, n_vocab)."""
    rows = [forward(sequences, dict(enumerate(prompts))).copy()]
    while len(rows) < n:
        rows.append(forward(sequences, {i: [int(row.argmax())] for i, row in enumerate(rows[-1])}).copy())
    return np.stack(rows, axis=1)


def test_on_our_kernels_four_texts_at_once_have_the_bits_of_each_alone(smollm2_path: Path) -> None:
    if not kernels().active:
        pytest.skip(f"llama.cpp's own kernels are in use: {kernels().reason}")
    model = LlamaModel(smollm2_path)
    prompts = [model.vocabulary.encode(question) for question in QUESTIONS]
    prompts[2] *= 3  # read in several pieces
    sequences = of(model, len(prompts), n_ctx=256)
    together = rows_together(sequences, prompts, 8)
    sequences.close()
    for prompt, rows in zip(prompts, together, strict=True):
        assert np.array_equal(rows, rows_alone(model, prompt, 8))
    model.close()


def test_texts_begin_and_end_at_different_times(tiny: LlamaModel, sequences: LlamaSequences) -> None:
    prompts = [tiny.vocabulary.encode(question) for question in QUESTIONS]
    alone = [rows_alone(tiny, prompt, 2) for prompt in prompts]
    forward(sequences, {0: prompts[3], 3: prompts[2]})  # two stand empty between them
    sequences.truncate(0, 0)
    both = forward(sequences, {3: [int(alone[2][0].argmax())], 0: prompts[0]})
    assert np.allclose(both, [alone[2][1], alone[0][0]], atol=1e-3)
    # One that was passed over in between goes on where it stood, and those that stood empty are.
    one = forward(sequences, {1: prompts[1]})
    assert np.allclose(one, [alone[1][0]], atol=1e-3)
    one = forward(sequences, {0: [int(alone[0][0].argmax())]})
    assert np.allclose(one, [alone[0][1]], atol=1e-3)


def test_a_full_sequence_says_so_and_the_others_go_on(tiny: LlamaModel, sequences: LlamaSequences) -> None:
    token = tiny.vocabulary.encode(b"a")[0]
    sequences.read(0, [token] * 256)
    with pytest.raises(ContextFull, match="the context of 256 tokens is full"):
        forward(sequences, {1: [token], 0: [token]})
    assert forward(sequences, {1: [token]}).shape == (1, tiny.vocabulary.n_tokens)
    sequences.truncate(0, 0)
    sequences.read(0, [token] * 256)
    with pytest.raises(EngineError, match="in a pass that holds"):
        sequences.forward([])


@pytest.mark.parametrize("architecture", ["mamba", "lfm2"])
def test_what_keeps_recurrent_state_is_refused(architecture: str, tmp_path: Path) -> None:
    model = LlamaModel(write_tiny(tmp_path / "tiny.gguf", architecture))
    with pytest.raises(LoadError, match="recurrent state, and cannot go on with several texts"):
        of(model, 4, n_ctx=256)
    model.close()


def test_more_sequences_than_the_engine_keeps_are_refused(tiny: LlamaModel) -> None:
    with pytest.raises(LoadError, match="between 1 and 256"):
        of(tiny, 1000, n_ctx=256)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the engine's own sizes are read through a C++ name")
@pytest.mark.parametrize(("architecture", "sizes"), [("llama", {"n_vocab": 32_000}), ("gemma3", {"n_layers": 6})])
def test_what_the_context_takes_is_known_beforehand(architecture: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    """Caches and logits to the byte, temporaries within a tenth."""
    n_sequences, n_ctx = 16, 600
    model = LlamaModel(write_tiny(tmp_path / "tiny.gguf", architecture, n_embd=128, n_ff=512, **sizes))
    sequences = of(model, n_sequences, n_ctx=n_ctx)
    parts = _breakdown(api, sequences._ctx)
    sequences.close()
    assert parts is not None
    shape, settings = from_header(model.header), sequence_settings(n_sequences, n_ctx, 1)
    model.close()
    assert cache_bytes(shape, settings) == sum(kv for _, _, kv, _ in parts)
    assert compute_bytes(shape, settings) == pytest.approx(sum(compute for *_, compute in parts), rel=0.1)
    taken = sum(kv + compute for _, _, kv, compute in parts) + n_sequences * shape.n_vocab * 4
    told = talk_bytes(shape, n_sequences=n_sequences, n_ctx=n_ctx, n_threads=1)
    assert told == pytest.approx(taken + work_bytes(shape, settings), rel=0.03)
