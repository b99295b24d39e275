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
from edgellm.runtime.bringup.load import load
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.generation import Generation
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


def test_more_conversations_than_seats_are_remembered(engine: ParallelEngine) -> None:
    """And each goes on as if nobody else had been there."""
    if not kernels().active:
        pytest.skip("the engine's own kernels share no cells")

    def ask(i: int) -> Answer:
        system = f"You are the librarian of house {i}. " + SYSTEM.replace("catalogue", f"catalogue {i}")
        messages = [{"role": "system", "content": system}, {"role": "user", "content": "Where is Homer?"}]
        return engine.generate(Request.of(messages, max_tokens=8)).finish()

    n = engine.n_parallel + 3
    first = [ask(i) for i in range(n)]
    again = [ask(i) for i in range(n)]
    assert all(answer.stats.n_cached < 40 for answer in first[1:])
    assert [answer.stats.n_cached for answer in again] == [answer.stats.n_prompt - 1 for answer in again]
    assert [answer.tokens for answer in again] == [answer.tokens for answer in first]


def test_answers_are_those_alone_while_beginnings_are_parked_and_let_go(
    engine: ParallelEngine, smollm2_path: Path
) -> None:
    """More texts than the pool holds, from several threads at once, some of them called off."""
    if not kernels().active:
        pytest.skip("the engine's own kernels promise nothing of the kind")
    rng = random.Random(3)

    def asked(i: int) -> Request:
        system = f"You are the librarian of house {i % 5}. " + SYSTEM * (2 + i % 2)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": QUESTIONS[i % 3]}]
        return Request.of(messages, max_tokens=10, sampling=Sampling(temperature=0.7, seed=i) if i % 2 else Sampling())

    with load(smollm2_path, None, EngineOptions(n_ctx=512, learn="off", copy=False)) as single:
        alone = [Generation(single, asked(i)).finish().tokens for i in range(15)]
    left = [i for i in range(15) for _ in range(2)]
    rng.shuffle(left)
    wrong: list[int] = []

    def talk(seed: int) -> None:
        mine = random.Random(seed)
        while left:
            i, cancel = left.pop(), threading.Event()
            generation, n_most = engine.generate(asked(i), cancel=cancel), mine.choice([0, 3, 99, 99])
            for n, _ in enumerate(generation.pieces(), 1):
                if n >= n_most:
                    cancel.set()
            tokens = generation.answer.tokens
            if tokens != (alone[i] if n_most == 99 else alone[i][: len(tokens)]):
                wrong.append(i)

    threads = [threading.Thread(target=talk, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()
    assert not wrong
    assert engine.n_busy == 0


def test_a_conversation_gets_the_seat_that_holds_it(engine: ParallelEngine) -> None:
    cancel = threading.Event()
    for i, seat in enumerate(engine._parts.seats):
        engine.generate(request_of(i, n_tokens=2)).finish()
        with engine._parts.meeting.member():
            seat.backend.truncate(0)
            seat.backend.forward([100 + i] * 40, 0)
    for i in (1, 0, 2, 1):
        with engine.seat(cancel, [100 + i] * 50) as seat:
            assert seat is engine._parts.seats[i]


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
