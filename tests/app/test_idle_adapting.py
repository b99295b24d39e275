"""Learning beside a chat: never while an answer is made, used from the next question on, and no trouble to anybody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import processes
import psutil
import pytest
from draft_adapters import adapter_for
from learning_pairs import PATH, TinyPair, questions, tiny_pair

from edgellm.app import adapt_jobs, adapting, idle_adapting
from edgellm.app.defaults import BadSetting, adapted_folder, drafting_options
from edgellm.app.idle_adapting import IdleAdapting, adapt_while_idle
from edgellm.app.listener import Silence
from edgellm.app.loading import Pair, prepare
from edgellm.app.next_training import IdleBounds
from edgellm.memory.folders import home
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.conversation import ChatSession
from edgellm.runtime.distillation.adopted import Adopted, target_key

FEW = IdleBounds(n_tokens=100)
N_TOKENS = 12  # of an answer


class Told(Silence):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Chat:
    """A conversation of two tiny models whose drafter learns in a child that tests provide."""

    def __init__(self, stack: ExitStack, pair: Pair, child: Path, bounds: IdleBounds = FEW) -> None:
        self.pair, self.child, self.told = pair, child, Told()
        self.engine = stack.enter_context(pair.open())
        self.session = ChatSession(self.engine)
        self.idle = stack.enter_context(IdleAdapting(self.session, pair, bounds, self.told))

    def ask(self, question: str = "in the") -> tuple[int, ...]:
        with self.idle.answering():
            return said(self.session, question)

    def end(self, how: str) -> None:
        """Let the child end, and what became of it be heard."""
        (self.child / "end").write_text(how)
        eventually(lambda: not self.runs)

    @property
    def runs(self) -> bool:
        return self.idle._training is not None

    def n_ticks(self) -> int:
        path = self.child / "ticks"
        return path.stat().st_size if path.exists() else 0

    def begun(self) -> int:
        """The child's process, once it works."""
        before = self.n_ticks()
        eventually(lambda: self.n_ticks() > before + 2 and self.idle._training is not None)
        return int((self.child / "pid").read_text())


def said(session: ChatSession, question: str) -> tuple[int, ...]:
    for _ in session.reply(question, max_tokens=N_TOKENS):
        pass
    assert session.last is not None
    return session.last.tokens


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


_before: set[psutil.Process] = set()


@pytest.fixture(autouse=True)
def _others() -> None:
    """Children of tests before, of other files too, that are on their way out."""
    _before.clear()
    _before.update(processes.children())


def children() -> list[psutil.Process]:
    return list(processes.children() - _before)


@pytest.fixture
def tiny() -> TinyPair:
    """Forty answers of earlier chats are there."""
    pair = tiny_pair(home())
    pair.answered(questions(40))
    return pair


@pytest.fixture
def pair(tiny: TinyPair) -> Pair:
    return prepare(str(tiny.target), str(tiny.draft), EngineOptions(n_ctx=512, n_threads=1, **drafting_options()))


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "child"
    folder.mkdir()
    monkeypatch.setattr(adapting, "TRAINING", "idle_child")
    monkeypatch.setattr(idle_adapting, "TICK_S", 0.02)
    monkeypatch.setenv("PYTHONPATH", PATH)
    monkeypatch.setenv("EDGELLM_TEST_CHILD", str(folder))
    return folder


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def chat(stack: ExitStack, pair: Pair, child: Path) -> Chat:
    return Chat(stack, pair, child)


def test_it_stands_still_while_an_answer_is_made_and_gives_way_to_everything(chat: Chat) -> None:
    process = psutil.Process(chat.begun())
    assert process.nice() == 19
    with chat.idle.answering():
        eventually(lambda: process.status() == psutil.STATUS_STOPPED)
        before = chat.n_ticks()
        for _ in chat.session.reply("and", max_tokens=N_TOKENS):
            time.sleep(0.05)
            assert chat.n_ticks() == before
        process.resume()  # as Ctrl-Z and `fg` do
        eventually(lambda: process.status() == psutil.STATUS_STOPPED)
    chat.begun()
    assert children() == [process]
    assert not chat.told.notes + chat.told.warnings


def test_a_child_that_has_only_begun_is_begun_again_behind_the_answer(chat: Chat) -> None:
    """Standing still, it would not yet end with its parent."""
    eventually(lambda: chat.runs)
    with chat.idle.answering():
        assert not chat.runs or (chat.child / "pid").exists()
    chat.begun()


def test_what_was_learnt_is_used_from_the_next_question_on_with_the_same_answers(
    chat: Chat, stack: ExitStack, tiny: TinyPair
) -> None:
    plain = ChatSession(
        stack.enter_context(prepare(str(tiny.target), "none", EngineOptions(n_ctx=512, n_threads=1)).open())
    )
    expected = [said(plain, text) for text in ("in the", "and", "more")]
    answers = [chat.ask("in the")]
    chat.begun()
    chat.end("adopt")
    assert chat.session.engine is chat.engine  # nobody has asked yet
    costs, drafter = chat.engine.controller.economics.costs, chat.engine.drafter  # type: ignore[union-attr]
    answers += [chat.ask("and"), chat.ask("more")]
    assert answers == expected
    assert chat.told.notes == ["the drafter has learnt from 14 answers: 2.71 -> 2.95 tokens a pass on those held out"]
    now = chat.session.engine
    found = Adopted(adapted_folder()).listing()[0]
    assert now.draft_model is not None
    assert now.draft_model.path == found.path
    assert found.adapter is not None
    assert now.options.draft_adapter == found.adapter.sha256
    assert now.drafter is not drafter
    assert now.controller is not None
    assert now.controller.economics.costs is costs  # measured once
    assert 0 < now.controller.choices.n_rounds <= 2 * N_TOKENS  # it is counted anew
    assert (now.model, now.backend) == (chat.engine.model, chat.engine.backend)
    assert chat.session.last is not None
    assert chat.session.last.stats.n_cached > 0  # what the target had read it still has
    assert not chat.told.warnings


def test_what_made_things_worse_is_given_up_and_said(tiny: TinyPair, child: Path, stack: ExitStack) -> None:
    Adopted(adapted_folder()).adopt(target_key(tiny.target), adapter_for(tiny.draft), tiny.draft)
    options = EngineOptions(n_ctx=512, n_threads=1, **drafting_options())
    chat = Chat(stack, prepare(str(tiny.target), str(tiny.draft), options), child)
    assert chat.engine.options.draft_adapter is not None
    chat.begun()
    chat.end("take back")
    chat.ask()
    assert chat.told.notes == ["the drafter no longer uses what it learnt before: it made things worse"]
    assert chat.session.engine.options.draft_adapter is None
    assert chat.session.engine.draft_model is not None
    assert chat.session.engine.draft_model.path == tiny.draft


def test_it_learns_again_only_when_enough_has_come(chat: Chat) -> None:
    chat.begun()
    chat.end("no")
    time.sleep(0.2)
    assert not chat.runs
    assert chat.session.engine is chat.engine
    for n in range(FEW.n_tokens // N_TOKENS):  # one answer too few
        chat.ask(f"question {n}")
    time.sleep(0.2)
    assert not chat.runs
    chat.ask("one more")
    chat.begun()


def test_nothing_begins_before_there_is_enough(stack: ExitStack, pair: Pair, child: Path) -> None:
    chat = Chat(stack, pair, child, IdleBounds(n_tokens=100_000))
    chat.ask()
    time.sleep(0.3)
    assert not children()


def test_what_was_interrupted_goes_on_without_new_answers(
    stack: ExitStack, pair: Pair, tiny: TinyPair, child: Path
) -> None:
    from edgellm.runtime.distillation.unfinished import Unfinished

    unfinished = Unfinished(adapted_folder(), target_key(tiny.target), adapter_for(tiny.draft).base)
    unfinished.begin("plain", [])
    unfinished.checkpoint.write_bytes(b"")
    Chat(stack, pair, child, IdleBounds(n_tokens=100_000)).begun()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("kill", "training failed: it was ended by SIGKILL"),
        ("full", "No space left on device"),
        ("fail", "it was not to be"),
    ],
)
def test_what_fails_is_one_warning_and_the_chat_goes_on(chat: Chat, how: str, why: str) -> None:
    process = chat.begun()
    os.kill(process, signal.SIGKILL) if how == "kill" else (chat.child / "end").write_text(how)
    eventually(lambda: chat.idle._gave_up)
    assert not chat.told.warnings  # somebody may be typing
    assert chat.ask()
    assert chat.ask()
    (warning,) = chat.told.warnings
    assert warning.startswith("nothing is learnt in this chat any more: ")
    assert why in warning
    eventually(lambda: not children())
    time.sleep(0.1)
    assert not children()
    with adapt_jobs.alone(adapt_jobs.AdaptJob(chat.pair.target, chat.pair.draft)):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("is_still", [False, True])
def test_leaving_is_quick_and_leaves_no_process(chat: Chat, stack: ExitStack, is_still: bool) -> None:
    process = chat.begun()
    if is_still:
        psutil.Process(process).suspend()
    began_s = time.monotonic()
    stack.close()
    assert time.monotonic() - began_s < 0.5
    eventually(lambda: not psutil.pid_exists(process))


def test_a_drafter_that_cannot_be_loaded_is_a_warning_and_the_old_one_stays(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgellm.runtime.backends.base import LoadError
    from edgellm.runtime.bringup import exchange

    def refuse(*given: object) -> None:
        raise LoadError("there is no room for it")

    monkeypatch.setattr(exchange, "with_draft_file", refuse)
    chat.begun()
    chat.end("adopt")
    assert chat.ask()
    assert chat.session.engine is chat.engine
    assert chat.told.warnings == ["nothing is learnt in this chat any more: there is no room for it"]


def test_leaving_behind_an_exchange_frees_both_models(chat: Chat, stack: ExitStack) -> None:
    chat.begun()
    chat.end("adopt")
    chat.ask()
    draft = chat.session.engine.draft_model
    chat.idle.close()
    chat.idle.close()
    assert said(chat.session, "and")  # still a session, which drafts no more
    assert chat.session.engine.draft_model is None
    stack.close()
    assert draft is not None
    assert draft._model is None  # type: ignore[union-attr]
    assert chat.engine.model._model is None  # type: ignore[union-attr]


def test_what_came_at_the_end_is_loaded_meanwhile_and_said_at_leaving(chat: Chat, stack: ExitStack) -> None:
    chat.begun()
    chat.end("adopt")
    eventually(lambda: chat.idle._ready is not None)  # the next question would not wait for it
    assert chat.session.engine is chat.engine
    ready = chat.idle._ready
    stack.close()
    assert ready is not None
    assert ready.draft_model._model is None  # type: ignore[union-attr]
    assert [note[:36] for note in chat.told.notes] == ["the drafter has learnt from 14 answe"]


PARENT = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from edgellm.app import adapt_jobs, adapting, idle_adapting
from edgellm.app.loading import prepare
from edgellm.app.defaults import drafting_options
from edgellm.runtime.bringup.planning import EngineOptions
import test_idle_adapting as t
adapting.TRAINING = "idle_child"
target, draft, child, is_still = sys.argv[1:]
with ExitStack() as stack:
    options = EngineOptions(n_ctx=512, n_threads=1, **drafting_options())
    chat = t.Chat(stack, prepare(target, draft, options), Path(child))
    chat.begun()
    with chat.idle.answering() if is_still == "still" else ExitStack():
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("is_still", ["still", "runs"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_child_ends_with_a_parent_that_is_ended(tiny: TinyPair, child: Path, is_still: str, number: int) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), PATH])}
    command = [sys.executable, "-c", PARENT, str(tiny.target), str(tiny.draft), str(child), is_still]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        process = psutil.Process(int((child / "pid").read_text()))
        if is_still == "still":
            eventually(lambda: process.status() == psutil.STATUS_STOPPED)
        parent.send_signal(number)
    eventually(lambda: not processes.runs(process))


def test_ctrl_c_is_none_of_the_childs(chat: Chat) -> None:
    """A terminal sends it to both, even in the child's first moment."""
    eventually(lambda: chat.runs)
    for process in children():
        process.send_signal(signal.SIGINT)
    process = psutil.Process(chat.begun())
    process.send_signal(signal.SIGINT)
    chat.begun()
    assert not chat.idle._gave_up


def battery(plugged: bool | None, percent: float) -> Callable[[], SimpleNamespace]:
    return lambda: SimpleNamespace(power_plugged=plugged, percent=percent, secsleft=0)


@pytest.mark.parametrize(
    ("plugged", "percent", "on_battery", "may"),
    [
        (True, 80, False, True),
        (False, 80, False, False),
        (None, 80, False, False),
        (False, 80, True, True),
        (False, 20, True, False),
        (True, 20, False, False),
    ],
)
def test_a_battery_is_spared(
    monkeypatch: pytest.MonkeyPatch, plugged: bool | None, percent: float, on_battery: bool, may: bool
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", battery(plugged, percent), raising=False)
    assert IdleBounds(on_battery=on_battery).may_spend == may


def test_a_machine_without_a_battery_may_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    assert IdleBounds().may_spend
    monkeypatch.delattr(psutil, "sensors_battery")
    assert IdleBounds().may_spend


def test_it_stands_still_when_the_plug_is_pulled(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    process = psutil.Process(chat.begun())
    monkeypatch.setattr(psutil, "sensors_battery", battery(False, 80), raising=False)
    eventually(lambda: process.status() == psutil.STATUS_STOPPED)
    monkeypatch.setattr(psutil, "sensors_battery", battery(True, 80), raising=False)
    chat.begun()


def test_what_memory_does_not_hold_is_said_once_and_not_begun(stack: ExitStack, pair: Pair, child: Path) -> None:
    chat = Chat(stack, pair, child, IdleBounds(n_tokens=100, mem_bytes=2**20))
    eventually(lambda: chat.idle._gave_up)
    chat.ask()
    chat.ask()
    (note,) = chat.told.notes
    assert "training drafter takes" in note
    assert "there are 1.0 MiB for it" in note
    assert not chat.told.warnings
    assert not children()


def test_a_budget_is_kept_with_the_training_in_it(stack: ExitStack, pair: Pair, child: Path) -> None:
    with pair.open() as engine:
        assert engine.plan is not None
        required = engine.plan.required_bytes
    options = replace(pair.options, budget_bytes=required + 10 * 2**20)
    chat = Chat(stack, replace(pair, options=options), child)
    eventually(lambda: chat.idle._gave_up)
    chat.ask()
    assert "training drafter takes" in chat.told.notes[0]


def test_it_lets_go_of_its_memory_where_others_need_it(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.memory import device

    process = chat.begun()
    here = device.this_machine()
    monkeypatch.setattr(device, "this_machine", lambda: SimpleNamespace(usable_bytes=0, name=here.name))
    eventually(lambda: chat.idle._gave_up)
    eventually(lambda: not psutil.pid_exists(process))


def test_of_two_chats_one_learns(chat: Chat, stack: ExitStack, pair: Pair) -> None:
    chat.begun()
    other = Chat(stack, pair, chat.child)
    other.ask()
    time.sleep(0.3)
    assert chat.runs
    assert not other.runs
    assert len(children()) == 1
    assert not other.told.notes + other.told.warnings


def test_what_cannot_learn_says_why(pair: Pair, tiny: TinyPair, stack: ExitStack) -> None:
    def why(pair: Pair) -> str:
        with pair.open() as engine, pytest.raises(BadSetting) as error:
            IdleAdapting(ChatSession(engine), pair)
        return str(error.value)

    target, draft = str(tiny.target), str(tiny.draft)
    options = EngineOptions(n_ctx=256, n_threads=1, **drafting_options())
    assert "no draft model" in why(prepare(target, "none", options))
    assert "--no-learn" in why(prepare(target, draft, replace(options, learn="off")))
    assert "--draft-adapter" in why(prepare(target, draft, options, draft_adapter="none"))


def test_python_lets_a_session_learn_by_the_names_of_its_models(pair: Pair, tiny: TinyPair, child: Path) -> None:
    with pair.open() as engine:
        session = ChatSession(engine)
        with adapt_while_idle(session, str(tiny.target), str(tiny.draft), bounds=FEW) as idle:
            eventually(lambda: (child / "ticks").exists())
            with idle.answering():
                assert said(session, "in the")
