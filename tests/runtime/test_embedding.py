"""A text's vector is what is pooled of all its tokens' states, in whatever passes it was read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import TableBackend, random_table
from numpy.typing import NDArray
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.base import Interrupted, PromptTooLong
from edgellm.runtime.backends.llama_cpp import LlamaBackend, LlamaModel
from edgellm.runtime.bringup.load import load
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.embedding import CannotEmbed, embed, embed_all, pooling_of
from edgellm.runtime.engine import Engine
from edgellm.runtime.parallel.load import load_parallel
from edgellm.runtime.request import Request

GO_ON = threading.Event()
TEXTS = [[int(x) for x in np.random.default_rng(n).integers(5, 200, n)] for n in (1, 2, 16, 17, 18, 33, 90)]
OPTIONS = EngineOptions(n_ctx=256, learn="off", copy=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf")


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with load(path, options=OPTIONS) as engine:
        yield engine


def in_one_pass(path: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Every token's state, of a context that returns them all at once."""
    model = LlamaModel(path)
    backend = LlamaBackend(model, ContextSettings(n_ctx=256, n_outputs=128))
    try:
        backend.want_hidden_states()
        backend.forward(tokens, len(tokens))
        return backend.hidden_states().copy()
    finally:
        backend.close()
        model.close()


@pytest.mark.parametrize("tokens", TEXTS, ids=len)
def test_it_is_the_mean_of_all_states_of_unit_length(engine: Engine, path: Path, tokens: list[int]) -> None:
    found = embed(engine, tokens, GO_ON)
    mean = in_one_pass(path, tokens).mean(axis=0)
    assert found == pytest.approx(mean / np.linalg.norm(mean), abs=1e-4)
    assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-6)


def test_an_answer_after_it_is_as_before(engine: Engine) -> None:
    before = engine.generate("hat", max_tokens=12).finish()
    embed(engine, TEXTS[-1], GO_ON)
    after = engine.generate("hat", max_tokens=12).finish()
    assert after.tokens == before.tokens


@pytest.mark.parametrize(("kind", "row"), [(2, 0), (3, -1)])
def test_the_header_says_which_state_stands_for_the_text(path: Path, tmp_path: Path, kind: int, row: int) -> None:
    tokens = TEXTS[-1]
    with load(write_tiny(tmp_path / "pooled.gguf", pooling=kind), options=OPTIONS) as engine:
        found = embed(engine, tokens, GO_ON)
    state = in_one_pass(path, tokens)[row]
    assert found == pytest.approx(state / np.linalg.norm(state), abs=1e-4)


def test_pooling_of_models_that_score_pairs_is_refused(tmp_path: Path) -> None:
    model = LlamaModel(write_tiny(tmp_path / "rank.gguf", pooling=4))
    with pytest.raises(CannotEmbed, match="pooling of type 4"):
        pooling_of(model)
    model.close()


def test_an_engine_that_tells_no_states_gives_no_vectors(engine: Engine) -> None:
    other = replace(engine, backend=TableBackend(random_table(300)))
    with pytest.raises(CannotEmbed, match="tells no states"):
        embed(other, [5, 6], GO_ON)


def test_too_long_a_text_and_one_called_off_are_refused(engine: Engine) -> None:
    with pytest.raises(PromptTooLong) as refusal:
        embed(engine, [5] * 300, GO_ON)
    assert refusal.value.n_prompt == 300
    off = threading.Event()
    off.set()
    with pytest.raises(Interrupted):
        embed_all([[5, 6]], lambda: nullcontext(engine), off)


def test_beside_answers_vectors_and_answers_are_those_of_each_alone(engine: Engine, path: Path) -> None:
    alone = embed_all(TEXTS, lambda: nullcontext(engine), GO_ON)
    answer = engine.generate("hat", max_tokens=60).finish().tokens
    with load_parallel(path, options=replace(OPTIONS, n_parallel=3)) as several:
        with ThreadPoolExecutor(3) as pool:
            vectors = [pool.submit(embed_all, TEXTS, lambda: several.seat(GO_ON), GO_ON) for _ in range(2)]
            beside = pool.submit(lambda: several.generate(_request()).finish().tokens)
        assert beside.result() == answer
        for found in vectors:
            assert found.result() == pytest.approx(alone, abs=1e-4)
        assert several.generate(_request()).finish().tokens == answer


def _request() -> Request:
    return Request.of("hat", max_tokens=60)
