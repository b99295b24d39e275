"""Who takes part in which pass, on a context that only counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest

from edgellm.runtime.backends.base import EngineError, Interrupted
from edgellm.runtime.backends.llama_sequences import LlamaSequences, Part
from edgellm.runtime.parallel.passes import Job, Meeting, PassQueue


class CountingContext:
    """A shared context whose logits say which token they follow."""

    def __init__(self, n_sequences: int, *, n_batch: int = 64, n_outputs: int = 16) -> None:
        self.n_batch, self.n_outputs = n_batch, n_outputs
        self.held: list[list[int]] = [[] for _ in range(n_sequences)]
        self.passes: list[list[Part]] = []
        self.fails = False
        self.on_pass: Callable[[], None] | None = None

    def forward(self, parts: Sequence[Part], *, wants_states: bool = False) -> tuple[list[Any], float]:
        assert not wants_states or (len(parts) == 1 and parts[0].n_outputs == len(parts[0].tokens))
        if self.on_pass is not None:
            self.on_pass()
        if self.fails:
            raise EngineError("it failed")
        time.sleep(0.002)  # the engine computes, and whoever comes in can do so
        assert 0 < sum(len(part.tokens) for part in parts) <= self.n_batch
        assert sum(part.n_outputs for part in parts) <= self.n_outputs
        assert len({part.sequence for part in parts}) == len(parts)
        self.passes.append(list(parts))
        for part in parts:
            self.held[part.sequence] += part.tokens
        rows = [np.array(part.tokens[len(part.tokens) - part.n_outputs :], np.float32)[:, None] for part in parts]
        self.states = np.array([[token, -token] for part in parts for token in part.tokens], np.float32)
        return rows, 0.01

    def hidden_states(self, n: int) -> Any:
        assert len(self.states) == n
        return self.states


class Conversations:
    """Threads that want passes, each in its turn."""

    def __init__(self, n: int, **limits: int) -> None:
        self.context = CountingContext(n, **limits)
        self.meeting = Meeting()
        self.queue: PassQueue = self.meeting.queue(cast(LlamaSequences, self.context))
        self.stops = [threading.Event() for _ in range(n)]
        self.failures: list[Exception] = []

    def run(self, *wanted: Sequence[tuple[list[int], int]]) -> None:
        """Each conversation's passes: tokens and rows. All have come in before the first wants anything."""
        ready = threading.Barrier(len(wanted))

        def talk(sequence: int, passes: Sequence[tuple[list[int], int]]) -> None:
            ready.wait()
            try:
                with self.meeting.member():
                    for tokens, n_outputs in passes:
                        rows = self.meeting.wait(self.queue, Job(sequence, tokens, n_outputs), self.stops[sequence])
                        assert rows[:, 0].tolist() == tokens[len(tokens) - n_outputs :]
            except Exception as error:
                self.failures.append(error)

        threads = [threading.Thread(target=talk, args=item, daemon=True) for item in enumerate(wanted)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive(), "somebody waits for ever"


def test_each_gets_the_rows_of_its_own_tokens_in_its_own_order() -> None:
    talk = Conversations(4)
    talk.run(*[[([100 * sequence + i, 100 * sequence + i + 1], 2) for i in range(0, 40, 2)] for sequence in range(4)])
    assert not talk.failures
    assert talk.context.held == [[100 * sequence + i for i in range(40)] for sequence in range(4)]


def test_who_decodes_together_shares_passes() -> None:
    talk = Conversations(4)
    talk.run(*[[([i], 1) for i in range(50)] for _ in range(4)])
    # The first passes may start before all have come in; after that all four are in each.
    assert len(talk.context.passes) <= 60
    assert sum(len(parts) == 4 for parts in talk.context.passes) >= 40


def test_decoding_never_waits_for_more_than_a_slice() -> None:
    talk = Conversations(2, n_batch=64)
    talk.queue.slice_for = lambda n, context: 10
    talk.run([([i], 1) for i in range(60)], [(list(range(200)), 0)])
    assert not talk.failures
    shared = [parts for parts in talk.context.passes if len(parts) == 2]
    assert shared
    for parts in shared:
        assert next(len(part.tokens) for part in parts if part.sequence == 1) <= 10


def test_a_reader_alone_takes_whole_passes() -> None:
    talk = Conversations(1, n_batch=64)
    talk.queue.slice_for = lambda n, context: 1
    talk.run([(list(range(200)), 0)])
    assert [len(parts[0].tokens) for parts in talk.context.passes] == [64, 64, 64, 8]


def test_rows_of_a_text_that_is_read_in_slices_come_with_its_last_tokens() -> None:
    talk = Conversations(2, n_batch=32)
    talk.queue.slice_for = lambda n, context: 8
    talk.run([([i], 1) for i in range(40)], [(list(range(150)), 3)])
    assert not talk.failures
    rows = [part.n_outputs for parts in talk.context.passes for part in parts if part.sequence == 1]
    assert rows[-1] == 3
    assert not any(rows[:-1])


def test_what_has_no_room_in_a_pass_waits_for_the_next() -> None:
    talk = Conversations(3, n_batch=20, n_outputs=16)
    talk.run(*[[([*range(12)], 12)] for _ in range(3)])
    assert not talk.failures
    assert [len(held) for held in talk.context.held] == [12, 12, 12]


def test_a_pass_that_fails_is_told_to_all_who_were_in_it_and_others_go_on() -> None:
    talk = Conversations(2)
    talk.context.fails = True
    talk.run([([1], 1)], [([2], 1)])
    assert [str(error) for error in talk.failures] == ["it failed", "it failed"]
    talk.context.fails = False
    talk.run([([1], 1)], [([2], 1)])
    assert len(talk.failures) == 2


def test_reading_is_called_off_between_slices_and_nobody_else_is() -> None:
    talk = Conversations(2, n_batch=16)
    talk.queue.slice_for = lambda n, context: 8

    def stop_in_the_third() -> None:
        if len(talk.context.passes) == 3:
            talk.stops[1].set()

    talk.context.on_pass = stop_in_the_third
    talk.run([([i], 1) for i in range(30)], [(list(range(1000)), 0)])
    assert [type(error) for error in talk.failures] == [Interrupted]
    assert len(talk.context.held[0]) == 30
    assert len(talk.context.held[1]) < 100


def test_a_drafters_prompt_that_is_read_does_not_stop_others_from_verifying() -> None:
    talk = Conversations(2, n_batch=16)
    drafter = CountingContext(2, n_batch=16)
    own = talk.meeting.queue(cast(LlamaSequences, drafter))
    order: list[str] = []
    talk.context.on_pass = lambda: order.append("target")
    drafter.on_pass = lambda: order.append("drafter")
    ready = threading.Barrier(2)

    def read() -> None:
        ready.wait()
        with talk.meeting.member():
            talk.meeting.wait(own, Job(1, list(range(160)), 0), talk.stops[1])

    def decode() -> None:
        ready.wait()
        with talk.meeting.member():
            for i in range(8):
                talk.meeting.wait(talk.queue, Job(0, [i], 1), talk.stops[0])

    threads = [threading.Thread(target=work, daemon=True) for work in (read, decode)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    together = order[order.index("target") : len(order) - order[::-1].index("target")]
    assert not any(a == b == "drafter" for a, b in pairwise(together))


def test_who_does_something_long_lets_others_have_their_passes_in_between() -> None:
    talk = Conversations(2)
    ready, seen = threading.Barrier(2), []

    def put_back() -> None:
        ready.wait()
        with talk.meeting.member():
            while len(seen) < 200 and talk.context.held[0] != list(range(12)):
                talk.meeting.give_way()
                seen.append(len(talk.context.passes))
                time.sleep(0.001)

    def decode() -> None:
        ready.wait()
        with talk.meeting.member():
            for i in range(12):
                talk.meeting.wait(talk.queue, Job(0, [i], 1), talk.stops[0])

    threads = [threading.Thread(target=work, daemon=True) for work in (put_back, decode)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert seen[-1] == 12
    assert len(seen) < 200


@pytest.mark.parametrize("n_tokens", [1, 31, 32, 33, 100])
def test_a_job_of_any_length_ends(n_tokens: int) -> None:
    talk = Conversations(2, n_batch=20, n_outputs=17)
    talk.queue.slice_for = lambda n, context: 0
    talk.run([([i], 1) for i in range(40)], [(list(range(n_tokens)), min(17, n_tokens))])
    assert not talk.failures
    assert len(talk.context.held[1]) == n_tokens


def test_who_wants_states_has_every_second_pass_alone() -> None:
    context = CountingContext(3)
    queue = PassQueue(cast(LlamaSequences, context))
    queue.jobs += [Job(0, [1, 2], 2, wants_states=True), Job(1, [3], 1), Job(2, [4], 1)]
    for again in (Job(0, [5, 6], 2, wants_states=True), None, None):
        jobs, parts = queue.compose()
        queue.run(jobs, parts)
        if again is not None:
            first, queue.jobs[0] = queue.jobs[0], again
    assert [[part.sequence for part in one] for one in context.passes] == [[0], [1, 2], [0]]
    assert first.states is not None
    assert first.states.tolist() == [[1, -1], [2, -2]]
