"""What was found out about a machine is kept, bounded, and asked for anew where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.memory.kept_answers import KeptAnswers


def test_an_answer_is_there_for_the_next_process(tmp_path: Path) -> None:
    KeptAnswers(tmp_path / "deep" / "kept.json", 4).put("a", [0.0, 1.5])
    assert KeptAnswers(tmp_path / "deep" / "kept.json", 4).get("a") == [0.0, 1.5]
    assert KeptAnswers(tmp_path / "deep" / "kept.json", 4).get("b") is None


def test_the_oldest_are_let_go_of_and_one_put_again_is_the_newest(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path / "kept.json", 3)
    for key in "abcad":
        kept.put(key, key)
    assert [kept.get(key) for key in "abcd"] == ["a", None, "c", "d"]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"a"', "\x00\xff", "[" * 100_000])
def test_a_damaged_file_holds_nothing_and_is_written_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text, encoding="latin-1")
    kept = KeptAnswers(path, 3)
    assert kept.get("a") is None
    kept.put("a", 1)
    assert kept.get("a") == 1


def test_a_folder_that_cannot_be_written_costs_the_memory_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = KeptAnswers(tmp_path / "file" / "kept.json", 3)
    kept.put("a", 1)
    assert kept.get("a") is None
