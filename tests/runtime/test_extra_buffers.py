"""The trial of llama.cpp's extra buffers: what it finds is kept, and a crash in it is a verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.memory.children import ChildFailed
from edgellm.memory.folders import home
from edgellm.runtime.bringup import extra_buffers
from edgellm.runtime.bringup.extra_buffers import Verdict, verdict


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("EDGELLM_EXTRA_BUFFERS")
    verdict.cache_clear()
    yield
    verdict.cache_clear()


def answering(*events: dict[str, Any] | str) -> Any:
    """A stand-in for the child: its answers, and the sentence that it ends with."""

    def answers(module: str, request: Any, *, timeout_s: float) -> Iterator[dict[str, Any]]:
        for event in events:
            if isinstance(event, str):
                raise ChildFailed(event)
            yield event

    return answers


def test_the_real_trial_gives_a_verdict_that_is_kept_for_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = verdict()
    assert first.reason
    verdict.cache_clear()
    monkeypatch.setattr(extra_buffers, "answers", answering("asked again"))
    assert verdict() == first
    assert (home() / "extra-buffers.json").stat().st_size < 10_000


def test_a_crash_with_the_buffers_in_use_leaves_them_out_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        extra_buffers, "answers", answering({"buffers": ["AMX"]}, "it was ended by SIGILL (illegal instruction)")
    )
    assert verdict() == Verdict(False, ("AMX",), "tried in a child: it was ended by SIGILL (illegal instruction)")


def test_wrong_numbers_leave_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra_buffers, "answers", answering({"buffers": ["AMX"]}, {"difference": float("nan")}))
    assert not verdict().usable


def test_what_works_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra_buffers, "answers", answering({"buffers": ["CPU_REPACK"]}, {"difference": 0.004}))
    assert verdict() == Verdict(True, ("CPU_REPACK",), "tried here, they work")


def test_a_trial_that_could_not_be_made_is_made_again_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra_buffers, "answers", answering("it did not end within 120 s"))
    assert not verdict().usable
    verdict.cache_clear()
    monkeypatch.setattr(extra_buffers, "answers", answering({"buffers": []}, {"difference": 0.0}))
    assert verdict().usable


def test_another_library_is_tried_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extra_buffers, "answers", answering({"buffers": ["AMX"]}, "SIGILL"))
    assert not verdict().usable
    verdict.cache_clear()
    library = tmp_path / "libggml-cpu.so"
    library.write_bytes(b"newer")
    monkeypatch.setattr(extra_buffers, "engine_library", lambda name: library)
    monkeypatch.setattr(extra_buffers, "answers", answering({"buffers": ["AMX"]}, {"difference": 0.001}))
    assert verdict().usable


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"x": 3}', "[" * 100_000])
def test_a_damaged_file_of_verdicts_is_no_verdict(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home() / "extra-buffers.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    monkeypatch.setattr(extra_buffers, "answers", answering({"buffers": []}, {"difference": 0.0}))
    assert verdict().usable
    assert len(json.loads(path.read_text())) == 1


def test_where_nothing_can_be_kept_the_trial_still_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(extra_buffers, "answers", answering({"buffers": []}, {"difference": 0.0}))
    assert verdict().usable


@pytest.mark.parametrize(("word", "usable"), [("off", False), ("ON", True)])
def test_a_user_s_word_goes_before_a_trial(word: str, usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_EXTRA_BUFFERS", word)
    monkeypatch.setattr(extra_buffers, "answers", answering("must not be asked"))
    assert verdict().usable is usable
