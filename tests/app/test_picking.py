"""What is picked follows from plans: it fits, the largest that is fast enough first."""

from __future__ import annotations

import pytest

from edgellm.app import picking
from edgellm.app.defaults import BadSetting
from edgellm.app.picking import CONTEXTS, SMALL_BYTES, TASKS, Picks, Task, best_for, task_of
from edgellm.app.plans import plan, plan_request
from edgellm.export.obtain.catalogue import find, load_catalogue
from edgellm.memory.device import Device, sized_device


def picked(task: Task, memory: str = "8GB", n_ctx: int | None = None) -> tuple[Picks, Device]:
    from edgellm.memory.units import parse_memory

    place = sized_device(parse_memory(memory))
    return best_for(task, place, plan_request(n_ctx=n_ctx, here=False)), place


@pytest.mark.parametrize("task", TASKS)
def test_all_that_is_picked_fits_and_serves_the_task(task: Task) -> None:
    picks, place = picked(task)
    assert picks.fitting
    for one in picks.fitting:
        assert one.plan.fits
        assert one.plan.required_bytes <= place.usable_bytes
        assert task == "long" or task in one.entry.tasks
    names = [one.entry.name for one in picks.fitting]
    serving = [
        e.name for e in load_catalogue() if task in e.tasks or (task == "long" and {"general", "code"} & {*e.tasks})
    ]
    assert sorted([*names, *picks.too_large, *picks.unknown]) == sorted(serving)


def test_the_numbers_are_those_of_the_plan() -> None:
    picks, _ = picked("general")
    first = picks.fitting[0]
    alone = plan(first.entry.name, memory="8GB", offline=True)
    assert (alone.required_bytes, alone.n_ctx, alone.drafter, alone.tokens_per_s) == (
        first.plan.required_bytes,
        first.plan.n_ctx,
        first.plan.drafter,
        first.plan.tokens_per_s,
    )


def test_the_largest_comes_first_and_more_memory_holds_larger_ones() -> None:
    (small, _), (large, _) = picked("code", "4GB"), picked("code", "64GB")
    for picks in (small, large):
        weights = [one.plan.lines[0].n_bytes for one in picks.fitting]
        assert weights == sorted(weights, reverse=True)
    assert {one.entry.name for one in small.fitting} < {one.entry.name for one in large.fitting}
    assert "qwen3-coder-30b-a3b-instruct" in {one.entry.name for one in large.fitting}


def test_what_is_slower_than_reading_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    picks, _ = picked("general")
    speeds = {one.entry.name: one.plan.tokens_per_s.value for one in picks.fitting if one.plan.tokens_per_s}
    monkeypatch.setattr(picking, "MIN_TOKENS_PER_S", sorted(speeds.values())[len(speeds) // 2])
    again, _ = picked("general")
    is_fast = [speeds[one.entry.name] >= picking.MIN_TOKENS_PER_S for one in again.fitting]
    assert is_fast == sorted(is_fast, reverse=True)
    assert not all(is_fast)


def test_small_ones_are_small() -> None:
    picks, _ = picked("small", "64GB")
    assert all(one.plan.required_bytes <= SMALL_BYTES for one in picks.fitting)


def test_for_long_texts_the_longest_context_comes_first_and_a_longer_one_would_not_fit() -> None:
    picks, _ = picked("long")
    lengths = [one.plan.n_ctx for one in picks.fitting]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 2
    for one in picks.fitting:
        trained = find(one.entry.name).facts.n_ctx_train  # type: ignore[union-attr]
        longer = [n for n in CONTEXTS if one.plan.n_ctx < n <= trained]
        if longer:
            asked, _ = picked("long", n_ctx=min(longer))
            assert one.entry.name in asked.too_large


def test_of_what_the_sizes_are_not_known_a_sentence_says_so_and_no_server_is_asked() -> None:
    picks, _ = picked("general")
    assert "gemma-4-e4b-it" in picks.unknown
    assert "no sizes for gemma-4-e4b-it" in picks.unknown["gemma-4-e4b-it"]


def test_a_task_may_be_written_in_several_ways() -> None:
    for word in ("long", "long-context", "LONG_CONTEXT", "long context"):
        assert task_of(word) == "long"
    with pytest.raises(BadSetting, match="general, code, small, long"):
        task_of("poetry")
