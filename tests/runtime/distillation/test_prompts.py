"""A user's prompts are read strictly: one sentence says which line is wrong, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellm.runtime.comparison import BadPrompts
from edgellm.runtime.distillation import questions
from edgellm.runtime.distillation.questions import Question, read_prompts

USER = {"role": "user", "content": "Why?"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prompts"


def test_a_text_has_a_prompt_in_each_line(path: Path) -> None:
    path.write_bytes('\ufeffWhat is {this}?\r\n\n  {not JSON} \nÜber "dich"'.encode())
    asked = [question.messages[0] for question in read_prompts(path)]
    assert asked == [("user", "What is {this}?"), ("user", "{not JSON}"), ("user", 'Über "dich"')]


def test_json_lines_may_be_of_three_forms(path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    records = [
        {"prompt": "a\nb"},
        {"id": 7, "task": "maths", "turns": ["first", "second"]},
        {"messages": [system, USER, {"role": "assistant", "content": "So."}, USER]},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    assert read_prompts(path) == [
        Question((("user", "a\nb"),), "prompt"),
        Question((("user", "first"),), "maths"),
        Question((("system", "Be brief."), ("user", "Why?"), ("assistant", "So."), ("user", "Why?")), "prompt"),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "it is no JSON, as the first line is"),
        ("[1]", 'one of "prompt", "messages" and "turns" is needed, and it has none of them'),
        ('{"prompt": "a", "turns": ["b"]}', 'it has "prompt" and "turns"'),
        ('{"prompt": "  "}', '"prompt" must be a text that is not empty'),
        ('{"prompt": "\\ud800"}', "half a character"),
        ('{"prompt": "a", "task": 3}', '"task" must be a short text'),
        ('{"turns": []}', '"turns" must be a list of texts'),
        ('{"turns": [3]}', 'the first of "turns" must be a text'),
        ('{"messages": []}', "a list of 1 to 64"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', 'message 1 must have a "role", one of system, user'),
        ('{"messages": [{"role": ["user"], "content": "a"}]}', 'message 1 must have a "role"'),
        ('{"messages": [{"role": "user", "content": [1]}]}', '"content" of message 1 must be a text'),
        (json.dumps({"messages": [USER, {"role": "assistant", "content": "a"}]}), "must be a user's"),
        (json.dumps({"messages": [USER, {"role": "system", "content": "a"}]}), "must come first"),
        pytest.param("[" * 100_000, "it is no JSON", id="deep"),
    ],
)
def test_a_line_of_another_form_is_named(path: Path, line: str, said: str) -> None:
    path.write_text(f'{{"prompt": "good"}}\n\n{line}\n')
    with pytest.raises(BadPrompts, match="line 3: ") as refused:
        read_prompts(path)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b" \n\n", "holds no prompts"),
        (b"good\n\xff\xfe", "line 2: it is not UTF-8"),
        (b"good\n\0", "line 2: it holds a zero byte"),
        pytest.param(b"good\n" + b"x" * 300_000, "line 2: it is longer than 256.0 KiB", id="long"),
    ],
)
def test_what_is_no_text_is_refused(path: Path, data: bytes, said: str) -> None:
    path.write_bytes(data)
    with pytest.raises(BadPrompts) as refused:
        read_prompts(path)
    assert said in str(refused.value)


def test_a_file_that_is_too_large_or_not_there_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadPrompts, match="cannot be read: No such file"):
        read_prompts(path)
    monkeypatch.setattr(questions, "FILE_MOST_BYTES", 10)
    path.write_text("a\n" * 6)
    with pytest.raises(BadPrompts, match="larger than 10 B"):
        read_prompts(path)
