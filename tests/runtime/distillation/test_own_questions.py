"""A target that asks itself: many kinds in turn, nothing twice, and what it wrote is gone on with."""

from __future__ import annotations

from collections import Counter

from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.distillation.own_questions import FOLLOW_UP_SHARE, TEXT_SHARE, OwnQuestions, themes
from edgellm.runtime.distillation.questions import Question


def served(own: OwnQuestions, n: int) -> list[Question]:
    """The first `n` of its questions, each answered by a text that is not said twice."""
    asked: list[Question] = []
    while len(asked) < n and (question := own.next()) is not None:
        i = len(asked)
        if question.seed is None:
            own.hear(question, f"answer {i}", ended=True)
        elif question.kind in themes().single_kinds:
            own.hear(question, f"a message of several lines, number {i}\n1. x", ended=True)
        else:
            own.hear(question, "\n".join(f"{j}. What is the number {i} and {j}?" for j in range(1, 7)), ended=True)
        asked.append(question)
    return asked


def test_all_kinds_topics_and_tasks_are_asked_in_their_shares() -> None:
    given = themes()
    asked = served(OwnQuestions(seed=3), 1500)
    requests = Counter(question.kind for question in asked if question.seed is not None)
    assert requests.keys() == given.listed_kinds.keys() | given.single_kinds.keys()
    assert max(requests.values()) - min(requests.values()) <= 1
    kinds = Counter(question.kind for question in asked if question.seed is None)
    texts = {kind for group in given.texts.values() for kind in group}
    n_sequences, n_requests = sum(kinds[kind] for kind in texts), sum(requests.values())
    assert abs(n_sequences / (n_sequences + n_requests) - TEXT_SHARE) < 0.05
    assert all(kinds[f"on-{kind}"] == kinds[kind] for kind in texts)
    n_follow_ups = sum(n for kind, n in kinds.items() if kind.endswith("-2"))
    n_others = sum(kinds.values()) - n_sequences - n_follow_ups
    assert abs(n_follow_ups / n_others - FOLLOW_UP_SHARE) < 0.03
    all_text = "\n".join(question.messages[-1][1] for question in asked)
    assert sum(topic in all_text for topic in given.topics) > 0.9 * len(given.topics)
    assert "{" not in all_text
    followed = next(question for question in asked if question.kind.endswith("-2"))
    assert [role for role, _ in followed.messages] == ["user", "assistant", "user"]
    foreign = {question.messages[0][1].split("answer")[0] for question in asked if question.kind == "on-german"}
    assert foreign == {"Translate German to English: ", "Translate the following German text into English.\n\n",
                       "What does this mean in English?\n\n"}  # fmt: skip


def test_the_same_seed_asks_the_same_and_another_does_not() -> None:
    assert served(OwnQuestions(seed=1), 200) == served(OwnQuestions(seed=1), 200)
    assert served(OwnQuestions(seed=1), 200) != served(OwnQuestions(seed=2), 200)


def test_nothing_is_asked_twice_also_of_what_was_learnt_before() -> None:
    asked = served(OwnQuestions(seed=1), 3000)
    lessons = [question for question in asked if question.seed is None]
    assert len({question.messages for question in lessons}) == len(lessons)
    known = [Lesson(tuple((role, f" {text.upper()}") for role, text in q.messages), (1,), True) for q in lessons]
    again = served(OwnQuestions(seed=1, known=known), 3000)
    assert not {q.messages for q in lessons} & {q.messages for q in again if q.seed is None}


def test_it_ends_after_as_many_as_were_wanted_or_when_told() -> None:
    own = OwnQuestions(n_questions=25)
    asked = served(own, 1000)
    assert len([question for question in asked if question.seed is None]) == 25
    assert own.done
    assert own.next() is None
    endless = OwnQuestions()
    assert len(served(endless, 100)) == 100
    assert not endless.done
    endless.stop()
    assert endless.done
    assert endless.next() is None


def test_what_was_cut_or_is_no_message_is_left_out() -> None:
    own = OwnQuestions(seed=5)
    request = Question((("user", "write"),), "facts", seed=1)
    own.hear(request, "1. What is the highest mountain?", ended=False)
    own.hear(
        request,
        "What is the highest mountain?\n2. Sure, here is a question!\n3. Why?\n4. How \ufffd is this?",
        ended=True,
    )
    own.hear(request, '"\n 1)  "**How high is the highest one?**"  \n"', ended=True)
    found = [own.next() for _ in range(2)]
    assert found[0] == Question.of("How high is the highest one?", "facts")
    assert found[1] is not None
    assert "highest mountain" not in found[1].messages[0][1]
    own.hear(Question.of("Write a text.", "article"), " \n", ended=True)  # nothing to go on with
    following = own.next()
    assert following is not None
    assert not following.kind.startswith("on-")
