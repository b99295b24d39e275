"""Conversations as files, settings, and text that is fit for a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import CONTROL, write_tiny

from edgellm.app import conversations
from edgellm.app.conversations import BadConversation, read, save
from edgellm.cli._status import status_line
from edgellm.cli._talk import Talk
from edgellm.cli._terminal import WordWrap, leaving, printable
from edgellm.export.obtain.store import ModelFile, locate
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.answer import Answer, Stats
from edgellm.runtime.text.template import Message


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    located = locate(str(write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")))
    assert located is not None
    return located


@pytest.fixture(scope="module")
def talk(model: ModelFile) -> Iterator[Talk]:
    with load(model.path, options=EngineOptions(n_ctx=1024, n_threads=1)) as engine:
        yield Talk(ChatSession(engine), model, None, max_tokens=12)


@pytest.fixture(autouse=True)
def fresh(talk: Talk) -> None:
    talk.session.clear()
    talk.session.system = None


def say(talk: Talk, capsys: pytest.CaptureFixture[str], text: str) -> tuple[str, str]:
    """What a line gives on stdout and stderr; errors as the chat shows them."""
    capsys.readouterr()
    talk.do(text)
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_saved_conversation_comes_back_whole_with_its_ids_and_goes_on_alike(
    talk: Talk, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "said.json"
    vocabulary, answer = talk.session.engine.model.vocabulary, "the thin hat, é 日本 🙂"
    ids = [token for byte in answer.encode() for token in vocabulary.encode(bytes([byte]))]
    assert ids != vocabulary.encode(answer.encode())  # a spelling of the text that only the ids can bring back
    say(talk, capsys, "/system Be brief.")
    talk.session.messages += [Message("user", "hat\nand 🙂"), Message("assistant", answer, tuple(ids))]
    before = list(talk.session.messages)
    assert say(talk, capsys, f"/save {path}")[1] == f"(2 messages saved in {path})\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    expected = say(talk, capsys, "more")[0]
    say(talk, capsys, "/clear")
    say(talk, capsys, "/system Be long.")
    say(talk, capsys, f"/load {path}")
    assert talk.session.system == "Be brief."
    assert talk.session.messages == before
    assert say(talk, capsys, "more")[0] == expected
    assert talk.session.last is not None
    assert talk.session.last.stats.n_prompt > 2 * len(answer)
    assert [name for name in tmp_path.iterdir() if name != path] == []  # nothing is left aside


def test_ids_come_back_only_where_they_spell_the_text_in_plain_tokens_of_the_same_vocabulary(
    talk: Talk, model: ModelFile, tmp_path: Path
) -> None:
    vocabulary, path = talk.session.engine.model.vocabulary, tmp_path / "said.json"
    plain = tuple(vocabulary.encode(b"the hat"))
    control = vocabulary.literals[CONTROL[1]]
    save(
        path,
        [Message("user", "q"), Message("assistant", "the hat", plain)],
        system=None,
        target=model,
        draft=None,
        vocabulary=vocabulary,
    )
    assert read(path, vocabulary).messages[1].tokens == plain
    for bad in ([*plain, control], [plain[0]], [-1], [vocabulary.n_tokens], [True], ["1"], "no", None, [2**70]):
        content = json.loads(path.read_text())
        content["messages"][1]["tokens"] = bad
        path.write_text(json.dumps(content))
        assert read(path, vocabulary).messages[1] == Message("assistant", "the hat", None)
    content["messages"][1]["tokens"] = list(plain)
    content["target"]["vocabulary"] = "another"
    path.write_text(json.dumps(content))
    assert read(path, vocabulary).messages[1].tokens is None


def test_thoughts_are_saved_beside_the_text_and_files_without_them_are_read(
    talk: Talk, model: ModelFile, tmp_path: Path
) -> None:
    vocabulary, path = talk.session.engine.model.vocabulary, tmp_path / "said.json"
    said = [Message("user", "q"), Message("assistant", "the hat", None, "a hat, or\nno hat")]
    save(path, said, system=None, target=model, draft=None, vocabulary=vocabulary)
    assert list(read(path, vocabulary).messages) == said
    content = json.loads(path.read_text())
    content["messages"][1]["reasoning"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(BadConversation, match="thought of message 2 is no text"):
        read(path, vocabulary)
    del content["messages"][1]["reasoning"]
    path.write_text(json.dumps(content))
    assert read(path, vocabulary).messages[1].reasoning is None


def test_each_answer_is_made_inside_what_goes_around_it(
    talk: Talk, model: ModelFile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nothing is learnt meanwhile, and another drafter may be there when it begins."""
    happened: list[str] = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        happened.append("in")
        yield
        happened.append("out")

    talking = Talk(ChatSession(talk.session.engine), model, None, max_tokens=3, around=around)
    generate = ChatSession._answer

    def answer(self: ChatSession, *arguments: Any) -> Iterator[str]:
        happened.append("answer")
        return generate(self, *arguments)

    monkeypatch.setattr(ChatSession, "_answer", answer)
    for text in ("hat", "/regen", "/stats"):
        say(talking, capsys, text)
    assert happened == ["in", "answer", "out"] * 2


def test_a_conversation_that_is_left_is_kept_privately_and_can_be_resumed(
    talk: Talk, model: ModelFile, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "home" / "conversation.json"

    def leave(history: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Talk, "_run", lambda self, history: leave(history))
    talking = Talk(ChatSession(talk.session.engine, system="Be brief."), model, None, max_tokens=3, kept=path)
    with pytest.raises(KeyboardInterrupt):
        talking.run(tmp_path / "history")
    assert not path.exists()  # nothing was said
    say(talking, capsys, "hat")
    path.parent.mkdir()
    path.write_text("not ours")  # our own place, whatever lies there
    with pytest.raises(KeyboardInterrupt):
        talking.run(tmp_path / "history")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "edgellm chat --resume" in capsys.readouterr().err
    again = Talk(ChatSession(talk.session.engine), dataclasses.replace(model, name="other"), None, kept=path)
    again.resume()
    assert [m.content for m in again.session.messages] == [m.content for m in talking.session.messages]
    assert again.session.system == "Be brief."
    assert "(2 messages from the conversation left last, which tiny answered" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals of other systems end a process at once")
@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM, None])
def test_what_must_be_done_at_leaving_is_done_once_whatever_ends_it(first: signal.Signals | None) -> None:
    done = []

    def last() -> None:
        os.kill(os.getpid(), signal.SIGHUP)  # as the terminal does once more
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(True)

    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests themselves ignore it
    before = signal.getsignal(signal.SIGHUP)
    with contextlib.suppress(SystemExit), leaving(last):
        if first is not None:
            os.kill(os.getpid(), first)
            raise AssertionError
    assert done == [True]
    assert signal.getsignal(signal.SIGHUP) == before
    signal.signal(signal.SIGHUP, ours)


def test_what_is_kept_is_bounded_by_leaving_out_the_oldest_turns(
    talk: Talk, model: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MAX_KEPT_BYTES", 4000)
    vocabulary, path = talk.session.engine.model.vocabulary, tmp_path / "kept.json"
    said = [Message("user" if i % 2 == 0 else "assistant", f"{i} " + "x" * 100) for i in range(200)]
    conversations.keep(path, said, system=None, target=model, draft=None, vocabulary=vocabulary)
    kept = list(read(path, vocabulary).messages)
    assert path.stat().st_size <= 4000
    assert len(kept) > 4
    assert kept == said[-len(kept) :]


def test_the_line_below_an_answer_speaks_of_drafts_only_where_a_model_drafts(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = Stats(n_new=4, n_rounds=4, n_drafted=6, decode_s=1.0)
    assert "drafts" not in status_line(Answer("x", (), "stop", stats), talk.session)
    stats.n_accepted = 2
    assert "2 tokens copied" in status_line(Answer("x", (), "stop", stats), talk.session)
    stats.n_thought = 3
    assert "3 of 4 tokens thought" in status_line(Answer("x", (), "stop", stats), talk.session)


def hostile() -> dict[str, bytes]:
    good: dict[str, Any] = {
        "format": "edgellm conversation",
        "version": 1,
        "target": {"name": "x"},
        "system": None,
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    }
    user, answer = good["messages"]
    changes: dict[str, dict[str, Any]] = {
        "another format": {"format": "x"},
        "a later version": {"version": 2},
        "no target": {"target": None},
        "messages that are no list": {"messages": {}},
        "a message that is no object": {"messages": ["q", "a"]},
        "a system message inside": {"messages": [{"role": "system", "content": "x"}, answer]},
        "two questions": {"messages": [user, user]},
        "a question without answer": {"messages": [user]},
        "content that is no text": {"messages": [{"role": "user", "content": 1}, answer]},
        "half a surrogate pair": {"messages": [{"role": "user", "content": "\ud800"}, answer]},
        "a system prompt that is no text": {"system": ["x"]},
    }
    files = {name: json.dumps(good | change).encode() for name, change in changes.items()}
    return files | {
        "empty": b"",
        "no json": b"{",
        "no utf-8": b"\xff\xfe",
        "no object": b"[]",
        "deep": b"[" * 100_000,
        "a number of any length": b'{"version": ' + b"1" * 5000 + b"}",
    }


@pytest.mark.parametrize("what", hostile())
def test_a_file_that_is_no_conversation_is_one_sentence_and_changes_nothing(
    talk: Talk, capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(hostile()[what])
    say(talk, capsys, "hat")
    before = list(talk.session.messages)
    shown, error = say(talk, capsys, f"/load {path}")
    assert shown == ""
    assert error.startswith(f"error: {path} is no conversation: ")
    assert error.count("\n") == 1
    assert talk.session.messages == before


def test_files_that_are_none_of_ours_are_neither_read_nor_overwritten(
    talk: Talk, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    note = tmp_path / "note.txt"
    note.write_text("mine")
    assert "choose another name" in say(talk, capsys, f"/save {note}")[1]
    assert note.read_text() == "mine"
    assert "is no file" in say(talk, capsys, "/load /dev/zero")[1]
    assert "there is no file" in say(talk, capsys, f"/load {tmp_path / 'missing'}")[1]
    path = tmp_path / "no" / "folder.json"
    assert say(talk, capsys, f"/save {path}")[1] == f"error: {path}: No such file or directory\n"
    with pytest.raises(BadConversation):
        read(tmp_path, talk.session.engine.model.vocabulary)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/stat", "did you mean /stats?"),
        ("/xyzzy", "/help lists them"),
        ("/think off", "did you mean /set think?"),
        ("/set tempo 1", "did you mean temperature?"),
        ("/set top_k many", "top_k cannot be 'many'"),
        ("/set top_k none", "top_k cannot be 'none'"),
        ("/set temperature -1", "out of range"),
        ("/set temperature nan", "out of range"),
        ("/set max_tokens 0", "max_tokens cannot be '0'"),
        ("/set seed -4", "seed cannot be '-4'"),
        ("/set think perhaps", "think cannot be 'perhaps'"),
        ("/set think_budget -1", "think_budget cannot be '-1'"),
        ("/set draft_tokens -1", "draft_tokens cannot be '-1'"),
        ('/set stop "open', "stop cannot be"),
        ("/save", "needs the name of a file"),
        ("/regen", "no question yet"),
    ],
)
def test_a_line_that_cannot_be_obeyed_is_answered_with_a_sentence_and_changes_nothing(
    talk: Talk, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    before = (talk.session.sampling, talk.session.stop, talk.max_tokens, talk.session.engine.n_draft)
    shown, error = say(talk, capsys, line)
    assert shown == ""
    assert words in error
    assert error.count("\n") == 1
    assert (talk.session.sampling, talk.session.stop, talk.max_tokens, talk.session.engine.n_draft) == before


def test_settings_can_be_changed_and_changed_back(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    before = say(talk, capsys, "/set")[0]
    for line, shown in (
        ("/set temp 0.7", "temperature     0.7"),
        ("/set seed 3", "seed            3"),
        ("/set seed -1", "seed            none"),
        ("/set draft-tokens 2", "draft_tokens    2"),
        ("/set stop END OF", 'stop            "END OF"'),
        ("/set think off", "think           off"),
        ("/set think on", "think           on"),
        ("/set think-budget 20", "think_budget    20"),
        ('/set stop "the end" "\\n"', 'stop            "the end" "\\n"'),
    ):
        assert say(talk, capsys, line)[0] == f"  {shown}\n"
    assert talk.session.stop == ("the end", "\n")
    undo = ("temperature 0", "seed none", "draft_tokens 15", "stop none", "think auto", "think_budget none")
    for line in (f"/set {setting}" for setting in undo):
        say(talk, capsys, line)
    assert say(talk, capsys, "/set")[0] == before


def test_a_command_may_be_followed_by_several_lines(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    say(talk, capsys, "/system\nBe brief.\n Be kind.")
    assert talk.session.system == "Be brief.\n Be kind."
    say(talk, capsys, '/system ""')
    assert talk.session.system is None


def test_a_path_at_the_beginning_of_a_question_is_no_command(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    say(talk, capsys, "/usr/bin/hat is what?")
    assert talk.session.messages[0].content == "/usr/bin/hat is what?"


def test_answering_again_replaces_the_answer(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    first, told = say(talk, capsys, "hat")[0], say(talk, capsys, "/regen")
    assert told[0] == first
    assert "temperature is 0" in told[1]
    assert len(talk.session.messages) == 2


@given(st.text())
def test_text_for_a_terminal_moves_no_cursor_and_loses_no_letter(text: str) -> None:
    shown = printable(text)
    assert not any(ord(character) < 0x20 and character not in "\n\t" for character in shown)
    assert not any(0x7F <= ord(character) < 0xA0 for character in shown)
    assert [c for c in shown if c.isalnum()] == [c for c in text if c.isalnum()]


@given(st.lists(st.text("ab \n日`", max_size=12)), st.integers(4, 20))
def test_wrapping_changes_nothing_but_the_space_between_words_however_the_text_is_cut(
    pieces: list[str], n_columns: int
) -> None:
    def wrapped(pieces: list[str]) -> str:
        wrap = WordWrap(lambda: n_columns)
        return "".join(map(wrap.feed, pieces)) + wrap.end()

    text = "".join(pieces)
    assert wrapped(pieces) == wrapped([text])
    assert wrapped(pieces).split() == text.split() or "日" in text
    assert "".join(wrapped(pieces).split()) == "".join(text.split())
    assert wrapped(pieces).count("\n\n") == text.count("\n\n")


def test_words_stay_whole_and_code_stays_as_it_is() -> None:
    wrap = WordWrap(lambda: 10)
    assert wrap.feed("one three five\n```\none three five\n```\none three five") + wrap.end() == (
        "one three\nfive\n```\none three five\n```\none three\nfive"
    )
