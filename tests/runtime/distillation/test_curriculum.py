"""What was asked decides whether an answer teaches, stops or judges, and nothing changes that later."""

from __future__ import annotations

import numpy as np

from edgellm.runtime.distillation.curriculum import (
    FEW_JUDGES,
    JUDGING,
    MAX_JUDGED_TOKENS,
    REPLAYED,
    Named,
    arrange,
    id_of,
    is_judging,
    n_tokens_of,
    newest,
    part_of,
)
from edgellm.runtime.distillation.lesson import Lesson, Sample


def lesson(question: str, *tokens: int) -> Lesson:
    return Lesson((("user", question),), tokens or (1, 2, 3), ended=True)


def sample(lesson: Lesson) -> Sample:
    return Sample(np.zeros(10, np.int32), np.array(lesson.tokens, np.int32))


LESSONS = [lesson(f"question {i}", i, i + 1) for i in range(400)]


def names(part: list[Named]) -> set[str]:
    return {name for name, _ in part}


def test_an_eighth_judges_and_never_teaches_whatever_was_added_since() -> None:
    before, after = arrange(LESSONS[:200], sample, ()), arrange(LESSONS, sample, ())
    assert 30 <= len(after.judging) <= 70
    assert names(before.judging) <= names(after.judging)
    for found in (before, after):
        assert not names(found.judging) & names(found.new)
        assert not names(found.stopping) & (names(found.new) | names(found.judging))
    assert names(after.judging) == {id_of(one) for one in LESSONS if is_judging(one)}


def test_where_chance_left_too_few_that_judge_new_lessons_do_and_are_not_learnt() -> None:
    unlucky = [one for one in LESSONS if not is_judging(one)][:60]
    found = arrange(unlucky, sample, ())
    assert len(found.judging) == FEW_JUDGES
    assert not names(found.judging) & (names(found.new) | names(found.stopping))
    assert names(arrange(unlucky, sample, ()).judging) == names(found.judging)
    seen = {id_of(one) for one in unlucky[:50]}
    again = arrange(unlucky, sample, seen)
    assert len(again.judging) == 2, "of ten that are new a quarter at most"
    assert not names(again.judging) & seen


def test_another_answer_to_the_same_question_is_in_the_same_part() -> None:
    for one in LESSONS[:50]:
        assert part_of(one) == part_of(lesson(one.messages[0][1], 9, 9))
        assert id_of(one) != id_of(lesson(one.messages[0][1], 9, 9))


def test_what_was_learnt_is_learnt_again_by_half_as_much_and_what_is_new_is_told_apart() -> None:
    seen = {id_of(one) for one in LESSONS[:300]}
    found = arrange(LESSONS, sample, seen)
    assert names(found.newer) == {id_of(one) for one in LESSONS[300:]}
    assert not names(found.new) & seen
    assert names(found.old) <= seen
    taught = found.taught(10**6)
    again = [one for one in taught if one[0] in seen]
    assert names(found.new) <= names(taught)
    assert 0 < n_tokens_of(again) <= REPLAYED * n_tokens_of(found.new)
    assert found.known == tuple(id_of(one) for one in LESSONS)


def test_of_too_many_the_newest_are_taken() -> None:
    found = arrange(LESSONS, sample, ())
    few = found.taught(20 * 12)
    assert [name for name, _ in few] == [name for name, _ in found.new[-20:]]
    assert len(found.taught(0, 5 * 12)) == 5
    assert newest(found.new, 11) == []
    long = [lesson(f"question {i}", *range(5_000)) for i in range(200)]
    assert n_tokens_of(arrange(long, sample, ()).judging) <= MAX_JUDGED_TOKENS


def test_lessons_without_words_are_counted_and_left_out() -> None:
    found = arrange(LESSONS[:20], lambda one: None, ())
    assert (found.n_unusable, found.new, found.judging) == (20, [], [])


def test_a_lesson_that_is_there_twice_is_one() -> None:
    assert len(arrange([LESSONS[0]] * 3, sample, ()).known) == 1
    assert len(JUDGING) == 2
