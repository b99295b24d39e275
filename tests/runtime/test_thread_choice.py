"""The number of threads follows what passes take."""

import itertools
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_cpp as api
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.backends.thread_choice import Crowd, ThreadChoice


def run(choice: ThreadChoice, seconds: dict[int, float], n_passes: int, *, noise: float = 0.0) -> list[int]:
    """Passes of one token; what was chosen for each. `seconds`: by threads."""
    chosen, rng = [], random.Random(n_passes)
    for _ in range(n_passes):
        n = choice.next(1)
        choice.took(1, n, seconds[n] * (1 + noise * rng.random()))
        chosen.append(n)
    return chosen


def choice_of(n_most: int, *, crowded: bool = False) -> ThreadChoice:
    return ThreadChoice(n_most, lambda: crowded)


def test_nothing_else_is_tried_while_nobody_else_computes_and_passes_take_what_they_took() -> None:
    assert set(run(choice_of(4), {1: 0.02, 2: 0.01, 4: 0.005}, 500, noise=0.2)) == {4}


def test_where_others_compute_each_number_is_looked_at_once_and_the_fastest_stays() -> None:
    chosen = run(choice_of(4, crowded=True), {1: 0.02, 2: 0.01, 4: 0.005}, 500, noise=0.2)
    assert [chosen.count(n) for n in (1, 2)] == [2, 2]
    assert set(chosen[20:]) == {4}
    assert run(choice_of(4, crowded=True), {1: 0.02, 2: 0.004, 4: 0.008}, 200)[20:].count(2) >= 170


def test_a_core_that_another_program_takes_is_noticed_and_that_it_is_free_again() -> None:
    choice = choice_of(2)
    run(choice, {1: 0.009, 2: 0.006}, 100)
    busy = run(choice, {1: 0.010, 2: 0.020}, 300, noise=0.1)
    assert busy[20:].count(2) <= 12
    free = run(choice, {1: 0.009, 2: 0.006}, 600, noise=0.1)
    assert set(free[-100:]) == {2}


def test_a_machine_that_is_busy_from_the_start_is_noticed() -> None:
    busy = run(choice_of(2, crowded=True), {1: 0.010, 2: 0.025}, 200, noise=0.1)
    assert busy[8:].count(2) <= 10


def test_what_one_width_showed_holds_for_all() -> None:
    choice = choice_of(2, crowded=True)
    run(choice, {1: 0.010, 2: 0.025}, 20)
    assert choice.next(5) == 1


def test_passes_that_are_slow_for_another_reason_are_looked_into_once() -> None:
    choice = choice_of(2)
    run(choice, {1: 0.009, 2: 0.005}, 100)
    assert run(choice, {1: 0.018, 2: 0.010}, 500, noise=0.1).count(1) <= 4


def test_a_single_pass_that_was_held_up_changes_nothing() -> None:
    choice = choice_of(2)
    run(choice, {1: 0.009, 2: 0.006}, 50)
    choice.took(1, 2, 5.0)
    assert set(run(choice, {1: 0.009, 2: 0.006}, 50)[4:]) == {2}


def test_a_program_that_computes_beside_this_one_is_a_crowd() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        crowd = Crowd()
        time.sleep(0.5)
        found = crowd()
        other.kill()
    assert found


def test_one_thread_leaves_no_choice() -> None:
    assert set(run(ThreadChoice(1), {1: 0.1}, 200)) == {1}


@pytest.mark.skipif(not kernels().active, reason="the kernels do not run here")
def test_what_is_chosen_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaModel(write_tiny(tmp_path / "tiny.gguf", weights="Q8_0"))
    rows = []
    for chosen in ((2,), (1, 2), (2, 1, 1), (1,)):
        turns = itertools.cycle(chosen)
        monkeypatch.setattr(ThreadChoice, "next", lambda self, n, turns=turns: next(turns))
        backend = LlamaBackend(model, ContextSettings(n_ctx=256, n_threads=2))
        rows.append([backend.forward([7 * i % 300] * (1 + i % 3), 1)[0].copy() for i in range(40)])
        backend.close()
    model.close()
    assert all(np.array_equal(rows[0], one) for one in rows)


@pytest.mark.skipif(not kernels().active, reason="the kernels do not run here")
def test_the_engine_is_told_for_passes_of_any_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(api, "llama_set_n_threads", lambda _, one, several: told.append((one, several)))
    monkeypatch.setattr(ThreadChoice, "next", lambda self, n: 1)
    model = LlamaModel(write_tiny(tmp_path / "tiny.gguf", weights="Q8_0"))
    backend = LlamaBackend(model, ContextSettings(n_ctx=256, n_outputs=4, n_threads=2))
    backend.forward([1] * 100, 0)
    assert set(told) == {(2, 2)}, "a prompt takes all"
    told.clear()
    backend.forward([2], 1)
    backend.forward([3] * 4, 4)
    assert told == [(1, 1), (1, 1)]
    backend.close()
    model.close()
