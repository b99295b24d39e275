"""What a target answered is kept for drafters: whole, bounded, private, and only where it may be."""

from __future__ import annotations

import json
import stat
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny

from edgellm.memory import files
from edgellm.runtime import ChatSession, Engine, EngineOptions, Sampling, load
from edgellm.runtime.distillation import lessons as saved_lessons
from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.distillation.lessons import SavedLessons
from edgellm.runtime.distillation.packed_lessons import MAX_LIKELY, MAX_RECORD_BYTES, pack, records_of, unpack
from edgellm.runtime.learning import persistence
from edgellm.runtime.learning.files import SealedFile, seal
from edgellm.runtime.learning.persistence import BadArchive
from edgellm.runtime.text.markers import marker_ids
from edgellm.runtime.text.reasoning import Thinking

N_VOCAB = 1000
ASKED = (("system", "Be brief."), ("user", 'Naïve – 東京\n"🙂"\x00'), ("assistant", ""), ("user", "And?"))
LESSONS = [
    Lesson(ASKED, (1, 2, 999), True),
    Lesson(ASKED[-1:], (0,), False, kind="own question"),
    Lesson(ASKED, (5, 6), True, (((5, 1.0),), ((6, 0.75), (7, 0.25)), ((0, 0.5),))),
    Lesson(ASKED, (5, 6), False, (((5, 0.6),), ())),
]
WRITER = """
import sys
from pathlib import Path
from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.distillation.lessons import SavedLessons
from edgellm.runtime.learning import persistence

kept = SavedLessons(persistence.sealed(Path(sys.argv[1]), "lessons", "k", print), 1000)
for i in range(20):
    kept.add(Lesson((("user", sys.argv[2]),), (i,), True))
    kept.save()
"""


def file_in(folder: Path, warnings: list[str] | None = None) -> SealedFile:
    return persistence.sealed(folder, "lessons", "k", (warnings if warnings is not None else []).append)


def kept_in(folder: Path, **limits: int) -> SavedLessons:
    return SavedLessons(file_in(folder), N_VOCAB, **limits)


def said(*tokens: int) -> Lesson:
    return Lesson((("user", "Hi"),), tokens, True)


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_comes_back_as_it_was(lesson: Lesson) -> None:
    again = unpack(pack(lesson), N_VOCAB)
    assert (again.messages, again.tokens, again.ended, again.kind) == (
        lesson.messages,
        lesson.tokens,
        lesson.ended,
        lesson.kind,
    )
    assert len(again.likely) == len(lesson.likely)
    for found, given_ in zip(again.likely, lesson.likely, strict=True):
        assert dict(found) == pytest.approx(dict(given_), abs=1e-5)
        assert [token for token, _ in found] == [token for token, _ in given_]


def test_only_the_likeliest_tokens_are_kept() -> None:
    likely = tuple((token, 0.01) for token in range(50))
    assert len(unpack(pack(Lesson(ASKED, (1,), False, (likely,))), N_VOCAB).likely[0]) == MAX_LIKELY


def test_lessons_outlive_the_process(tmp_path: Path) -> None:
    kept = kept_in(tmp_path)
    for lesson in LESSONS[:2]:
        kept.add(lesson)
    assert kept.all() == LESSONS[:2]  # before they are on disk, too
    kept.save()
    assert kept_in(tmp_path).all() == LESSONS[:2] == kept.all()


def test_without_a_file_they_live_as_long_as_the_process() -> None:
    kept = SavedLessons(None, N_VOCAB)
    kept.add(LESSONS[0])
    kept.save()
    assert kept.all() == LESSONS[:1]


@pytest.mark.parametrize(("limits", "n_kept"), [({"max_tokens": 25}, 2), ({"max_bytes": 400}, 3), ({}, 8)])
def test_the_newest_stay_within_the_budget(tmp_path: Path, limits: dict[str, int], n_kept: int) -> None:
    expected = [said(*range(i, i + 10)) for i in range(8)]
    for lesson in expected:  # from runs of their own, and from one
        kept = kept_in(tmp_path, **limits)
        kept.add(lesson)
        kept.save()
    assert kept_in(tmp_path).all() == expected[-n_kept:]
    alone = SavedLessons(None, N_VOCAB, **limits)
    for lesson in expected:
        alone.add(lesson)
    assert alone.all() == expected[-n_kept:]


def test_the_same_answer_again_is_one_lesson_and_the_newest(tmp_path: Path) -> None:
    for tokens in ((1,), (2,), (1,)):
        kept = kept_in(tmp_path)
        kept.add(said(*tokens))
        kept.save()
    assert kept_in(tmp_path).all() == [said(2), said(1)]


def test_a_long_conversation_is_kept_from_its_last_turns_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_lessons, "MAX_PROMPT_CHARACTERS", 40)
    monkeypatch.setattr(saved_lessons, "MAX_ANSWER_TOKENS", 5)
    turns = (("user", "a" * 15), ("assistant", "b" * 15), ("user", "c" * 15), ("assistant", "d"), ("user", "e"))
    kept = SavedLessons(None, N_VOCAB)
    kept.add(Lesson((("system", "S"), *turns), tuple(range(9)), True, tuple(((i, 1.0),) for i in range(10))))
    kept.add(Lesson((("user", "x" * 41),), (1,), True))
    kept.add(Lesson((("user", "x"),), (), True))
    (lesson,) = kept.all()
    assert lesson.messages == (("system", "S"), *turns[2:])
    assert (lesson.tokens, lesson.ended, len(lesson.likely)) == (tuple(range(5)), False, 5)


@pytest.mark.parametrize(
    "lesson", [said(N_VOCAB), said(-1), Lesson((("tool", "x"),), (1,), True), Lesson((("user", "\ud800"),), (1,), True)]
)
def test_what_could_not_be_read_again_is_not_taken(lesson: Lesson) -> None:
    kept = SavedLessons(None, N_VOCAB)
    with pytest.raises(ValueError):  # noqa: PT011  # the codec's words, or the encoding's
        kept.add(lesson)
    assert kept.all() == []


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), who]) for who in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    found = kept_in(tmp_path).all()
    for who in "ab":
        assert [lesson.tokens for lesson in found if lesson.messages[0][1] == who] == [(i,) for i in range(20)]


def test_a_full_disk_loses_nothing_that_is_still_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = kept_in(tmp_path)
    kept.add(said(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", full)
        with pytest.raises(OSError, match="No space"):
            kept.save()
    kept.add(said(2))
    kept.save()
    assert kept_in(tmp_path).all() == [said(1), said(2)]


def test_they_are_for_their_owner_alone(tmp_path: Path) -> None:
    kept = kept_in(tmp_path / "learned")
    kept.add(said(1))
    kept.save()
    path = file_in(tmp_path / "learned").path
    assert [stat.S_IMODE(part.stat().st_mode) for part in (path, path.parent)] == [0o600, 0o700]


def record(line: object, arrays: bytes = b"", n_tokens: int = 0, *, n_raw: int | None = None) -> bytes:
    text = line if isinstance(line, bytes) else json.dumps(line).encode()
    body = text + b"\n" + arrays
    packed = zlib.compress(body)
    return struct.pack("<III", len(packed), len(body) if n_raw is None else n_raw, n_tokens) + packed


def lines(**changes: object) -> dict[str, object]:
    return {"messages": [["user", "Hi"]], "ended": True, "kind": "chat", "n_likely": 0} | changes


BOMB = zlib.compress(bytes(50 * 2**20))
ONE = struct.pack("<i", 1)
BAD = {
    "half a head": b"\1\0\0",
    "a body that is missing": struct.pack("<III", 10, 10, 0),
    "no deflate": struct.pack("<III", 4, 4, 0) + b"nope",
    "a bomb that says what it is": struct.pack("<III", len(BOMB), 50 * 2**20, 0) + BOMB,
    "a bomb that says less": struct.pack("<III", len(BOMB), 100, 0) + BOMB,
    "many at their largest": record(lines(), n_raw=MAX_RECORD_BYTES) * 17,
    "too many tokens": record(lines(), n_tokens=400_001),
    "more than it says": record(lines(), n_raw=5),
    "less than it says": record(lines(), n_raw=500),
    "no JSON": record(b"{"),
    "deep JSON": record(b"[" * 100_000),
    "a list": record([1]),
    "nothing said of": record({}),
    "no messages": record(lines(messages=[])),
    "a message of three": record(lines(messages=[["user", "Hi", "there"]])),
    "a message that is a text": record(lines(messages=["hi"])),
    "a role that is none": record(lines(messages=[["tool", "x"]])),
    "a role that is a list": record(lines(messages=[[["user"], "x"]])),
    "a content that is none": record(lines(messages=[["user", None]])),
    "half a surrogate pair": record(lines(messages=[["user", "\ud800"]])),
    "an end that is a number": record(lines(ended=1), ONE, 1),
    "a kind that is none": record(lines(kind=3), ONE, 1),
    "a long kind": record(lines(kind="x" * 33), ONE, 1),
    "no number of places": record(lines(n_likely=True), ONE + b"\0", 1),
    "a negative number of places": record(lines(n_likely=-1), ONE, 1),
    "too many places": record(lines(n_likely=3), ONE + bytes(3), 1),
    "too many likely tokens": record(lines(n_likely=1), ONE + bytes([17]) + bytes(6 * 17), 1),
    "too few numbers": record(lines(), ONE, 2),
    "too many numbers": record(lines(), ONE * 2, 1),
    "a token that is none": record(lines(), struct.pack("<i", N_VOCAB), 1),
    "a negative token": record(lines(), struct.pack("<i", -1), 1),
    "a likely token that is none": record(lines(n_likely=1), ONE + b"\1" + struct.pack("<iH", N_VOCAB, 1), 1),
}


def test_the_records_that_are_to_be_refused_are_near_good_ones() -> None:
    assert unpack(record(lines(), ONE, 1), N_VOCAB) == said(1)
    assert unpack(record(lines(n_likely=1), ONE + b"\0", 1), N_VOCAB).likely == ((),)


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD.keys())
def test_a_file_that_makes_no_sense_is_set_aside_with_a_warning(tmp_path: Path, payload: bytes) -> None:
    """Its checksum is right: nothing is known of who wrote it."""
    warnings: list[str] = []
    kept = SavedLessons(file_in(tmp_path, warnings), N_VOCAB)
    kept.add(said(1))
    path = file_in(tmp_path).path
    path.write_bytes(seal(pack(said(2)) + payload, "lessons", persistence.VERSION, "k"))
    tracemalloc.start()
    found, peak_bytes = kept.all(), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [said(1)]
    assert peak_bytes < 4 * 2**20
    (warning,) = warnings
    assert "set aside" in warning
    assert path.with_name(path.name + ".damaged").exists()
    kept.save()
    assert kept_in(tmp_path).all() == [said(1)]


def test_a_file_that_is_damaged_is_set_aside_when_lessons_are_added(tmp_path: Path) -> None:
    path, warnings = file_in(tmp_path).path, list[str]()
    path.write_bytes(b"nothing of ours")
    kept = SavedLessons(file_in(tmp_path, warnings), N_VOCAB)
    kept.add(said(1))
    kept.save()
    assert len(warnings) == 1
    assert kept_in(tmp_path).all() == [said(1)]


@given(st.data())
def test_whatever_the_bytes_nothing_but_lessons_comes_out(data: st.DataObject) -> None:
    payload = bytearray(b"".join(pack(lesson) for lesson in LESSONS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] ^= data.draw(st.integers(1, 255))
    try:
        found = [unpack(item, N_VOCAB) for item in records_of(bytes(payload))]
    except ValueError:
        return
    assert all(0 <= token < N_VOCAB for lesson in found for token in lesson.tokens)


def test_an_archive_carries_them_and_clearing_deletes_them(tmp_path: Path) -> None:
    here, there, archive = tmp_path / "here", tmp_path / "there", tmp_path / "a.zip"
    for folder, tokens in ((here, (1, 2)), (there, (2, 3))):
        kept = kept_in(folder)
        for token in tokens:
            kept.add(said(token))
        kept.save()
    assert persistence.export_to(here, archive) == 1
    assert persistence.import_from(there, archive, lambda text: None) == 1
    assert kept_in(there).all() == [said(3), said(1), said(2)]
    (listed,) = persistence.listing(there)
    assert (listed.kind, listed.key, listed.n_entries) == ("lessons", "k", 3)
    assert persistence.clear(there) == 1
    assert kept_in(there).all() == []


@pytest.mark.parametrize("name", ["half a head", "a bomb that says less", "a role that is none", "too few numbers"])
def test_an_archive_with_lessons_that_are_none_changes_nothing(tmp_path: Path, name: str) -> None:
    archive, path = tmp_path / "a.zip", file_in(tmp_path).path
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(path.name, seal(BAD[name], "lessons", persistence.VERSION, "k"))
    kept = kept_in(tmp_path)
    kept.add(said(1))
    kept.save()
    with pytest.raises(BadArchive, match="cannot be used"):
        persistence.import_from(tmp_path, archive, lambda text: None)
    assert kept_in(tmp_path).all() == [said(1)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_layers=1)


@contextmanager
def opened(path: Path, learned: Path | None, **options: object) -> Iterator[Engine]:
    settings = EngineOptions(n_ctx=256, n_draft=2, fixed=True, n_threads=1, learned=learned, **options)  # type: ignore[arg-type]
    with load(path, None, settings) as engine:
        yield engine


def found_in(folder: Path) -> list[Lesson]:
    """What a run left on disk, whatever it is named."""
    found: list[Lesson] = []
    for file in persistence.listing(folder):
        if file.kind == "lessons":
            sealed = persistence.sealed(folder, "lessons", file.key, pytest.fail)
            found += SavedLessons(sealed, 2**20).all()
    return found


def test_what_the_target_answered_is_kept_with_what_was_asked(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny, tmp_path) as engine:
        session = ChatSession(engine, system="Be brief.")
        texts, tokens = [], []
        for question in ("hat", "the tin"):
            texts.append("".join(session.reply(question, max_tokens=6)))
            assert session.last is not None
            tokens.append(session.last.tokens)
    first, second = found_in(tmp_path)
    assert first == Lesson((("system", "Be brief."), ("user", "hat")), tokens[0], False)
    assert second.messages == (*first.messages, ("assistant", texts[0]), ("user", "the tin"))
    assert second.tokens == tokens[1]


def test_an_answer_that_the_target_ended_is_a_whole_one(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny, tmp_path) as engine:
        sampling = Sampling(temperature=1.5, seed=7)  # sampled answers teach too
        tokens = engine.generate("hat", max_tokens=12, sampling=sampling).finish().tokens
        end = next(token for i, token in enumerate(tokens) if i > 3 and token not in tokens[:i])
        engine.model.vocabulary.end_tokens = frozenset({end})
        answer = engine.generate("hat", max_tokens=12, sampling=sampling).finish()
    assert answer.finish_reason == "stop"
    assert found_in(tmp_path)[-1] == Lesson((("user", "hat"),), tokens[: tokens.index(end)], True)


@pytest.mark.parametrize(("n_said", "n_kept"), [(8, 0), (24, 1)])
def test_an_interrupted_answer_is_kept_once_it_says_something(
    tiny: Path, tmp_path: Path, n_said: int, n_kept: int
) -> None:
    with opened(tiny, tmp_path, copy=False) as engine:
        generation = engine.generate("hat", max_tokens=64)
        for _ in generation.pieces():
            if len(generation._stream.tokens) >= n_said:
                break
        generation.close()
        assert generation.answer.finish_reason == "interrupted"
    found = found_in(tmp_path)
    assert len(found) == n_kept
    assert all(lesson == Lesson((("user", "hat"),), generation.answer.tokens, False) for lesson in found)


@pytest.mark.parametrize("learn", ["off", "fresh"])
def test_nothing_is_kept_where_nothing_is_to_be(tiny: Path, tmp_path: Path, learn: str) -> None:
    with opened(tiny, tmp_path, learn=learn) as engine:
        engine.generate("hat", max_tokens=20).finish()
        assert engine.pair_state is not None
        assert engine.pair_state.lessons is None
    assert found_in(tmp_path) == []
    assert not list(tmp_path.glob("lessons-*"))


def test_nothing_is_held_without_a_place_to_keep_it(tiny: Path) -> None:
    with opened(tiny, None) as engine:
        engine.generate("hat", max_tokens=20).finish()
        assert engine.pair_state is not None
        assert engine.pair_state.lessons is None


def test_an_answer_behind_a_stop_string_is_no_lesson(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny, tmp_path) as engine:
        text = engine.generate("hat", max_tokens=20).finish().text
        answer = engine.generate("hat", max_tokens=20, stop=text[4:6]).finish()
        assert answer.finish_reason == "stop_string"
    assert len(found_in(tmp_path)) == 1


@pytest.mark.parametrize(
    ("begun", "is_open", "n_kept"), [("", False, 1), ("<think>", True, 0)], ids=["an answer", "a thought"]
)
def test_an_answer_with_a_thought_is_no_lesson(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str, is_open: bool, n_kept: int
) -> None:
    path = write_tiny(tmp_path / "thinks.gguf", added=("<think>", "</think>"), n_layers=1)
    monkeypatch.setattr(Thinking, "begin", lambda it: (marker_ids(begun, it.vocabulary), is_open))
    with opened(path, tmp_path) as engine:
        engine.generate("hat", max_tokens=20, think_budget=4 if is_open else None).finish()
    assert len(found_in(tmp_path)) == n_kept


def test_lessons_are_of_what_the_store_is_of(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny, tmp_path) as engine:
        engine.generate("hat", max_tokens=4).finish()
    keys = {file.kind: file.key for file in persistence.listing(tmp_path)}
    assert keys["lessons"] == keys["store"]  # which names the vocabulary, and the adapters
