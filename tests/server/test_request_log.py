"""What a server tells its own people: a line for each request where they ask for it, and each warning once."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest
from http_servers import Running, Scripted, running, until

from edgellm.app.listener import Silence
from edgellm.runtime.answer import Piece
from edgellm.runtime.backends.base import EngineError


class Heard(Silence):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def served() -> Scripted:
    return Scripted()


@pytest.fixture
def server(served: Scripted, heard: Heard) -> Iterator[Running]:
    with running(served, listener=heard, logs_requests=True) as server:
        yield server


def line(heard: Heard, n: int = 1) -> str:
    """The last line of so many, without its times."""
    until(lambda: len(heard.notes) == n)
    found = re.fullmatch(r"\d\d:\d\d:\d\d (.*) \(\d+\.\d s\)", heard.notes[-1])
    assert found is not None, heard.notes[-1]
    return found[1]


def test_an_answer_is_told_with_its_cost_and_without_what_was_said(server: Running, heard: Heard) -> None:
    for n, stream in enumerate((False, True), 1):
        server.chat(stream=stream)
        told = line(heard, n)
        assert told.startswith("POST /v1/chat/completions 200: ")
        assert "2 cached, 2 written" in told
        assert "of 4 drafted" in told
        assert "hat" not in told.replace("chat", "")
        assert "Hello" not in told


def test_a_refusal_is_told_with_its_sentence(server: Running, heard: Heard) -> None:
    server.chat(messages="x")
    assert line(heard).startswith("POST /v1/chat/completions 400: messages must be a list")
    server.ask("POST", "/v1/messages", b"{")
    assert line(heard, 2).startswith("POST /v1/messages 400: the body is no JSON")
    server.ask("GET", "/v1/models", headers={"Host": "evil.example"})
    assert line(heard, 3).startswith("GET /v1/models 403: the Host header")


def test_what_a_client_sends_moves_no_cursor_and_makes_no_second_line(server: Running, heard: Heard) -> None:
    server.ask("GET", "/%1b%5b2J%0a00:00:00%20forged")
    assert line(heard) == r"GET /\x1b[2J\n00:00:00 forged 404: there is no such path here: see /v1/models"
    server.chat(model="\x1b]0;title\x07" + "x" * 5000)
    assert "\x1b" not in line(heard, 2)
    assert len(line(heard, 2)) < 500


@pytest.mark.parametrize("stream", [False, True])
def test_who_left_is_told_as_such(server: Running, served: Scripted, heard: Heard, stream: bool) -> None:
    served.shut()
    with server.begin(stream=stream):
        until(lambda: served.n_begun == 1)
    assert line(heard).startswith("POST /v1/chat/completions left")


def test_a_stream_that_failed_is_told_with_the_reason(heard: Heard) -> None:
    served = Scripted(Piece("Hello", "text"), EngineError("the pass failed"))
    with running(served, listener=heard, logs_requests=True) as server:
        server.chat(stream=True)
        assert line(heard).startswith("POST /v1/chat/completions 200: failed: the pass failed")


def test_whoever_looks_whether_it_lives_fills_no_log(server: Running, heard: Heard) -> None:
    for path in ("/health", "/v1/metrics", "/", "/page/main.js"):
        assert server.ask("GET", path).status == 200
    server.ask("GET", "/v1/models")
    assert line(heard) == "GET /v1/models 200"


def test_nothing_is_told_where_nobody_asked_for_it(served: Scripted, heard: Heard) -> None:
    with running(served, listener=heard) as server:
        server.chat()
    assert heard.notes == []


def test_what_goes_wrong_while_it_answers_is_told_once(server: Running, served: Scripted, heard: Heard) -> None:
    served.warnings.append("the disk is full")
    for _ in range(2):
        server.chat()
    until(lambda: server.service.desk.n_running == 0)
    assert heard.warnings == ["the disk is full"]


def test_a_terminal_that_is_gone_ends_no_answer(served: Scripted) -> None:
    class Gone(Silence):
        told = threading.Event()

        def note(self, text: str) -> None:
            self.told.set()
            raise BrokenPipeError

        warning = note

    served.warnings.append("the disk is full")
    with running(served, listener=Gone(), logs_requests=True) as server:
        served.warnings.append("another")
        assert server.chat().status == 200
        assert server.chat(stream=True).events()[-1] == "[DONE]"
        assert Gone.told.is_set()


@pytest.mark.parametrize("error", [EngineError("a\x1b[2J pass failed"), ZeroDivisionError("a\n pass failed")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_server_is_told_always(
    error: Exception, stream: bool, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    with running(Scripted(error), listener=heard) as server:
        server.chat(stream=stream)
    (told,) = [one.getMessage() for one in caplog.records if one.name == "edgellm.server"]
    assert "pass failed" in told
    assert told.isprintable()


def test_a_failure_that_nobody_waits_for_is_one_line_and_no_trace(
    server: Running, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    loop = server.server._loop
    assert loop is not None
    for _ in range(3):
        loop.call_soon_threadsafe(lambda: {}["a\nkey"])
    assert server.ask("GET", "/health").status == 200
    assert heard.warnings == [r"the server goes on after a failure: KeyError: 'a\nkey'"]
    assert caplog.records == []
