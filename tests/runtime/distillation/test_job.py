"""A training from lessons to a drafter that is used: better or not at all, whatever ends it in between."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning_pairs import PATH, TinyPair, questions, tiny_pair
from processes import children, runs
from training_child import STRIDES

from edgellm.memory import files
from edgellm.memory.children import Child, ChildFailed
from edgellm.memory.draft_adapter import read_draft_adapter
from edgellm.memory.gguf import read_header
from edgellm.memory.plan import DoesNotFit
from edgellm.memory.shape import from_header
from edgellm.memory.training_size import training_bytes
from edgellm.runtime.distillation import job
from edgellm.runtime.distillation.adopted import Adopted
from edgellm.runtime.distillation.curriculum import id_of
from edgellm.runtime.distillation.judging import Hits
from edgellm.runtime.distillation.lesson import Sample
from edgellm.runtime.distillation.orders import Result, TrainingOrder
from edgellm.runtime.distillation.training import TrainingSettings
from edgellm.runtime.distillation.watching import RunningClock

Events = list[Mapping[str, Any]]


@pytest.fixture
def pair(tmp_path: Path) -> TinyPair:
    return tiny_pair(tmp_path / "pair")


@pytest.fixture
def in_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "settings_for", lambda taught, n_threads: TrainingSettings(**STRIDES))


def run(order: TrainingOrder) -> tuple[Result, Events]:
    """In this process."""
    events: Events = []
    return job.Course(order, events.append, RunningClock()).run(), events


def in_use(pair: TinyPair) -> Path | None:
    found = Adopted(pair.adopted).find(pair.order().target_key, files.sha256_of(pair.draft))
    return found.path if found is not None else None


def adapter_in_use(pair: TinyPair) -> str:
    found = Adopted(pair.adopted).find(pair.order().target_key, files.sha256_of(pair.draft))
    assert found is not None
    assert found.adapter is not None
    return str(found.adapter.path)


@pytest.mark.usefixtures("in_strides")
def test_what_makes_it_better_is_used_and_says_by_what_it_was_judged(pair: TinyPair) -> None:
    lessons = pair.answered(questions(60))
    result, events = run(pair.order(output=str(pair.folder / "out.adapter")))
    assert result.adopted, result.why
    assert result.path == str(in_use(pair))
    assert Path(result.path).stat().st_size == pair.draft.stat().st_size
    record = read_draft_adapter(Path(adapter_in_use(pair))).record
    assert record["after"]["tokens_per_pass"] > 1.5 * record["before"]["tokens_per_pass"]
    assert record["interval"][0] > 1.0
    assert set(record["lessons"]) == {id_of(one) for one in lessons}
    assert record["n_tokens"] == result.n_tokens > 0
    assert read_draft_adapter(pair.folder / "out.adapter").record == record
    assert [event["step"]["n_done"] for event in events if "step" in event][:2] == [1, 2]


def test_what_makes_it_no_better_is_not_used(pair: TinyPair) -> None:
    """In strides of the usual size a tiny model of random weights learns nothing from some answers."""
    pair.answered(questions(60))
    result, _ = run(pair.order(output=str(pair.folder / "out.adapter")))
    assert not result.adopted
    assert "not used" in result.why
    assert result.comparison is not None
    assert in_use(pair) is None
    assert (pair.folder / "out.adapter").is_file()  # who asks for it gets it


@pytest.mark.usefixtures("in_strides")
def test_what_is_learnt_and_not_judged_yet_is_judged_by_the_next(
    pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.answered(questions(60))
    with monkeypatch.context() as patched:
        hits, n_asked = job.Trial.hits, [0]

        def stopped(trial: job.Trial) -> list[Hits]:
            n_asked[0] += 1
            if n_asked[0] > 1:
                raise job.Stopped("it was stopped while the drafter was judged")
            return hits(trial)

        patched.setattr(job.Trial, "hits", stopped)
        result, _ = run(pair.order())
        assert (result.adopted, result.reason) == (False, "stopped")
    result, events = run(pair.order())
    assert result.adopted
    assert not [event for event in events if "step" in event]
    assert not list(pair.adopted.glob("training-*"))


@pytest.mark.usefixtures("in_strides")
def test_what_takes_longer_than_was_thought_ends_in_time_and_is_judged(
    pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.answered(questions(60))
    monkeypatch.setattr(job, "LEARNING_COST", 0.01)

    class Late(RunningClock):
        """Each look at it takes a while."""

        @property
        def seconds(self) -> float:
            self.now = getattr(self, "now", 0.0) + 1.0
            return self.now

        @seconds.setter
        def seconds(self, value: float) -> None: ...

    result = job.Course(pair.order(seconds=10.0), lambda event: None, Late()).run()
    assert result.reason == "time"
    assert result.comparison is not None


@pytest.mark.parametrize("n", [0, 5])
def test_of_too_few_lessons_nothing_is_learnt(pair: TinyPair, n: int) -> None:
    pair.answered(questions(n))
    result, events = run(pair.order())
    assert not result.adopted
    assert "too few lessons" in result.why
    assert not [event for event in events if "step" in event]


@pytest.mark.usefixtures("in_strides")
def test_it_goes_on_from_what_is_in_use_with_what_is_new(pair: TinyPair) -> None:
    first = pair.answered(questions(60))
    run(pair.order())
    before = adapter_in_use(pair)
    result, _ = run(pair.order(adapter=before))
    assert "too few lessons: 0 new ones" in result.why
    second = pair.answered(questions(60, "other"), b"the in " * 8)
    result, _ = run(pair.order(adapter=before))
    assert result.taken_back is None
    assert result.n_lessons == 120
    if result.adopted:
        record = read_draft_adapter(Path(adapter_in_use(pair))).record
        assert record["start"] == files.sha256_of(Path(before)) if Path(before).exists() else True
        assert set(record["lessons"]) <= {id_of(one) for one in (*first, *second)}


@pytest.mark.usefixtures("in_strides")
def test_what_got_worse_is_taken_back_and_the_reason_is_kept(pair: TinyPair) -> None:
    pair.answered(questions(60))
    run(pair.order())
    before = adapter_in_use(pair)
    pair.answered(questions(40, "later"), _plain_answer(pair))
    result, events = run(pair.order(adapter=before))
    assert result.taken_back is not None
    assert "95 % interval" in result.taken_back
    assert [event for event in events if "taken_back" in event]
    (given_up,) = Adopted(pair.adopted).taken_back(pair.order().target_key, files.sha256_of(pair.draft))
    assert given_up.why == result.taken_back


def _plain_answer(pair: TinyPair) -> bytes:
    """A byte over and over, with which the plain drafter goes on by itself."""
    network = job.Network.open(pair.draft)
    shares = {}
    for value in range(32, 127):  # bytes are the first tokens
        tokens = np.full(40, value, np.int32)
        shares[value] = float(network.agreement([Sample(tokens, tokens)])[0].mean())
    best = max(shares, key=lambda value: shares[value])
    assert shares[best] > 0.5, "no byte goes on"
    return bytes([best]) * 40


def child(order: TrainingOrder, *, step_s: float = 0.0) -> Child:
    environment = {"PYTHONPATH": PATH, "EDGELLM_TEST_STEP_S": str(step_s), "OPENBLAS_NUM_THREADS": "1"}
    return Child("training_child", order.to_json(), environment=environment, timeout_s=120.0)


def told(asked: Child, until: str) -> Iterator[Mapping[str, Any]]:
    """What it tells up to the first event that has `until`."""
    for event in asked.answers():
        yield event
        if until in event:
            return


def test_a_training_that_is_stopped_goes_on_where_it_was(pair: TinyPair) -> None:
    pair.answered(questions(60))
    with child(pair.order(), step_s=0.05) as asked:
        events: Events = []
        for event in asked.answers():
            events.append(event)
            if "step" in event and event["step"]["n_done"] == 5:
                asked.ask_to_stop()
    stopped = Result(**events[-1]["result"])
    assert (stopped.reason, stopped.adopted) == ("stopped", False)
    n_done = max(event["step"]["n_done"] for event in events if "step" in event)
    pair.answered(questions(5, "meanwhile"))  # which change nothing about what was begun
    with child(pair.order()) as asked:
        events = list(asked.answers())
    assert {"resumed": True} in events
    assert min(event["step"]["n_done"] for event in events if "step" in event) == n_done + 1
    assert Result(**events[-1]["result"]).adopted
    assert not list(pair.adopted.glob("training-*"))


def test_a_child_that_is_killed_whenever_loses_no_lesson_and_adopts_nothing_by_half(pair: TinyPair) -> None:
    pair.answered(questions(60))
    rng = random.Random(0)
    for _ in range(4):
        with child(pair.order(), step_s=0.02) as asked:
            events = asked.answers()
            for _ in range(rng.randrange(1, 40)):
                if next(events, None) is None:
                    break
            asked.end()
        found = in_use(pair)
        assert found is None or found.stat().st_size == pair.draft.stat().st_size
    assert not list(pair.adopted.glob("*.damaged"))
    result, _ = run_in_child(pair)
    assert result.adopted
    assert result.n_lessons == 60


def run_in_child(pair: TinyPair, **more: object) -> tuple[Result, Events]:
    with child(pair.order(**more)) as asked:
        events = list(asked.answers())
    return Result(**events[-1]["result"]), events


def test_it_is_polite_and_leaves_ctrl_c_to_its_parent(pair: TinyPair) -> None:
    pair.answered(questions(60))
    before = children()
    with child(pair.order(), step_s=0.05) as asked:
        list(told(asked, "step"))
        (process,) = children() - before
        assert process.nice() >= 10
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert runs(process)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size to set")
def test_a_full_disk_is_a_sentence_and_leaves_what_was_in_use(
    pair: TinyPair, monkeypatch: pytest.MonkeyPatch, in_strides: None
) -> None:
    pair.answered(questions(60))

    def full(path: Path, data: bytes, *, private: bool = False) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(OSError, match="No space left"):
        run(pair.order())
    monkeypatch.undo()
    assert in_use(pair) is None
    assert not [path for path in pair.adopted.glob("*") if path.is_dir()]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size to set")
def test_where_no_file_can_be_written_the_child_says_so(pair: TinyPair) -> None:
    pair.answered(questions(60))
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        asked = child(pair.order())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with asked, contextlib.suppress(ChildFailed):
        events = list(asked.answers())
    failed = [event for event in events if "errno" in event]
    assert failed, events[-1]
    assert in_use(pair) is None


def test_what_does_not_fit_is_refused_before_it_is_read(pair: TinyPair) -> None:
    pair.answered(questions(60))
    with pytest.raises(DoesNotFit, match=r"training tiny-drafter takes .* and there are .*--mem"):
        run(pair.order(mem_bytes=100_000))


def test_fewer_threads_take_less_memory(pair: TinyPair) -> None:
    pair.answered(questions(60))
    shape = from_header(read_header(pair.draft))
    one, four = (training_bytes(shape, n) for n in (1, 4))
    assert one < four
    course = job.Course(pair.order(n_threads=4, mem_bytes=one), lambda event: None, RunningClock())
    course._open(course._curriculum())
    assert course.order.n_threads == 1


def test_orders_and_results_travel_as_json(pair: TinyPair) -> None:
    order = pair.order(output=os.fsdecode(b"caf\xe9.adapter"))
    assert TrainingOrder(**json.loads(json.dumps(order.to_json()))) == order
    result = replace(Result(True, "why"), comparison={"ratio": 1.0})
    assert Result(**json.loads(json.dumps(result.to_json()))) == result
