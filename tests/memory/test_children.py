"""Jobs in child processes: whatever ends them, the one who asked gets an answer or one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import children, runs

from edgellm.memory.children import Child, ChildFailed, answers, end_of

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def jobs_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]))


def ask(act: str, *, timeout_s: float = 60.0, **more: Any) -> list[dict[str, Any]]:
    return list(answers("child_jobs", {"act": act, **more}, timeout_s=timeout_s))


def test_the_request_arrives_whole_and_answers_come_in_order() -> None:
    name = "caf\udce9 \n \u2603"  # a file's name need not be UTF-8
    assert ask("answer", path=name) == [{"began": True, "act": "answer", "path": name}, {"done": True}]


def test_what_the_engine_or_its_own_children_print_is_no_answer() -> None:
    assert ask("talk") == [{"began": True, "act": "talk"}, {"done": True}]


@pytest.mark.parametrize(
    ("name", "words"), [("SIGILL", "illegal instruction"), ("SIGSEGV", "fault"), ("SIGKILL", "killed")]
)
def test_a_signal_is_named(name: str, words: str) -> None:
    with pytest.raises(ChildFailed, match=rf"{name} \(.*{words}") as caught:
        ask("signal", name=name)
    assert "\n" not in str(caught.value)
    assert caught.value.ended.endswith(")")
    assert ("memory" if name == "SIGKILL" else "edgellm doctor") in str(caught.value)  # what to do


def test_an_abort_is_told_with_the_engine_s_own_reason() -> None:
    with pytest.raises(ChildFailed, match=r"SIGABRT.*n_tokens_all <= cparams\.n_batch"):
        ask("assert")


def test_a_known_failure_is_its_sentence() -> None:
    with pytest.raises(ChildFailed, match=r"^this file is refused$"):
        ask("refuse")


def test_a_bug_is_told_by_its_last_line() -> None:
    with pytest.raises(ChildFailed, match="ZeroDivisionError: a bug"):
        ask("bug")


def test_an_end_without_a_word_has_its_code() -> None:
    with pytest.raises(ChildFailed, match="code 7"):
        ask("exit")


def test_what_hangs_is_given_up() -> None:
    started = time.monotonic()
    with pytest.raises(ChildFailed, match="within 2 s"):
        ask("hang", timeout_s=2.0)
    assert time.monotonic() - started < 30


def test_stopping_early_ends_the_child() -> None:
    before = children()
    asked = answers("child_jobs", {"act": "hang"}, timeout_s=60.0)
    next(asked)
    (child,) = children() - before
    asked.close()
    assert not runs(child)


def test_a_child_ends_with_its_parent() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from edgellm.memory.children import answers\n"
            "import psutil\n"
            "asked = answers('child_jobs', {'act': 'hang'}, timeout_s=60.0); next(asked)\n"
            "print(psutil.Process().children()[0].pid, flush=True)\n"
            "import time; time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(timeout=30)
    parent.stdout.close()


def counted(path: Path, *, beyond: str = "") -> str:
    """What a counting child has written, once it is another text than `beyond`."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.is_file() and (text := path.read_text()) not in ("", beyond):
            return text
        time.sleep(0.01)
    raise AssertionError("it does not count")


def stands(path: Path) -> bool:
    time.sleep(0.1)  # a write that was under way
    before = path.read_text()
    time.sleep(0.3)
    return path.read_text() == before


def test_a_child_stands_still_while_it_is_suspended_and_then_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "count"
    with Child("child_jobs", {"act": "count", "path": str(path)}) as child:
        counted(path)
        child.suspend()
        assert stands(path)
        before = path.read_text()
        child.resume()
        assert counted(path, beyond=before) != before
        child.suspend()
    child.suspend()  # of one that is gone: nothing
    child.resume()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody wakes it")
def test_a_suspended_child_ends_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "count"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, psutil, time\n"
            "from edgellm.memory.children import Child\n"
            f"child = Child('child_jobs', {{'act': 'count', 'path': {str(path)!r}}})\n"
            f"while not os.path.exists({str(path)!r}): time.sleep(0.01)\n"
            "child.suspend()\n"
            "print(psutil.Process().children()[0].pid, flush=True)\n"
            "time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    until_s = time.monotonic() + 10
    while child.status() != psutil.STATUS_STOPPED and time.monotonic() < until_s:
        time.sleep(0.01)
    assert child.status() == psutil.STATUS_STOPPED
    parent.kill()
    parent.wait()
    child.wait(timeout=30)
    parent.stdout.close()


@pytest.mark.parametrize("is_waited", [False, True], ids=["at once", "while it works"])
def test_a_child_that_is_asked_to_stop_keeps_what_it_has(is_waited: bool) -> None:
    with Child("child_jobs", {"act": "heed"}) as child:
        answers = child.answers()
        if is_waited:
            next(answers)
        child.ask_to_stop()
        assert {"stopped": True} in list(answers)
        child.ask_to_stop()  # of one that is gone: nothing


def test_variables_are_set_for_the_child_alone() -> None:
    request = {"act": "environment", "name": "OPENBLAS_NUM_THREADS"}
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    with Child("child_jobs", request, environment={"OPENBLAS_NUM_THREADS": "7"}) as child:
        assert {"value": "7"} in list(child.answers())
    assert os.environ.get("OPENBLAS_NUM_THREADS") == before


def test_windows_ends_are_named_too() -> None:
    assert "illegal instruction" in end_of(0xC000001D)
    assert end_of(3) == ""
