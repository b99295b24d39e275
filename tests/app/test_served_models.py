"""Models on demand: loaded once for all who ask, kept while they are used, let go in order, within the memory there."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes import FakeSource

from edgellm.app.defaults import BadSetting
from edgellm.app.offered import Hold
from edgellm.app.served_models import NotServed, ServedModels, Stopped
from edgellm.app.served_pairs import keep_alive_s
from edgellm.app.serving import Served
from edgellm.memory.plan import DoesNotFit
from edgellm.runtime.backends.base import LoadError, OutOfMemory

WAIT_S = 20.0


def source(name: str, n_bytes: int = 1, **more: Any) -> FakeSource:
    served = SimpleNamespace(name=name, n_parallel=2, n_ctx=64, vocabulary=SimpleNamespace(n_tokens=8))
    return FakeSource(cast(Served, served), n_bytes=n_bytes, **more)


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends, "it did not come to that"
        time.sleep(0.005)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def offer() -> Iterator[Callable[..., ServedModels]]:
    """`offer(source, ..., room=10)` has room for so many bytes; closed at the end, when nothing may be open."""
    made: list[ServedModels] = []

    def make(*sources: FakeSource, room: float = 10.0, **more: Any) -> ServedModels:
        made.append(ServedModels(sources, left_bytes=lambda taken: room - taken, **more))
        return made[-1]

    yield make
    for models in made:
        models.close()
        assert all(cast(FakeSource, model.source).n_open == 0 for model in models.all)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgellm-")]


def got(hold: Hold) -> str:
    return hold.loaded.result(WAIT_S).served.name


def states(models: ServedModels) -> str:
    """The names of those that are loaded."""
    return "".join(model.name for model in models.all if model.loaded is not None)


def test_a_model_is_loaded_when_it_is_asked_for_and_once_for_all_who_do(offer: Callable[..., ServedModels]) -> None:
    a, b = source("a"), source("b")
    b.gate = threading.Semaphore(0)
    models = offer(a, b)
    assert (a.n_begun, states(models)) == (0, "")
    holds = [models.hold(models.get("b")) for _ in range(5)]
    until(lambda: models.get("b").state == "loading")
    assert not any(hold.loaded.done() for hold in holds)
    b.gate.release()
    assert [got(hold) for hold in holds] == ["b"] * 5
    assert (b.n_opened, a.n_begun) == (1, 0)
    assert (models.get("b").n_ctx, models.get("b").n_vocab, models.get("b").n_loads) == (64, 8, 1)


def test_names_and_aliases_find_a_model_and_the_first_answers_to_none(offer: Callable[..., ServedModels]) -> None:
    models = offer(source("a", aliases=["x", "b"]), source("b", aliases=["x", "y"]))
    assert [models.get(name).name for name in (None, "a", "x", "b", "y")] == ["a", "a", "a", "b", "b"]
    assert sorted(models.names) == ["a", "b", "x", "y"]
    with pytest.raises(NotServed, match=r"take a or b$"):
        models.get("/etc/passwd")


def test_a_load_that_fails_is_told_to_all_who_wait_and_tried_again(offer: Callable[..., ServedModels]) -> None:
    a = source("a")
    a.gate, a.failures = threading.Semaphore(0), [LoadError("damaged")]
    models = offer(a)
    holds = [models.hold(models.first) for _ in range(3)]
    until(lambda: a.n_begun == 1)
    a.gate.release(2)
    for hold in holds:
        with pytest.raises(LoadError, match="damaged"):
            got(hold)
        hold.release()
    assert models.load(models.first).name == "a"
    assert models.first.n_loads == 1


def test_what_does_not_fit_alone_is_told_and_nothing_goes_for_it(offer: Callable[..., ServedModels]) -> None:
    a, b = source("a", 8), source("b", 99)
    b.unfit = DoesNotFit("take a smaller one")
    models = offer(a, b)
    models.load(models.first)
    with pytest.raises(DoesNotFit, match="smaller"):
        models.load(models.get("b"))
    assert states(models) == "a"


def test_idle_ones_go_where_memory_that_was_planned_is_not_to_be_had(offer: Callable[..., ServedModels]) -> None:
    a, b, c = source("a"), source("b"), source("c")
    models = offer(a, b, c)
    models.load(models.get("a"))
    models.load(models.get("b"))
    c.failures = [OutOfMemory("refused")]
    assert models.load(models.get("c")).name == "c"
    assert states(models) == "bc"
    a.failures = [OutOfMemory("refused")] * 3
    with pytest.raises(OutOfMemory):
        models.load(models.get("a"))
    assert states(models) == ""


def test_as_many_are_loaded_as_there_is_room_for_and_the_least_recently_used_goes_first(
    offer: Callable[..., ServedModels],
) -> None:
    clock = Clock()
    models = offer(*(source(name, 4) for name in "abc"), source("d", 8), clock=clock)
    for name, expected in (("a", "a"), ("b", "ab"), ("a", "ab"), ("c", "ac"), ("b", "bc"), ("d", "d"), ("a", "a")):
        clock.now += 1
        models.load(models.get(name))
        assert states(models) == expected
    assert [model.n_unloads for model in models.all] == [1, 2, 1, 1]


def test_a_model_that_is_used_is_not_let_go_and_takes_no_more_while_another_waits(
    offer: Callable[..., ServedModels],
) -> None:
    models = offer(source("a", 6), source("b", 6))
    a, b = models.all
    first, second = models.hold(a), models.hold(a)
    assert (got(first), got(second)) == ("a", "a")
    other = models.hold(b)
    until(lambda: a.is_leaving)
    late = models.hold(a)
    first.release()
    assert not late.loaded.done()  # otherwise a stream of requests would keep the other out for ever
    assert states(models) == "a"
    second.release()
    assert got(other) == "b"
    assert not late.loaded.done()
    other.release()
    assert got(late) == "a"
    late.release()


def test_who_no_longer_waits_leaves_and_nothing_goes_for_it(offer: Callable[..., ServedModels]) -> None:
    models = offer(source("a", 6), source("b", 6))
    a, b = models.all
    used = models.hold(a)
    got(used)
    other = models.hold(b)
    until(lambda: a.is_leaving)
    late = models.hold(a)
    other.release()
    assert got(late) == "a"
    assert (states(models), b.n_loads, a.n_loads) == ("a", 0, 1)
    for hold in (used, late, late, other):  # twice is once
        hold.release()
    assert models.load(b).name == "b"


def test_a_model_that_is_wanted_waits_for_one_that_is_idle_not_for_all(offer: Callable[..., ServedModels]) -> None:
    models = offer(source("a", 5), source("b", 5), source("c", 5))
    used = models.hold(models.all[0])
    got(used)
    models.load(models.all[1])
    assert models.load(models.all[2]).name == "c"
    assert (states(models), models.all[0].is_leaving) == ("ac", False)
    used.release()


def test_nobody_is_kept_from_a_model_that_is_loaded_while_another_is_loading(
    offer: Callable[..., ServedModels],
) -> None:
    a, b = source("a"), source("b")
    b.gate = threading.Semaphore(0)
    models = offer(a, b)
    models.load(models.first)
    other = models.hold(models.get("b"))
    until(lambda: b.n_begun == 1)
    assert models.load(models.first).name == "a"
    b.gate.release()
    got(other)


def test_an_idle_model_is_let_go_after_so_long_and_one_that_is_used_is_not(offer: Callable[..., ServedModels]) -> None:
    clock = Clock()
    models = offer(source("a"), source("b"), keep_alive_s=60.0, clock=clock)
    a, b = models.all
    used, other = models.hold(a), models.hold(b)
    got(used), got(other)
    other.release()
    clock.now += 59
    models.load(a)
    assert states(models) == "ab"
    clock.now += 1
    models.load(a)  # wakes the thread, as time itself would
    until(lambda: states(models) == "a")
    clock.now += 600
    models.load(a)
    used.release()
    assert states(models) == "a"
    clock.now += 60
    models.release(used)
    until(lambda: states(models) == "")
    assert models.load(a).name == "a"
    assert a.n_loads == 2


def test_time_itself_lets_a_model_go(offer: Callable[..., ServedModels]) -> None:
    models = offer(source("a"), keep_alive_s=0.01)
    models.load(models.first)
    until(lambda: states(models) == "")
    models = offer(source("b"), keep_alive_s=0.0)
    models.load(models.first)
    until(lambda: states(models) == "")


def test_a_stop_tells_who_waits_and_those_that_are_loaded_answer_on(offer: Callable[..., ServedModels]) -> None:
    a, b = source("a"), source("b")
    b.gate = threading.Semaphore(0)
    models = offer(a, b)
    used = models.hold(models.first)
    got(used)
    other = models.hold(models.get("b"))
    until(lambda: b.n_begun == 1)
    models.stop()
    for hold in (other, models.hold(models.get("b"))):
        with pytest.raises(Stopped):
            got(hold)
    assert got(models.hold(models.first)) == "a"
    b.gate.release()  # a load that is under way ends, and what it loaded is closed


def test_a_close_ends_who_waits_for_room(offer: Callable[..., ServedModels]) -> None:
    models = offer(source("a", 6), source("b", 6))
    used = models.hold(models.first)
    got(used)
    other = models.hold(models.get("b"))
    until(lambda: models.first.is_leaving)
    models.close()
    with pytest.raises(Stopped):
        got(other)


def test_what_somebody_else_loaded_is_there_at_once_and_stays() -> None:
    served = source("a").served
    with ServedModels.of(served, ["x"]) as models:
        hold = models.hold(models.get("x"))
        assert hold.loaded.done()
        hold.release()
        assert models.first.served is served


def test_many_at_once_all_get_what_they_ask_for_and_never_more_is_loaded_than_there_is_room_for() -> None:
    sources = [source(name, size) for name, size in zip("abcd", (3, 4, 5, 9), strict=True)]
    over: list[int] = []

    def left(taken_bytes: int) -> float:
        open_bytes = sum(one.size for one in sources if one.n_open)
        over.append(open_bytes) if open_bytes > 10 else None
        return 10 - taken_bytes

    with ServedModels(sources, left_bytes=left, keep_alive_s=0.001) as models:

        def ask(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(12):
                model = rng.choice(models.all)
                hold = models.hold(model)
                if rng.random() < 0.2:
                    hold.release()
                    continue
                assert got(hold) == model.name
                assert cast(FakeSource, model.source).n_open == 1
                hold.release()

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        assert not over
        assert all(not model.held and not model.waiting for model in models.all)
    assert [one.n_open for one in sources] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300.0), ("30s", 30.0), ("1h30m", 5_400.0), ("0", 0.0), ("90", 90.0), ("500ms", 0.5), (" 1.5H ", 5_400.0)],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert keep_alive_s(text) == seconds


@pytest.mark.parametrize("text", ["forever", "-1"])
def test_for_ever_is_a_time(text: str) -> None:
    assert keep_alive_s(text) is None


@pytest.mark.parametrize("text", ["", "m", "5 m", "1h30", "-5", "5x", "٣", "1" * 5_000, "1e3", "inf", "5m\n6"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="no time"):
        keep_alive_s(text)
