"""Hostile and unlucky clients: bounds hold, nobody waits for ever, and what is refused is refused in one shape."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from http_servers import QUESTION, Reply, Running, Scripted, running, until, whole_reply
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.app.serving import Writing
from edgellm.runtime.answer import Piece
from edgellm.runtime.backends.base import EngineError
from edgellm.runtime.request import Request

SERVED = Scripted()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(SERVED, max_body_bytes=100_000, body_s=0.3, head_s=0.3) as server:
        yield server


def post(server: Running, data: bytes, path: str = "/v1/chat/completions") -> Reply:
    return server.ask("POST", path, data)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b'"x"', "no JSON object"),
        (b"null", "no JSON object"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"model": "scripted", "model": "other"}', "'model' twice"),
        (b'{"messages": [{"role": "user", "role": "system"}]}', "'role' twice"),
        (b'{"a":' * 15_000, "deep"),
        (b'{"a":' + b"[" * 45_000, "deep"),
        (b'{"a": "\xff"}', "UTF-8"),
        ('{"a": "é"}'.encode("utf-16"), "UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'{"a": {"b": ["\\ud83d"]}}', "surrogate"),
        (b'{"a": 1} x', "no JSON"),
        (b"a=1&b=2", "no JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_body_that_is_not_one_sound_object_is_refused(server: Running, data: bytes, sentence: str, path: str) -> None:
    reply = post(server, data, path)
    assert reply.status == 400
    assert reply.error()["type"] == "invalid_request_error"
    assert sentence in reply.error()["message"]


def test_a_whole_surrogate_pair_is_a_character(server: Running) -> None:
    data = json.dumps({"content": "😀"}).encode()
    assert b"\\ud83d" in data
    assert len(post(server, data, "/tokenize").json()["tokens"]) == 4


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "GET"])
def test_another_method_is_refused_and_the_right_one_named(server: Running, method: str) -> None:
    reply = server.ask(method, "/v1/chat/completions")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert reply.error()["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/v2/models", "/v1/chat/completions/", "/%2e%2e/etc/passwd", "/v1//models"])
def test_another_path_is_not_found(server: Running, path: str) -> None:
    reply = server.ask("GET", path)
    assert (reply.status, reply.error()["code"]) == (404, "not_found")


def test_a_body_that_is_too_large_is_refused_before_and_while_it_comes(server: Running) -> None:
    assert post(server, b"x" * 100_001).status == 413
    chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    told = server.raw(head + chunk * 13)
    assert told.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in told


def test_a_body_that_is_slow_times_out(server: Running) -> None:
    told = server.raw(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
    assert told.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("data", [b"", b"GET / HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_headers_that_are_slow_end_the_connection(server: Running, data: bytes) -> None:
    assert server.raw(data) == b""


def test_slow_headers_of_a_second_request_end_the_connection(server: Running) -> None:
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(whole)
        assert whole_reply(sock).startswith(b"HTTP/1.1 200 ")
        sock.sendall(whole[:10])
        assert sock.recv(65536) == b""


def test_an_answer_that_takes_longer_than_headers_may_is_not_cut(server: Running) -> None:
    SERVED.shut()
    with server.begin() as sock:
        until(lambda: server.service.desk.n_running == 1)
        time.sleep(0.5)
        SERVED.gate.release(10**6)
        assert whole_reply(sock).startswith(b"HTTP/1.1 200 ")


def test_headers_that_are_too_large_are_refused(server: Running) -> None:
    large = b"GET /health HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\nX: " + b"y" * 70_000
    assert server.raw(large + b"\r\n\r\n")[9:12] in (b"400", b"431")  # as they arrive in parts, or whole


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01", b"GET /\r\n\r\n", b"GET / HTTP/x\r\nHost: a"])
def test_what_is_no_http_is_refused_in_the_same_shape(server: Running, data: bytes) -> None:
    head, _, body = server.raw(data + b"\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_compressed_body_is_refused(server: Running) -> None:
    assert server.ask("POST", "/tokenize", b"{}", headers={"Content-Encoding": "gzip"}).status == 415


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_TALK = ["messages", "model", "stream", "stream_options", "n", "stop", "seed", "temperature", "logit_bias", "logprobs"]
_MORE = ["top_logprobs", "max_tokens", "tools", "response_format", "reasoning_effort", "chat_template_kwargs", "prompt"]
_REST = ["echo", "suffix", "content", "tokens", "modalities", "tool_choice", "best_of", "parse_special"]
_NAMES = st.sampled_from([*_TALK, *_MORE, *_REST])
_PATHS = st.sampled_from(["/chat/completions", "/completions", "/tokenize", "/detokenize"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_PATHS, st.dictionaries(_NAMES, _VALUES, max_size=4), st.booleans())
def test_no_body_is_the_servers_failure(server: Running, path: str, body: dict[str, Any], asks: bool) -> None:
    whole = ({"messages": QUESTION, "prompt": "hat"} if asks else {}) | body
    known = {"messages"} if path == "/completions" else {"prompt"}
    reply = server.ask("POST", path, {name: value for name, value in whole.items() if name not in known})
    assert reply.status in (200, 400, 404), reply.body
    if reply.status != 200:
        reply.error()


def test_a_failure_of_the_engine_is_told_whole_and_one_that_nobody_knows_is_not() -> None:
    with running(Scripted(EngineError("the engine refused"))) as server:
        reply = server.chat()
        assert (reply.status, reply.error()["message"]) == (500, "the engine refused")
        assert reply.headers["x-should-retry"] == "false"
    with running(Scripted(ZeroDivisionError("/home/me/secret"))) as server:
        reply = server.chat()
        assert (reply.status, reply.error()["type"]) == (500, "server_error")
        assert b"secret" not in reply.body
        assert b"Zero" not in reply.body


def test_a_failure_in_a_stream_is_an_event_and_the_last() -> None:
    with running(Scripted(Piece("Hel", "text"), EngineError("the engine refused"))) as server:
        reply = server.chat(stream=True)
        *_, said, failed = reply.events()
        assert said["choices"][0]["delta"] == {"content": "Hel"}
        assert failed["error"]["message"] == "the engine refused"
        assert failed["error"]["type"] == "server_error"


def test_a_stream_with_nothing_to_say_shows_that_it_lives() -> None:
    served = Scripted()
    served.shut()
    with running(served, ping_s=0.05) as server, server.begin(stream=True) as sock:
        seen = b""
        while seen.count(b": ping\n\n") < 2:
            seen += sock.recv(65536)
        served.gate.release(10**6)
        while b"[DONE]" not in seen:
            seen += sock.recv(65536)


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_hangs_up_is_answered_no_further(stream: bool) -> None:
    served = Scripted()
    served.shut()
    with running(served) as server:
        sock = server.begin(stream=stream)
        until(lambda: served.n_begun == 1)
        sock.close()
        until(served.cancels[0].is_set)
        until(lambda: server.service.desk.n_running == 0)
        served.gate.release(10**6)
        assert server.chat().status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_hangs_up_in_the_queue_is_never_begun_and_nobody_else_is_touched(stream: bool) -> None:
    served = Scripted()
    served.shut()
    with running(served) as server, server.begin() as first:
        until(lambda: served.n_begun == 1)
        second = server.begin(stream=stream)
        until(lambda: server.service.desk.n_waiting == 1)
        second.close()
        until(lambda: server.service.desk.n_waiting == 0)
        assert not served.cancels[0].is_set()
        served.gate.release(10**6)
        assert b"Hello you" in whole_reply(first)
        assert served.n_begun == 1


def test_a_full_queue_says_when_to_come_back() -> None:
    served = Scripted()
    served.shut()
    with running(served, n_queue=1) as server:
        socks = [server.begin()]
        until(lambda: served.n_begun == 1)
        socks.append(server.begin())
        until(lambda: server.service.desk.n_waiting == 1)
        reply = server.chat()
        assert (reply.status, reply.error()["type"]) == (429, "rate_limit_error")
        assert int(reply.headers["retry-after"]) >= 1
        served.gate.release(10**6)
        assert all(b" 200 " in whole_reply(sock) for sock in socks)
        for sock in socks:
            sock.close()


def test_as_many_as_the_model_takes_are_answered_at_once() -> None:
    served = Scripted(n_parallel=3)
    served.shut()
    with running(served) as server:
        socks = [server.begin() for _ in range(5)]
        until(lambda: served.n_begun == 3 and server.service.desk.n_waiting == 2)
        served.gate.release(10**6)
        assert all(b" 200 " in whole_reply(sock) for sock in socks)
        for sock in socks:
            sock.close()


def test_the_first_end_lets_answers_end_and_sends_those_who_wait_away() -> None:
    served = Scripted()
    served.shut()
    with running(served) as server:
        first = server.begin()
        until(lambda: served.n_begun == 1)
        second = server.begin()
        until(lambda: server.service.desk.n_waiting == 1)
        server.server.stop()
        told = whole_reply(second)
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in told
        assert not served.cancels[0].is_set()
        served.gate.release(10**6)
        assert b"Hello you" in whole_reply(first)
        first.close()
        second.close()


def test_the_second_end_is_at_once() -> None:
    served = Scripted()
    served.shut()
    with running(served) as server, server.begin(stream=True) as sock:
        until(lambda: served.n_begun == 1)
        server.server.stop()
        server.server.stop()
        until(served.cancels[0].is_set)
        seen = b"".join(iter(lambda: sock.recv(65536), b""))
        assert b"the server is being stopped" in seen


def test_one_thread_reads_all_requests_so_that_what_is_kept_for_a_thread_is_kept_once() -> None:
    class Watched(Scripted):
        readers: ClassVar[set[int]] = set()

        def generate(self, request: Request, *, cancel: threading.Event) -> Writing:
            self.readers.add(threading.get_ident())
            time.sleep(0.01)  # so that others come meanwhile
            return super().generate(request, cancel=cancel)

    served = Watched(n_parallel=4)
    served.shut()
    with running(served) as server:
        socks = [server.begin() for _ in range(8)]
        until(lambda: len(served.requests) == 8)
        for sock in socks:
            sock.close()
        assert len(served.readers) == 1


def test_counters_say_what_was_served() -> None:
    with running(Scripted()) as server:
        server.chat()
        server.chat(temperature="hot")
        server.ask("GET", "/%22evil")
        text = server.ask("GET", "/metrics").body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['edgellm_requests_total{path="/v1/chat/completions",status="200"}'] == "1"
    assert lines['edgellm_requests_total{path="/v1/chat/completions",status="400"}'] == "1"
    assert lines["edgellm_drafted_tokens_total"] == "4"
    assert lines["edgellm_cached_tokens_total"] == "2"
    assert lines["edgellm_requests_running"] == "0"
    assert "evil" not in text
