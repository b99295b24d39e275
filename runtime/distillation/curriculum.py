"""Which lessons are learnt, which tell when to stop, and which judge in the end.

What was asked decides: an answer that judges was never learnt from, in no earlier training either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from edgellm.runtime.distillation.lesson import Lesson, Sample

N_PARTS = 16
JUDGING = frozenset({0, 8})  # every eighth
STOPPING = frozenset({4})
FEW_JUDGES = 8  # answers; of fewer, some that are new judge instead of being learnt, a quarter of those at most
MAX_JUDGED_TOKENS = 10_000  # of prompts and answers: reading them takes a third of what learning them would
MAX_STOPPING_TOKENS = 2_000
MAX_NEWER_TOKENS = 5_000
REPLAYED = 0.5  # of the tokens that are new, so many that were learnt before are learnt again: nothing is forgotten
ID_DIGITS = 12

Named = tuple[str, Sample]  # by `id_of` the lesson


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Samples of the lessons that there are, the newest last."""

    new: list[Named]  # to learn
    old: list[Named]  # that the last training had: of them some are learnt again
    stopping: list[Named]
    judging: list[Named]
    newer: list[Named]  # than the last training, of every part: by which what it brought is judged
    known: tuple[str, ...]  # ids of all lessons
    n_unusable: int  # lessons that the drafter has no words for

    def taught(self, max_tokens: int, least: int = 0) -> list[Named]:
        """What to learn: the newest of `max_tokens` in all, of which the new ones have `least` at any rate."""
        share = 1 / (1 + REPLAYED) if self.old else 1.0
        new = newest(self.new, max(int(max_tokens * share), least))
        return [*newest(self.old, int(n_tokens_of(new) * REPLAYED)), *new]


def id_of(lesson: Lesson) -> str:
    """By which a lesson is known again."""
    return _digest([lesson.messages, lesson.tokens])[:ID_DIGITS]


def part_of(lesson: Lesson) -> int:
    """0 to 15, by what was asked."""
    return int(_digest(lesson.messages)[:8], 16) % N_PARTS


def is_judging(lesson: Lesson) -> bool:
    return part_of(lesson) in JUDGING


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def arrange(lessons: Sequence[Lesson], sample: Callable[[Lesson], Sample | None], seen: Collection[str]) -> Curriculum:
    """
    Args:
        lessons: the newest last.
        sample: a lesson in the drafter's tokens, None where it has none.
        seen: ids of the lessons that the last training had.
    """
    parts: dict[str, list[Named]] = {name: [] for name in ("new", "old", "stopping", "judging", "newer")}
    by_name, n_unusable = {id_of(lesson): lesson for lesson in lessons}, 0
    for name, lesson in by_name.items():
        made, part = sample(lesson), part_of(lesson)
        if made is None:
            n_unusable += 1
            continue
        where = "judging" if part in JUDGING else "stopping" if part in STOPPING else "old" if name in seen else "new"
        for one in (where, *(["newer"] if name not in seen else [])):
            parts[one].append((name, made))
    _appoint(parts)
    return Curriculum(
        parts["new"],
        parts["old"],
        newest(parts["stopping"], MAX_STOPPING_TOKENS),
        newest(parts["judging"], MAX_JUDGED_TOKENS),
        newest(parts["newer"], MAX_NEWER_TOKENS),
        tuple(by_name),
        n_unusable,
    )


def _appoint(parts: dict[str, list[Named]]) -> None:
    """Let new lessons judge where chance left too few that do; the next training may learn them."""
    n = min(FEW_JUDGES - len(parts["judging"]), len(parts["new"]) // 4)
    if n > 0:
        chosen = {name for name, _ in sorted(parts["new"], key=lambda one: one[0])[:n]}
        parts["judging"] += [one for one in parts["new"] if one[0] in chosen]
        parts["new"] = [one for one in parts["new"] if one[0] not in chosen]


def newest(named: Sequence[Named], max_tokens: int | None) -> list[Named]:
    """The last of them that fit, in their order."""
    kept, left = list[Named](), max_tokens
    for one in reversed(named):
        if left is not None:
            if one[1].n_tokens > left:
                break
            left -= one[1].n_tokens
        kept.append(one)
    return kept[::-1]


def n_tokens_of(named: Iterable[Named]) -> int:
    """Prompts included."""
    return sum(sample.n_tokens for _, sample in named)


def samples_of(named: Iterable[Named]) -> list[Sample]:
    return [sample for _, sample in named]
