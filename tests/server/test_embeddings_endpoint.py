"""POST /embeddings over HTTP: every form of input, both encodings, and what is refused."""

from __future__ import annotations

import base64
import gc
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from http_servers import Running, Scripted, running, until

from edgellm.app.listener import Silence


@pytest.fixture
def served() -> Scripted:
    return Scripted()


@pytest.fixture
def server(served: Scripted) -> Iterator[Running]:
    with running(served) as server:
        yield server


def unit(*numbers: float) -> list[float]:
    return list(np.array(numbers) / np.linalg.norm(numbers))


@pytest.mark.parametrize(
    ("given", "vectors"),
    [
        ("abc", [(1, 97, 3, 0)]),
        (["abc", "b"], [(1, 97, 3, 0), (1, 98, 1, 0)]),
        ([5, 6], [(1, 5, 2, 0)]),
        ([[5, 6], [7]], [(1, 5, 2, 0), (1, 7, 1, 0)]),
    ],
    ids=str,
)
def test_each_input_has_a_vector_in_its_order(server: Running, given: Any, vectors: list[tuple[float, ...]]) -> None:
    told = server.ask("POST", "/v1/embeddings", {"input": given, "user": "me"}).json()
    assert (told["object"], told["model"]) == ("list", "scripted")
    assert [(one["object"], one["index"]) for one in told["data"]] == [("embedding", i) for i in range(len(vectors))]
    for one, vector in zip(told["data"], vectors, strict=True):
        assert one["embedding"] == pytest.approx(unit(*vector), abs=1e-6)
    n_tokens = sum(int(vector[2]) for vector in vectors)
    assert told["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    assert f"\nedgellm_embedded_tokens_total {n_tokens}\n" in server.ask("GET", "/metrics").body.decode()


def test_base64_holds_the_same_numbers_in_four_bytes_each(server: Running) -> None:
    told = [
        server.ask("POST", "/embeddings", {"input": "abc", "encoding_format": form}).json()["data"][0]["embedding"]
        for form in ("float", "base64")
    ]
    assert np.array_equal(np.frombuffer(base64.b64decode(told[1]), "<f4"), np.array(told[0], np.float32))


def test_fewer_dimensions_are_the_first_ones_of_unit_length(server: Running) -> None:
    told = server.ask("POST", "/v1/embeddings", {"input": "abc", "dimensions": 2}).json()
    assert told["data"][0]["embedding"] == pytest.approx(unit(1, 97), abs=1e-6)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [10**6]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 5}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "surprise": 1}, "surprise"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_of_another_form_is_refused_by_its_field(server: Running, body: dict[str, Any], param: str) -> None:
    reply = server.ask("POST", "/v1/embeddings", body)
    assert reply.status == 400
    assert reply.error()["param"] == param


def test_who_hangs_up_gives_the_place_back_and_nobody_is_told_of_it(
    served: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Mock(spec=Silence)
    served.shut()
    with running(served, listener=listener) as server:
        with server.begin("/v1/embeddings", messages=None, input="abc"):
            until(lambda: server.service.desk.n_running == 1)
        until(lambda: server.service.desk.n_running == 0)
        assert server.service.desk.n_waiting == 0
        gc.collect()  # asyncio tells of an exception that nobody looked at once it is forgotten
        assert server.ask("GET", "/health").status == 200
    assert listener.method_calls == []
    assert caplog.records == []


def test_a_server_that_ends_tells_who_waits(served: Scripted) -> None:
    served.shut()
    with running(served) as server, server.begin("/v1/embeddings", messages=None, input="abc") as sock:
        until(lambda: server.service.desk.n_running == 1)
        server.service.end()
        assert b" 503 " in sock.recv(4096)
