"""A conversation: what was read is not read again, and whatever ends an answer leaves the conversation whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_gguf import write_tiny

from edgellm.runtime import ChatSession, Engine, EngineOptions, Sampling, load
from edgellm.runtime.backends.base import ContextFull
from edgellm.runtime.text.template import Message

QUESTION = "the thin hat in the tin"
N_CTX = 256
VARIED = Sampling(repeat_penalty=3.0)  # a tiny random model says one thing over and over otherwise


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def plain(path: Path) -> Iterator[Engine]:
    with load(path, None, EngineOptions(n_ctx=N_CTX, copy=False)) as engine:
        yield engine


@pytest.fixture(scope="module")
def drafting(path: Path) -> Iterator[Engine]:
    """The target is its own drafter, so every draft is accepted."""
    with load(path, path, EngineOptions(n_ctx=N_CTX, n_draft=4, fixed=True, copy=False)) as engine:
        yield engine


def say(session: ChatSession, text: str = QUESTION, **options: int) -> str:
    return "".join(session.reply(text, **options))


def test_the_pieces_are_the_answer(drafting: Engine) -> None:
    session = ChatSession(drafting)
    text = say(session, max_tokens=20)
    assert session.last is not None
    assert session.last.text == text
    assert len(session.last.tokens) == session.last.stats.n_new == 20
    assert [message.role for message in session.messages] == ["user", "assistant"]
    assert session.messages[1].tokens == session.last.tokens


def test_only_what_is_new_is_read_in_the_next_turn(plain: Engine, drafting: Engine) -> None:
    for engine in (plain, drafting):
        engine.backend.truncate(0)
        session = ChatSession(engine, system="a tin")
        say(session, max_tokens=20)
        assert session.last is not None
        first = session.last.stats
        assert first.n_cached == 0
        say(session, "in", max_tokens=5)
        # All of it but the last token, whose keys and values were never needed.
        assert session.last.stats.n_cached == first.n_prompt + first.n_new - 1
        assert session.last.stats.n_prompt > first.n_prompt + first.n_new
        assert session.n_context == session.last.stats.n_prompt + session.last.stats.n_new - 1


def test_reused_text_gives_the_answer_of_a_fresh_reading(plain: Engine) -> None:
    session = ChatSession(plain)
    say(session, max_tokens=20)
    second = say(session, "in", max_tokens=20)
    plain.backend.truncate(0)
    session.messages = session.messages[:2]
    assert say(session, "in", max_tokens=20) == second


def test_drafting_changes_no_answer(plain: Engine, drafting: Engine) -> None:
    for sampling in (Sampling(), VARIED):
        texts = []
        for engine in (plain, drafting):
            session = ChatSession(engine, sampling=sampling)
            texts.append([say(session, max_tokens=30), say(session, "in", max_tokens=30)])
        assert texts[0] == texts[1]


def test_an_answer_ends_at_a_stop_string_inside_an_accepted_draft(plain: Engine, drafting: Engine) -> None:
    whole = say(ChatSession(plain, sampling=VARIED), max_tokens=40)
    assert len(set(whole)) > 10
    for start in range(1, len(whole) - 3, 3):
        stop = whole[start : start + 2]
        answers = []
        for engine in (plain, drafting):
            session = ChatSession(engine, sampling=VARIED, stop=[stop])
            assert say(session, max_tokens=40) == whole[: whole.index(stop)]
            assert session.last is not None
            assert session.last.finish_reason == "stop_string"
            answers.append(session.last)
        assert answers[0].tokens == answers[1].tokens  # what was drafted beyond is not kept


def test_what_might_have_begun_a_stop_string_is_told_at_the_end(plain: Engine) -> None:
    whole = say(ChatSession(plain, sampling=VARIED), max_tokens=10)
    session = ChatSession(plain, sampling=VARIED, stop=[whole[-1] + "never"])
    assert say(session, max_tokens=10) == whole


def test_every_end_of_an_answer_is_named(plain: Engine) -> None:
    session = ChatSession(plain)
    assert session.last is None
    say(session, max_tokens=3)
    assert session.last is not None
    assert session.last.finish_reason == "length"
    assert say(session, max_tokens=0) == ""
    session.clear()
    say(session)
    assert session.last is not None
    assert session.last.finish_reason in ("context", "stop")
    assert session.last.stats.n_prompt + session.last.stats.n_new <= plain.backend.n_ctx
    answer = session.reply("in", max_tokens=1)
    with pytest.raises(ContextFull, match="/clear"):
        list(answer)


def test_an_end_token_stops_and_is_no_text(plain: Engine, drafting: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    free = ChatSession(plain, sampling=VARIED)
    say(free, max_tokens=40)
    assert free.last is not None
    tokens = free.last.tokens
    n_said = next(i for i in range(3, 40) if tokens[i] not in tokens[:i])  # the model says this to end its turn
    for engine in (plain, drafting):
        vocabulary = engine.model.vocabulary
        monkeypatch.setattr(vocabulary, "end_tokens", frozenset({tokens[n_said]}))
        monkeypatch.setattr(vocabulary, "control", vocabulary.control | {tokens[n_said]})
        monkeypatch.setattr(vocabulary, "_pieces", [None] * vocabulary.n_tokens)
        session = ChatSession(engine, sampling=VARIED)
        text = say(session, max_tokens=40)
        assert session.last is not None
        assert session.last.finish_reason == "stop"
        assert session.last.tokens == tokens[:n_said]
        said = vocabulary.decode(tokens[:n_said]).decode("utf-8", "replace")
        assert said.startswith(text)
        assert len(said) - len(text) <= 1  # half a character at the end is dropped
        assert session.last.stats.n_new == n_said + 1


def test_closing_an_answer_keeps_what_was_said(drafting: Engine) -> None:
    session = ChatSession(drafting)
    answer = session.reply(QUESTION, max_tokens=100)
    said = next(answer) + next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert session.last is not None
    assert session.last.finish_reason == "interrupted"
    assert session.last.text.startswith(said)
    assert session.messages[1].content == session.last.text
    n_said = session.last.stats.n_prompt + len(session.last.tokens)
    say(session, "in", max_tokens=3)
    assert session.last.stats.n_cached == n_said - 1


def test_regenerating_replaces_the_answer(plain: Engine) -> None:
    session = ChatSession(plain)
    with pytest.raises(ValueError, match="no question"):
        list(session.regenerate())
    first = say(session, max_tokens=12)
    assert "".join(session.regenerate(max_tokens=12)) == first
    assert [message.role for message in session.messages] == ["user", "assistant"]
    session.sampling = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=3)
    assert "".join(session.regenerate(max_tokens=12)) != first


def test_a_conversation_that_does_not_fit_is_left_as_it_was(plain: Engine) -> None:
    session = ChatSession(plain)
    say(session, max_tokens=5)
    before = list(session.messages)
    with pytest.raises(ContextFull, match=r"question alone is .*: shorten it, or start again with a larger --ctx"):
        say(session, "the hat " * 200)
    with pytest.raises(ContextFull, match=r"conversation is .*: /clear it"):
        say(session, "the hat " * 45)
    assert session.messages == before
    session.system = "the hat " * 200
    with pytest.raises(ContextFull):
        list(session.regenerate())
    assert session.messages == before
    session.system = None
    say(session, "in", max_tokens=5)
    assert len(session.messages) == 4


def test_a_prompt_beyond_the_drafters_context_is_drafted_for_from_its_newer_part(path: Path, tmp_path: Path) -> None:
    short = write_tiny(tmp_path / "short.gguf", n_ctx_train=64)
    options = EngineOptions(n_ctx=1024, n_draft=4, fixed=True, copy=False)
    answers = []
    for drafter in (None, short):
        with load(path, drafter, options) as engine:
            session = ChatSession(engine)
            say(session, "the hat " * 90, max_tokens=100)  # more than the drafter's context again
            assert session.last is not None
            answers.append(session.last)
    plain, drafted = answers
    assert drafted.tokens == plain.tokens
    assert drafted.stats.n_new == 100
    assert drafted.stats.n_drafted > 100 / 5


def test_a_session_on_a_closed_engine_says_so(path: Path) -> None:
    engine = load(path, path, EngineOptions(n_ctx=N_CTX))
    session = ChatSession(engine)
    say(session, max_tokens=2)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        say(session, "again")
    assert len(session.messages) == 2


def test_stats_add_up_and_go_into_json(drafting: Engine) -> None:
    session = ChatSession(drafting)
    say(session, max_tokens=21)
    assert session.last is not None
    stats = session.last.stats
    assert stats.n_new == stats.n_accepted + stats.n_rounds
    parts = stats.draft_s + stats.translate_s + stats.verify_s + stats.sample_s
    assert 0 < parts <= stats.decode_s
    told = json.loads(json.dumps(stats.to_json()))
    assert told["drafted_by"] == {"model": stats.n_drafted}
    assert told["accepted_by"] == {"model": stats.n_accepted}
    assert told["acceptance"] == 1.0
    assert told["tokens_per_round"] > 4


def told(session: ChatSession, *, turns: int, **options: int) -> list[str]:
    return [say(session, f"{QUESTION} {i}", **options) for i in range(turns)]


def test_a_full_context_that_shifts_answers_as_if_the_conversation_had_begun_later(path: Path) -> None:
    with load(path, None, EngineOptions(n_ctx=N_CTX, copy=False)) as engine:
        session = ChatSession(engine, system="a tin", on_full="shift")
        told(session, turns=12, max_tokens=20)
        assert session.last is not None
        assert 0 < session.n_forgotten < len(session.messages) == 24
        assert session.last.n_forgotten == session.n_forgotten
        answer = session.last.text
        engine.backend.truncate(0)
        later = ChatSession(engine, system="a tin")
        later.messages = session.messages[session.n_forgotten : -2]
        assert say(later, session.messages[-2].content, max_tokens=20) == answer


def test_an_answer_goes_on_across_a_shift_with_any_drafter(path: Path) -> None:
    texts = []
    for draft, copy in ((None, False), (None, True), (path, False)):
        with load(path, draft, EngineOptions(n_ctx=N_CTX, copy=copy)) as engine:
            session = ChatSession(engine, on_full="shift", sampling=VARIED)
            told(session, turns=3, max_tokens=20)
            before = session.n_forgotten
            texts.append(say(session, max_tokens=150))
            assert session.last is not None
            assert session.last.finish_reason == "length"
            assert len(session.last.tokens) == 150
            assert session.n_forgotten > before
    assert len(set(texts)) == 1


def test_a_question_that_fills_the_context_by_itself_ends_its_answer(path: Path) -> None:
    with load(path, None, EngineOptions(n_ctx=N_CTX, copy=False)) as engine:
        session = ChatSession(engine, on_full="shift")
        say(session, "the hat " * 40, max_tokens=1000)
        assert session.last is not None
        assert session.last.finish_reason == "context"
        assert session.last.text == session.messages[-1].content
        before = list(session.messages)
        with pytest.raises(ContextFull, match="alone"):
            say(session, "the hat " * 200)
        assert session.messages == before
        say(session, max_tokens=5)
        assert session.n_forgotten == 2


def test_the_pieces_of_an_answer_that_ends_with_the_context_are_the_answer(path: Path) -> None:
    with load(path, None, EngineOptions(n_ctx=N_CTX, copy=False)) as engine:
        for policy in ("stop", "shift"):
            session = ChatSession(engine, on_full="shift" if policy == "shift" else "stop")
            text = say(session, "the hat " * 40)
            assert session.last is not None
            assert (session.last.finish_reason, session.last.text) == ("context", text)


def test_a_template_that_cannot_be_used_costs_itself_and_not_the_chat(tmp_path: Path) -> None:
    broken = write_tiny(tmp_path / "broken.gguf", chat_template="{% frobnicate %}", n_layers=1)
    refusing = write_tiny(
        tmp_path / "refusing.gguf", chat_template="{{ raise_exception('never') }}", n_layers=1, seed=1
    )
    with load(broken, refusing, EngineOptions(n_ctx=N_CTX, n_draft=2, fixed=True, copy=False)) as engine:
        warnings = "\n".join(engine.warnings)
        assert "frobnicate" in warnings
        assert "the ChatML format is used instead" in warnings
        assert "never; the plain document format is used instead" in warnings
        say(ChatSession(engine), max_tokens=3)
        assert engine.draft_prompt([Message("user", "Hi")])
