"""Several continuations: distinct, each a sample of the target's own distribution, and the same as one alone."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from tiny_gguf import write_tiny

from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.parallel.completions import complete
from edgellm.runtime.parallel.engine import ParallelEngine
from edgellm.runtime.parallel.load import load_parallel
from edgellm.runtime.request import BadRequest, Request
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.text.fill_in import gone_on_from

WARM = Sampling(temperature=1.0, seed=3)
DRAWN = EngineOptions(n_ctx=256, n_parallel=4, learn="off", copy=False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ParallelEngine]:
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "x.gguf", "llama", weights="Q8_0")
    with load_parallel(path, None, DRAWN) as loaded:
        yield loaded


def test_all_are_different_and_the_likeliest_comes_first(engine: ParallelEngine) -> None:
    prompt = gone_on_from(engine.first.model.vocabulary, "the hat in the thin ")
    made = complete(engine, prompt, 8, sampling=WARM, max_tokens=3)
    assert len({one.text for one in made.found}) == len(made.found) == 8
    logprobs = [one.logprob for one in made.found]
    assert logprobs == sorted(logprobs, reverse=True)
    assert all(1 <= len(one.tokens) <= 3 for one in made.found)


def test_where_the_model_has_nothing_else_to_say_fewer_come_back(engine: ParallelEngine) -> None:
    prompt = gone_on_from(engine.first.model.vocabulary, "the hat")
    made = complete(engine, prompt, 3, sampling=replace(WARM, top_k=1), max_tokens=4)
    assert (len(made.found), made.n_drawn) == (1, 12)


def test_one_that_is_drawn_beside_others_is_the_answer_alone(engine: ParallelEngine) -> None:
    if not kernels().active:
        pytest.skip("the engine's own kernels promise nothing of the kind")
    prompt = gone_on_from(engine.first.model.vocabulary, "a thin cat " * 8)
    made = complete(engine, prompt, 4, sampling=WARM, max_tokens=12)
    alone = [
        engine.generate(Request(prompt=tuple(prompt), sampling=replace(WARM, seed=3 + i), max_tokens=12)).finish()
        for i in range(made.n_drawn)
    ]
    assert {one.tokens for one in made.found} == {answer.tokens for answer in alone}


def test_first_tokens_come_as_often_as_the_model_has_them(engine: ParallelEngine) -> None:
    """Chi-square over the likely tokens; 5.0 sigma of its distribution."""
    vocabulary = engine.first.model.vocabulary
    prompt, n = gone_on_from(vocabulary, "the hat in"), 1500
    sampling = replace(WARM, temperature=0.35, top_k=0, top_p=1.0, min_p=0.0)
    counts = Counter(
        complete(engine, prompt, 1, sampling=replace(sampling, seed=i), max_tokens=1).found[0].tokens for i in range(n)
    )
    with engine.seat(threading.Event()) as seat:
        seat.backend.truncate(0)
        row = seat.backend.forward(prompt, 1)[0].astype(np.float64) / 0.35
    wanted = np.exp(row - row.max())
    wanted *= n / wanted.sum()
    likely = np.flatnonzero(wanted >= 8)
    assert len(likely) > 10
    seen = np.array([counts[(int(token),)] for token in likely])
    chi = ((seen - wanted[likely]) ** 2 / wanted[likely]).sum()
    assert abs(chi - len(likely)) < 5 * np.sqrt(2 * len(likely))


def test_several_need_chance(engine: ParallelEngine) -> None:
    with pytest.raises(BadRequest, match="need chance"):
        complete(engine, [1, 2], 2, sampling=Sampling(), max_tokens=4)


def test_a_gap_is_refused_where_a_model_fills_none(engine: ParallelEngine) -> None:
    with pytest.raises(BadRequest, match="fill a gap"):
        gone_on_from(engine.first.model.vocabulary, "a", "b")
