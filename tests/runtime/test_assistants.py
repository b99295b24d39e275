"""A drafter in a file of its own that reads the target's cache (Gemma 4's assistant): it leaves that as it is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import alone
from tiny_assistants import booleans, write_assistant, write_gemma4
from tiny_gguf import write_tiny

from edgellm.export.convert.gguf_writer import u32
from edgellm.memory.buffers import estimate
from edgellm.memory.context import ContextSettings
from edgellm.memory.draft_heads import serves, shape_of
from edgellm.memory.gguf import read_header
from edgellm.runtime import EngineOptions, load
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_nextn import LlamaHead
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.drafters.head import HeadDrafter
from edgellm.runtime.sampling import GREEDY

SETTINGS = ContextSettings(512, n_ubatch=32, n_outputs=9, n_threads=1)
OWN = ContextSettings(512, n_ubatch=32, n_outputs=1, n_threads=1)
Pair = tuple[LlamaBackend, LlamaHead]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("assistants")
    target = write_gemma4(folder / "target.gguf")
    return target, write_assistant(folder / "mtp-target.gguf", target)


@pytest.fixture
def pair(files: tuple[Path, Path]) -> Iterator[Pair]:
    models = [LlamaModel(path) for path in files]
    backend = LlamaBackend(models[0], SETTINGS)
    head = backend.with_head(models[1], OWN)
    yield backend, head
    head.close()
    backend.close()
    for model in models:
        model.close()


def some(n: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(n)]


@pytest.mark.parametrize("n_draft", [1, 3, 8])
def test_greedy_answers_are_those_without_it_and_cost_fewer_passes(pair: Pair, n_draft: int) -> None:
    backend, head = pair
    n_drafted = n_accepted = 0
    for seed in range(5):
        prompt = some(90, seed)  # longer than the window that most layers see
        results = []
        for drafter in (NoDrafter(), alone(HeadDrafter(head))):
            backend.truncate(0)
            drafter.begin(prompt, sampling=GREEDY)
            results.append(list(generate(backend, drafter, prompt, GREEDY, n_draft=n_draft, max_new=80)))
        plain, drafted = ([token for one in result for token in one.tokens] for result in results)
        assert plain == drafted
        n_drafted += sum(result.n_drafted for result in results[1])
        n_accepted += sum(result.n_accepted for result in results[1])
        assert len(results[1]) < 80
    assert 0.1 * n_drafted < n_accepted < n_drafted


def test_what_it_drafts_moves_no_bit_of_the_target(files: tuple[Path, Path], pair: Pair) -> None:
    """Rounds that are accepted and rejected at random, against a target that nobody drafts for."""
    backend, head = pair
    model = LlamaModel(files[0])
    other, drafter, rng = LlamaBackend(model, SETTINGS), HeadDrafter(head), random.Random(3)
    held = some(70, 1)
    drafter.begin(held)
    for one in (backend, other):
        one.forward(held[:-1], 0)
    for i in range(200):
        if len(held) > 480:
            held = held[:80]
            for one in (backend, other):
                one.truncate(0)
                one.forward(held[:-1], 0)
            drafter.begin(held)
        drafted: list[int] = []
        prefix = some(rng.randint(0, 2), i)
        for guesses in drafter.drafting(held, prefix):
            drafted = [*prefix, *(guess.token for guess in guesses)]
            if len(guesses) == 4:
                break
        assert head.start == len(held) - 1
        rows = [one.forward([held[-1], *drafted], len(drafted) + 1).copy() for one in (backend, other)]
        assert np.array_equal(*rows)
        n_kept = rng.randint(0, len(drafted))
        held = [*held, *drafted[:n_kept], int(rows[0][n_kept].argmax())]
        for one in (backend, other):
            one.truncate(len(held) - 1)
        drafter.observe(held, n_kept + 1)
    other.close()
    model.close()


def test_an_engine_drafts_with_it_to_the_end_of_its_context(files: tuple[Path, Path]) -> None:
    options = EngineOptions(n_ctx=256, n_threads=1, learn="off", fixed=True, n_draft=5)
    with load(*files, options) as engine:
        assert any("reads the target's own states" in note for note in engine.notes)
        answers = [engine.generate("hello", max_tokens=400, n_draft=n).finish() for n in (None, 0)]
        assert answers[0].text == answers[1].text
        assert answers[0].finish_reason == answers[1].finish_reason
        assert answers[0].stats.n_accepted
        assert not engine.warnings


def test_one_for_other_layers_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    target, assistant = files
    assert serves(read_header(assistant), read_header(target))
    wrong = {
        "attention.key_length": u32(32),
        "attention.head_count_kv": u32(4),
        "embedding_length_out": u32(32),
    }
    for key, value in wrong.items():
        other = write_assistant(tmp_path / "other.gguf", target, fitted=False, **{key: value})
        assert not serves(read_header(other), read_header(target)), key
    other_target = write_gemma4(
        tmp_path / "target.gguf", **{"attention.sliding_window_pattern": booleans((True, True, False, False))}
    )
    assert not serves(read_header(assistant), read_header(other_target))
    with pytest.raises(LoadError, match="draft head of another model"):
        load(write_tiny(tmp_path / "llama.gguf"), assistant, EngineOptions(n_ctx=256, n_threads=1, learn="off"))


def test_it_is_planned_without_a_cache_of_its_own(files: tuple[Path, Path]) -> None:
    header = read_header(files[1])
    shape = shape_of(header, "assistant")
    sizes = estimate(shape, OWN)
    assert sizes.kv_bytes == 0
    assert sizes.weights_bytes == sum(-(-tensor.n_bytes // 32) * 32 for tensor in header.tensors)
    assert shape_of(read_header(files[0]), "target", ask=True).architecture == "gemma4"


def test_it_is_no_target(files: tuple[Path, Path]) -> None:
    with pytest.raises(LoadError, match="is a draft head, which drafts for its model alone"):
        load(files[1], options=EngineOptions(n_ctx=256, n_threads=1, learn="off"))
