"""Conversations beside each other: each gets what it would get alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.runtime.answer import Answer
from edgellm.runtime.backends.base import Interrupted
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.parallel.engine import ParallelEngine
from edgellm.runtime.parallel.load import load_parallel
from edgellm.runtime.request import Request
from edgellm.runtime.sampling import Sampling

SYSTEM = "You are a careful librarian. Answer from the catalogue alone, and name the shelf of every book. " * 4
QUESTIONS = [
    "Name three rivers.", "Count from one to twenty.", "Write a Python function that adds two numbers.",
    "What is the capital of France?", "Repeat after me: red, green, blue, red, green, blue.", "Why is the sky blue?",
]  # fmt: skip


@pytest.fixture(scope="module")
def engine(smollm2_path: Path) -> Iterator[ParallelEngine]:
    with load_parallel(smollm2_path, smollm2_path, EngineOptions(n_ctx=512, n_parallel=3, learn="fresh")) as loaded:
        yield loaded


def request_of(i: int, *, n_tokens: int = 24) -> Request:
    """Greedy ones, and sampled ones with a seed."""
    sampling = Sampling(temperature=0.8, seed=i) if i % 2 else Sampling()
    return Request.of(QUESTIONS[i % len(QUESTIONS)], max_tokens=n_tokens, sampling=sampling)


def test_answers_beside_others_are_those_alone(engine: ParallelEngine) -> None:
    if not kernels().active:
        pytest.skip("the engine's own kernels promise nothing of the kind")
    rng = random.Random(0)
    alone = [engine.generate(request_of(i)).finish() for i in range(6)]
    found: dict[int, Answer] = {}
    called_off: dict[int, tuple[int, ...]] = {}

    def ask(i: int, wait_s: float) -> None:
        time.sleep(wait_s)
        found[i] = engine.generate(request_of(i)).finish()

    def ask_and_leave(i: int, wait_s: float) -> None:
        time.sleep(wait_s)
        cancel = threading.Event()
        generation = engine.generate(request_of(i, n_tokens=200), cancel=cancel)
        for n, _ in enumerate(generation.pieces()):
            if n == 2:
                cancel.set()
        called_off[i] = generation.answer.tokens

    threads = [threading.Thread(target=ask, args=(i, 0.3 * rng.random())) for i in range(6)]
    threads += [threading.Thread(target=ask_and_leave, args=(i, 0.3 * rng.random())) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert [found[i].tokens for i in range(6)] == [answer.tokens for answer in alone]
    assert [found[i].text for i in range(6)] == [answer.text for answer in alone]
    assert all(tokens[:24] == alone[i].tokens[: len(tokens)] for i, tokens in called_off.items())


def test_what_conversations_begin_with_alike_is_read_once(engine: ParallelEngine) -> None:
    def ask(question: str) -> Answer:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        return engine.generate(Request.of(messages, max_tokens=4)).finish()

    first, second, third = ask("Where is Homer?"), ask("Where is Dante?"), ask("Where is Ovid?")
    assert first.stats.n_cached < 40
    assert second.stats.n_cached > 80
    assert third.stats.n_cached > 80


def test_who_finds_no_seat_waits_for_one_and_may_be_called_off(engine: ParallelEngine) -> None:
    cancel = threading.Event()
    cancel.set()
    taken = [engine._free.popleft() for _ in range(engine.n_parallel)]
    try:
        with pytest.raises(Interrupted, match="waiting"):
            engine.generate(request_of(0), cancel=cancel).finish()
    finally:
        engine._free.extend(taken)
    assert engine.n_busy == 0


def test_an_answer_that_is_closed_early_gives_its_seat_back(engine: ParallelEngine) -> None:
    for _ in range(2 * engine.n_parallel):
        generation = engine.generate(request_of(1))
        next(generation.pieces())
        generation.close()
        assert generation.answer.finish_reason == "interrupted"
    assert engine.n_busy == 0


def test_a_closed_engine_refuses(smollm2_path: Path) -> None:
    engine = load_parallel(smollm2_path, None, EngineOptions(n_ctx=256, n_parallel=2, learn="off", copy=False))
    engine.close()
    with pytest.raises(Interrupted, match="closed"):
        engine.generate(request_of(0)).finish()
