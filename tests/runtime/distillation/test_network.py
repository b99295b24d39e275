"""The trainer's arithmetic: what it says is what llama.cpp says, and its slopes are those of its loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.distillation.architecture import ARCHITECTURES, DistillationError
from edgellm.runtime.distillation.lesson import Sample
from edgellm.runtime.distillation.network import Network

SIZES = {"n_layers": 7, "n_embd": 64, "n_ff": 96, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "window": 8}


def text(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n).astype(np.int32)


def sample(n_prompt: int, n_answer: int, seed: int = 0) -> Sample:
    tokens = text(n_prompt + n_answer, seed)
    return Sample(tokens[:n_prompt], tokens[n_prompt:])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(architecture: str, **more: object) -> Path:
        return write_tiny(tmp_path / f"{architecture}.gguf", architecture, **{**SIZES, **more})  # type: ignore[arg-type]

    return written


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_loss_is_that_of_llama_cpps_own_logits(architecture: str, write: Callable[..., Path]) -> None:
    path, one = write(architecture), sample(5, 30)
    tokens = np.concatenate((one.prompt, one.answer))
    model = LlamaModel(path)
    backend = LlamaBackend(model, ContextSettings(n_ctx=64, n_ubatch=64, n_outputs=1, n_threads=1, kv="f32"))
    loss, hits = 0.0, []
    for i, token in enumerate(tokens[:-1]):
        row = backend.forward([int(token)], 1)[0].astype(np.float64)
        if i >= len(one.prompt) - 1:
            loss += float(np.log(np.exp(row - row.max()).sum()) + row.max() - row[tokens[i + 1]])
            hits.append(int(row.argmax()) == tokens[i + 1])
    backend.close()
    model.close()
    network = Network.open(path)
    assert network.gradients([one]).loss == pytest.approx(loss, rel=2e-3)
    assert network.agreement([one])[0].tolist() == hits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_slopes_are_what_the_loss_does_along_them(architecture: str, write: Callable[..., Path]) -> None:
    network = Network.open(write(architecture, weights="Q4_1", n_embd=64, n_ff=96, tied=architecture != "qwen2"))
    texts = [sample(1, 20), sample(1, 13, seed=1)]  # with one token of a question nothing is taken as given
    found = network.gradients(texts)
    assert set(found.thetas) == set(network.matrices)
    for name, slope in found.thetas.items():
        way = (slope / np.abs(slope).max() * 0.02).astype(np.float32)
        theta = network.matrices[name].theta
        ends = []
        for sign in (1, -1):
            network.take({name: theta + np.float32(sign) * way})
            ends.append(network.gradients(texts).loss)
        network.take({name: theta})
        assert (ends[0] - ends[1]) / 2 == pytest.approx(float(np.vdot(slope, way)), rel=0.05), name


def test_texts_read_together_are_as_if_alone(write: Callable[..., Path]) -> None:
    network = Network.open(write("gemma3", weights="Q8_0"))
    texts = [sample(9, 20), sample(3, 11, seed=1), sample(20, 2, seed=2)]
    together, alone = network.gradients(texts), [network.gradients([one]) for one in texts]
    assert together.loss == pytest.approx(sum(one.loss for one in alone), rel=1e-4)
    name = "blk.3.ffn_up.weight"
    np.testing.assert_allclose(together.thetas[name], sum(one.thetas[name] for one in alone), rtol=1e-3, atol=1e-5)


def test_a_question_teaches_nothing_by_itself(write: Callable[..., Path]) -> None:
    """Its tokens are not predicted, and what they hold is taken as given: only answer tokens are counted."""
    network = Network.open(write("llama", weights="Q4_0"))
    assert network.gradients([sample(30, 4)]).n_tokens == 4


def test_what_cannot_be_trained_says_what_can(write: Callable[..., Path]) -> None:
    with pytest.raises(DistillationError, match=r"phi3.*take a drafter of llama, qwen2, qwen3, gemma3"):
        Network.open(write("phi3"))
