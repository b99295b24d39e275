"""What was found out about a machine is kept, bounded, and asked for anew where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.memory.kept_answers import KeptAnswers


def any_(_: object) -> bool:
    return True


def test_what_cannot_be_an_answer_is_not_believed_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text('{"a": 1, "b": "text"}')
    kept = KeptAnswers(path, 3, lambda value: isinstance(value, int))
    assert (kept.get("a"), kept.get("b")) == (1, None)
    kept.put("c", 2)
    assert "text" not in path.read_text()


def test_an_answer_is_there_for_the_next_process(tmp_path: Path) -> None:
    KeptAnswers(tmp_path / "deep" / "kept.json", 4, any_).put("a", [0.0, 1.5])
    assert KeptAnswers(tmp_path / "deep" / "kept.json", 4, any_).get("a") == [0.0, 1.5]
    assert KeptAnswers(tmp_path / "deep" / "kept.json", 4, any_).get("b") is None


def test_the_oldest_are_let_go_of_and_one_put_again_is_the_newest(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path / "kept.json", 3, any_)
    for key in "abcad":
        kept.put(key, key)
    assert [kept.get(key) for key in "abcd"] == ["a", None, "c", "d"]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"a"', "\x00\xff", "[" * 100_000])
def test_a_damaged_file_holds_nothing_and_is_written_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text, encoding="latin-1")
    kept = KeptAnswers(path, 3, any_)
    assert kept.get("a") is None
    kept.put("a", 1)
    assert kept.get("a") == 1


def test_a_folder_that_cannot_be_written_costs_the_memory_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = KeptAnswers(tmp_path / "file" / "kept.json", 3, any_)
    kept.put("a", 1)
    assert kept.get("a") is None
