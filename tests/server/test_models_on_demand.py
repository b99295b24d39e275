"""Several models at one server: each is loaded when a request names it, and nobody else waits for that."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from fakes import FakeSource
from http_servers import QUESTION, Running, Scripted, running, until, whole_reply

from edgellm.app.served_models import ServedModels
from edgellm.memory.plan import DoesNotFit
from edgellm.runtime.answer import Piece
from edgellm.runtime.backends.base import LoadError


class Two:
    """Models a and b, of which a is loaded, and what their loads do."""

    def __init__(self, *, room: float = 10.0, **more: Any) -> None:
        self.a, self.b = (Scripted(Piece(f"I am {name}", "text"), name=name) for name in "ab")
        self.of_a, self.of_b = FakeSource(self.a, n_bytes=6), FakeSource(self.b, n_bytes=3, aliases=["bee"])
        self.models = ServedModels([self.of_a, self.of_b], left_bytes=lambda taken: room - taken, **more)
        self.models.load(self.models.first)

    def hold_up(self) -> None:
        """Let no load of b end."""
        self.of_b.gate = threading.Semaphore(0)

    def waiting(self, n: int) -> bool:
        return len(self.models.get("b").waiting) == n


def said(server: Running, **fields: Any) -> str:
    reply = server.chat(**fields)
    assert reply.status == 200, reply.body
    return str(reply.json()["choices"][0]["message"]["content"])


def test_models_are_listed_with_what_is_known_of_them_and_loaded_when_they_are_named() -> None:
    two = Two()
    with running(two.models) as server:

        def listed() -> dict[str, Any]:
            return {
                one["id"]: (one["status"]["value"], one["meta"]) for one in server.ask("GET", "/models").json()["data"]
            }

        known, unknown = (
            {"n_ctx": n, "n_parallel": 1, "n_vocab": n_vocab} for n, n_vocab in ((4096, 262), (None, None))
        )
        assert listed() == {"a": ("loaded", known), "b": ("unloaded", unknown), "bee": ("unloaded", unknown)}
        assert two.of_b.n_begun == 0
        assert [said(server, model="b"), said(server, model="bee"), said(server)] == ["I am b", "I am b", "I am a"]
        assert listed() == dict.fromkeys(("a", "b", "bee"), ("loaded", known))
        assert server.ask("GET", "/v1/models/bee").json()["owned_by"] == "edgellm"
        metrics = server.ask("GET", "/metrics").body.decode()
    assert 'edgellm_model_loaded{model="b"} 1' in metrics
    assert 'edgellm_model_loads_total{model="a"} 1' in metrics


@pytest.mark.parametrize("name", ["c", "../b", "/etc/passwd", "user/repo", "smollm2-135m-instruct"])
def test_only_what_is_offered_is_ever_loaded(name: str) -> None:
    two = Two()
    with running(two.models) as server:
        reply = server.chat(model=name)
        assert (reply.status, reply.error()["code"]) == (404, "model_not_found")
        assert (two.of_a.n_begun, two.of_b.n_begun) == (1, 0)


def test_others_are_answered_while_a_model_is_loading() -> None:
    two = Two()
    two.hold_up()
    with (
        running(two.models) as server,
        server.begin(model="b") as first,
        server.begin(model="b", stream=True) as second,
    ):
        until(lambda: two.of_b.n_begun == 1 and two.waiting(2))
        assert server.ask("GET", "/models/b").json()["status"] == {"value": "loading"}
        assert server.ask("GET", "/health").status == 200
        assert said(server, model="a") == "I am a"
        two.of_b.gate.release()
        assert b"I am b" in whole_reply(first)
        seen = b""
        while b"[DONE]" not in seen:
            seen += second.recv(65536)
        assert two.of_b.n_begun == 1


def test_a_stream_that_waits_for_its_model_shows_that_it_lives() -> None:
    two = Two()
    two.hold_up()
    with running(two.models, ping_s=0.05) as server, server.begin(model="b", stream=True) as sock:
        seen = b""
        while seen.count(b": ping\n\n") < 2:
            seen += sock.recv(65536)
        assert b"data:" not in seen
        two.of_b.gate.release()
        while b"[DONE]" not in seen:
            seen += sock.recv(65536)
        assert b"I am b" in seen


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_for_an_unloaded_model_that_is_refused_has_its_status(stream: bool) -> None:
    two = Two()
    with running(two.models) as server:
        reply = server.chat(model="b", stream=stream, temperature="hot")
        assert (reply.status, reply.error()["param"]) == (400, "temperature")
        until(lambda: server.service.desks[two.models.get("b")].n_running == 0)
        assert not two.models.get("b").held


@pytest.mark.parametrize("stream", [False, True])
def test_a_load_that_fails_is_told_and_the_next_request_tries_again(stream: bool) -> None:
    two = Two()
    two.of_b.failures = [LoadError("b.gguf is damaged: pull it again")]
    with running(two.models) as server:
        reply = server.chat(model="b", stream=stream)
        assert (reply.status, reply.error()["message"]) == (500, "b.gguf is damaged: pull it again")
        assert said(server, model="b") == "I am b"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/tokenize", "/v1/messages"])
def test_a_model_that_does_not_fit_is_told_by_the_plans_sentence(path: str) -> None:
    two = Two()
    two.of_b.unfit = DoesNotFit("b needs 9 GB: take --ctx 512")
    with running(two.models) as server:
        reply = server.ask("POST", path, {"model": "b", "messages": QUESTION})
        assert (reply.status, reply.headers["x-should-retry"]) == (503, "false")
        error = reply.json()["error"]
        assert error["message"] == "b needs 9 GB: take --ctx 512"
        assert error["type"] == ("overloaded_error" if path.endswith("messages") else "unavailable_error")
        assert said(server, model="a") == "I am a"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_stream_that_has_begun_to_wait_is_told_in_its_own_form(path: str) -> None:
    two = Two()
    two.hold_up()
    two.of_b.failures = [LoadError("damaged")]
    question = {"input": "hat"} if path.endswith("responses") else {"max_tokens": 9}
    fields = question | ({"messages": None} if path.endswith("responses") else {})
    with running(two.models, ping_s=0.05) as server, server.begin(path, model="b", stream=True, **fields) as sock:
        seen = b""
        while b": ping\n\n" not in seen:
            seen += sock.recv(65536)
        two.of_b.gate.release()
        while b"damaged" not in seen:
            seen += sock.recv(65536)
    names = [line for line in seen.decode().split("\n") if line.startswith("event: ")]
    told = [line for line in seen.decode().split("\n") if line.startswith("data: ")]
    error = json.loads(told[0].removeprefix("data: "))
    assert len(told) == 1
    if path.endswith("completions"):
        assert (names, error["error"]["type"]) == ([], "server_error")
    else:
        assert (names, error["type"]) == (["event: error"], "error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ping_s", [15.0, 0.05])
def test_who_hangs_up_while_a_model_is_loading_leaves(stream: bool, ping_s: float) -> None:
    two = Two()
    two.hold_up()
    with running(two.models, ping_s=ping_s) as server:
        desk = server.service.desks[two.models.get("b")]
        with server.begin(model="b", stream=stream) as sock:
            until(lambda: two.waiting(1) and desk.n_running == 1 and two.of_b.n_begun == 1)
            if stream and ping_s < 1:
                assert sock.recv(65536)
        until(lambda: two.waiting(0) and desk.n_running == 0)
        two.of_b.gate.release()
        until(lambda: two.models.get("b").state == "loaded")
        assert not two.models.get("b").held
        assert two.b.requests == []


def test_each_model_has_its_own_queue() -> None:
    two = Two()
    two.a.shut()
    with running(two.models, n_queue=1) as server:
        socks = [server.begin(model="a")]
        until(lambda: two.a.n_begun == 1)
        socks.append(server.begin(model="a"))
        until(lambda: server.service.desk.n_waiting == 1)
        reply = server.chat(model="a")
        assert (reply.status, reply.error()["code"]) == (429, "queue_full")
        assert said(server, model="b") == "I am b"
        two.a.gate.release(10**6)
        assert all(b" 200 " in whole_reply(sock) for sock in socks)
        for sock in socks:
            sock.close()


def test_an_answer_that_is_being_written_is_never_cut_and_who_came_later_waits_behind() -> None:
    two = Two(room=6)
    two.a.shut()
    with running(two.models) as server, server.begin(model="a", stream=True) as first:
        until(lambda: two.a.n_begun == 1)
        with server.begin(model="b") as other:
            until(lambda: two.models.first.is_leaving)
            with server.begin(model="a") as late:
                until(lambda: len(two.models.first.waiting) == 1)
                assert (two.of_a.n_open, two.of_b.n_begun) == (1, 0)
                two.a.gate.release(10**6)
                seen = b""
                while b"[DONE]" not in seen:
                    seen += first.recv(65536)
                assert b"I am a" in seen
                assert b"I am b" in whole_reply(other)
                assert b"I am a" in whole_reply(late)
    assert (two.of_a.n_opened, two.of_b.n_opened) == (2, 1)


def test_text_is_taken_apart_by_the_model_that_is_named() -> None:
    two = Two()
    with running(two.models) as server:
        assert server.ask("POST", "/tokenize", {"model": "bee", "content": "ab"}).json() == {"tokens": [97, 98]}
        assert two.of_b.n_opened == 1
        assert server.ask("GET", "/tokenizer_info").status == 200
        vectors = server.ask("POST", "/embeddings", {"model": "b", "input": ["ab", "c"]}).json()
        assert len(vectors["data"]) == 2
        until(lambda: not any(model.held for model in two.models.all))


def test_idle_models_are_let_go_with_their_threads_and_come_back() -> None:
    two = Two(keep_alive_s=0.0)
    with running(two.models) as server:
        for _ in range(2):
            for name in "ab":
                assert said(server, model=name) == f"I am {name}"
        until(lambda: two.of_a.n_open == two.of_b.n_open == 0)
        assert not [one for one in threading.enumerate() if one.name.startswith("edgellm-answer")]
        assert two.of_b.n_opened == 2


def test_a_server_that_ends_while_it_loads_tells_who_waits_and_lets_the_model_go() -> None:
    two = Two()
    two.hold_up()
    with running(two.models, ping_s=0.05) as server, server.begin(model="b") as sock:
        with server.begin(model="b", stream=True) as stream:
            until(lambda: two.waiting(2) and two.of_b.n_begun == 1)
            assert stream.recv(65536)
            server.server.stop()
            assert b" 503 " in whole_reply(sock)
            seen = b""
            while b"the server is being stopped" not in seen:
                seen += stream.recv(65536)
        two.of_b.gate.release()
    assert (two.of_a.n_open, two.of_b.n_open) == (0, 0)
