"""Adapting by files and bounds: one at a time, stoppable, suspendable; what fails is a sentence."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from learning_pairs import PATH, TinyPair, questions, tiny_pair
from processes import children

from edgellm.app import adapting
from edgellm.app.adapting import AdaptError, AdaptJob, Progress, Training, adapt, alone, prepare
from edgellm.app.background import BackgroundError
from edgellm.app.defaults import BadSetting, adapted_folder, learned_folder
from edgellm.memory.folders import home
from edgellm.memory.plan import DoesNotFit


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> TinyPair:
    """Its folders are the command's own, and its child learns in large strides."""
    monkeypatch.setattr(adapting, "TRAINING", "training_child")
    monkeypatch.setenv("PYTHONPATH", PATH)
    pair = tiny_pair(home())
    assert (pair.learned, pair.adopted) == (learned_folder(), adapted_folder())
    return pair


@pytest.fixture
def job(pair: TinyPair, tmp_path: Path) -> AdaptJob:
    """Sixty answers are there, and every prompt is answered."""
    pair.answered(questions(60))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("question 1\n")
    return prepare(str(pair.target), str(pair.draft), prompts=prompts, n_threads=1)


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_learnt_is_used_and_reported(job: AdaptJob) -> None:
    seen: list[Progress] = []
    outcome = adapt(job, watch=seen.append)
    assert outcome.adopted, outcome.why
    assert not outcome.interrupted
    report = json.loads(json.dumps(outcome.to_json()))
    assert report["adopted"] is True
    assert report["interval"][0] > 1.0
    assert report["new"]["tokens_per_pass"] > report["old"]["tokens_per_pass"]
    assert (report["n_lessons"], report["n_answered"]) == (60, 0)
    assert Path(report["path"]).is_file()
    phases = [progress.phase for progress in seen]
    assert phases.index("answering") < phases.index("learning") < len(phases) - 1 - phases[::-1].index("judging")
    last = [progress for progress in seen if progress.phase == "learning"][-1]
    assert last.n_done == last.n_all > 0
    assert last.seconds_left == 0.0
    assert prepare(str(job.target.path), str(job.draft.path)).adapter is not None  # from where the next one goes on


def test_two_at_once_are_one_and_a_sentence(job: AdaptJob) -> None:
    with alone(job), pytest.raises(AdaptError, match="another process adapts drafter to target"):
        adapt(job)
    with alone(job):  # it was let go
        pass


def test_a_training_stands_still_while_it_is_suspended(job: AdaptJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_TEST_STEP_S", "0.02")
    training = Training.start(job)
    with pytest.raises(AdaptError), alone(job):
        pass
    eventually(lambda: training.poll() is not None or training.progress.n_done)
    training.suspend()
    time.sleep(0.2)
    assert training.poll() is None
    before = training.progress.n_done
    time.sleep(0.4)
    assert training.poll() is None
    assert training.progress.n_done == before
    training.resume()
    eventually(training.poll)
    outcome = training.poll()
    assert outcome is not None
    assert outcome.adopted
    with alone(job):  # it was let go
        pass


def test_a_training_that_is_stopped_while_it_stands_still_keeps_what_it_did(
    job: AdaptJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_TEST_STEP_S", "0.05")
    training = Training.start(job)
    eventually(lambda: training.poll() is not None or training.progress.n_done)
    training.suspend()
    assert training.stop().interrupted
    with alone(job):
        pass
    seen: list[Progress] = []
    assert Training.start(job, watch=seen.append).finish().adopted
    assert min(progress.n_done for progress in seen if progress.n_done) > 1


def test_what_is_cancelled_is_gone_on_with(job: AdaptJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_TEST_STEP_S", "0.05")
    cancel = threading.Event()

    def watch(progress: Progress) -> None:
        if progress.phase == "learning" and progress.n_done > 2:
            cancel.set()

    outcome = adapt(job, cancel=cancel, watch=watch)
    assert outcome.interrupted
    assert not outcome.adopted
    assert "goes on" in outcome.why
    monkeypatch.delenv("EDGELLM_TEST_STEP_S")
    seen: list[Progress] = []
    assert adapt(job, watch=seen.append).adopted
    assert min(progress.n_done for progress in seen if progress.phase == "learning" and progress.n_done) > 2


def test_a_child_that_is_killed_is_a_sentence(job: AdaptJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_TEST_STEP_S", "0.05")
    before = children()
    training = Training.start(job)
    eventually(lambda: training.poll() is not None or training.progress.n_done)
    (process,) = children() - before
    process.kill()
    with pytest.raises(BackgroundError, match="training failed: it was ended by SIGKILL"):
        training.finish()
    with alone(job):
        pass


def test_what_does_not_fit_says_so_before_it_begins(job: AdaptJob) -> None:
    with pytest.raises(DoesNotFit, match="takes"):
        adapt(replace(job, mem_bytes=1000))


def test_what_cannot_be_adapted_is_refused_at_once(pair: TinyPair, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="name a --draft"):
        prepare(str(pair.target), "none")
    with pytest.raises(BadSetting, match="no file that is here"):
        prepare(str(pair.target), str(pair.draft), prompts=tmp_path / "nothing")


def test_answers_to_prompts_are_kept_among_the_lessons(pair: TinyPair, tmp_path: Path) -> None:
    """The real child: a target of random weights answers, and is not asked again."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Why?\n")
    job = prepare(str(pair.target), str(pair.draft), prompts=prompts, n_threads=1)
    first, second = adapt(job), adapt(job)
    assert (first.n_answered, second.n_answered) == (1, 0)
    assert not first.adopted
    assert "too few lessons" in first.why
    assert first.to_json()["ratio"] is None
