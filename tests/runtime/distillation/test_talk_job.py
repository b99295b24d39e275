"""A target answers until there are lessons enough, and no longer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from learning_pairs import TinyPair, questions, tiny_pair

from edgellm.memory.plan import DoesNotFit
from edgellm.runtime.distillation import talk_job
from edgellm.runtime.distillation.judging import MIN_ANSWERS
from edgellm.runtime.distillation.orders import TalkOrder


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyPair:
    monkeypatch.setattr(talk_job, "ANSWER_TOKENS", 24)
    return tiny_pair(tmp_path / "pair")


def order(pair: TinyPair, **more: Any) -> TalkOrder:
    plain = TalkOrder(
        target=str(pair.target),
        target_name="tiny",
        learned=str(pair.learned),
        n_tokens=200,
        seconds=60.0,
        n_threads=1,
    )
    return replace(plain, **more)


def talk(asked: TalkOrder) -> list[Mapping[str, Any]]:
    events: list[Mapping[str, Any]] = []
    talk_job.talk(asked, events.append)
    return events


def test_with_lessons_enough_nothing_is_asked_and_no_weights_are_read(
    pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.answered(questions(80))
    monkeypatch.setattr(talk_job, "Talker", None)
    (event,) = talk(order(pair))
    assert event["n_lessons"] == 80
    assert event["n_tokens"] >= 200


def test_with_too_few_it_asks_itself_until_there_are_enough_to_learn_and_to_judge(pair: TinyPair) -> None:
    events = talk(order(pair))
    assert events[0]["n_lessons"] == 0
    assert events[-1]["n_tokens"] >= 200
    (event,) = talk(order(pair))  # they are kept, and are enough
    assert event["n_lessons"] == events[-1]["n_lessons"]


def test_lessons_that_a_drafter_has_learnt_are_not_new(pair: TinyPair) -> None:
    from edgellm.runtime.distillation.curriculum import id_of, is_judging
    from edgellm.runtime.distillation.lessons import SavedLessons
    from edgellm.runtime.distillation.talk_job import Lessons

    lessons = pair.answered(questions(60))
    saved = SavedLessons(None, 320)
    for lesson in lessons:
        saved.add(lesson)
    seen = {id_of(lesson) for lesson in lessons[:50]}
    counted = Lessons(saved, seen)
    assert counted.n_new == 10
    assert counted.n_tokens == sum(len(lesson.tokens) for lesson in lessons[50:])
    assert counted.n_judging == sum(map(is_judging, lessons)) >= MIN_ANSWERS


def test_a_full_disk_is_told_and_damages_nothing(pair: TinyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.answered(questions(10))
    with monkeypatch.context() as patched:

        def full(path: Path, data: bytes, *, private: bool = False) -> None:
            raise OSError(28, "No space left on device", str(path))

        patched.setattr("edgellm.memory.files.write", full)
        with pytest.raises(OSError, match="No space left"):
            talk(order(pair))
    assert talk(order(pair, seconds=0.0))[0]["n_lessons"] == 10


def test_without_time_nothing_is_begun(pair: TinyPair) -> None:
    events = talk(order(pair, seconds=0.0))
    assert [event["n_lessons"] for event in events] == [0]


def test_what_does_not_fit_is_refused_and_less_memory_means_fewer_texts_at_once(pair: TinyPair) -> None:
    with pytest.raises(DoesNotFit, match=r"tiny takes .* to answer questions.*--mem"):
        talk_job.fitting_sequences(order(pair, mem_bytes=1000))
    sizes = [n * 2**20 for n in range(40, 200, 4)]
    found = []
    for n_bytes in sizes:
        try:
            found.append(talk_job.fitting_sequences(order(pair, mem_bytes=n_bytes)))
        except DoesNotFit:
            found.append(0)
    assert found == sorted(found)
    assert found[-1] == 16
    assert {0, 16} < set(found)
