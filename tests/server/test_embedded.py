"""A server inside a program: over HTTP and by `async for`, with the smallest model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgellm
from edgellm.memory.errors import EdgellmError
from edgellm.runtime.bringup.planning import EngineOptions


@pytest.fixture(scope="module", params=[1, 3], ids="{}-at-once".format)
def server(request: pytest.FixtureRequest, smollm2_path: Path) -> Iterator[edgellm.Server]:
    options = EngineOptions(n_ctx=512, learn="off")
    with edgellm.Server(smollm2_path, "none", options, n_parallel=request.param) as started:
        yield started
    assert not [one for one in threading.enumerate() if one.name.startswith("edgellm-")]


def test_answers_that_are_awaited_together_are_those_of_each(server: edgellm.Server) -> None:
    async def ask(question: str) -> str:
        return "".join([piece.text async for piece in server.stream(question, max_tokens=12)])

    async def ask_all(questions: list[str]) -> list[str]:
        return list(await asyncio.gather(*map(ask, questions)))

    questions = ["Name a river.", "Name a colour.", "Count to five.", "Say hello."]
    assert asyncio.run(ask_all(questions)) == [asyncio.run(ask(question)) for question in questions]


def test_closing_the_iterator_ends_the_answer_and_frees_its_place(server: edgellm.Server) -> None:
    async def leave_early() -> str:
        generation = server.stream("Write a long story.", max_tokens=400)
        async with contextlib.aclosing(generation):
            async for _ in generation:
                break
        return generation.answer.finish_reason

    async def be_cancelled() -> None:
        task = asyncio.create_task(server.stream("Write a long story.", max_tokens=400).finish())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for _ in range(4):
        assert asyncio.run(leave_early()) == "interrupted"
        asyncio.run(be_cancelled())
    assert asyncio.run(server.stream("Say hello.", max_tokens=4).finish()).finish_reason == "length"


def test_clients_are_answered_beside_the_program(server: edgellm.Server) -> None:
    body = {"messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 12}
    request = urllib.request.Request(
        f"{server.url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )

    async def both() -> tuple[str, str]:
        own = asyncio.create_task(server.stream("Name a river.", max_tokens=12).finish())
        loop = asyncio.get_running_loop()
        reply = await loop.run_in_executor(None, lambda: urllib.request.urlopen(request, timeout=60).read())
        return (await own).text, json.loads(reply)["choices"][0]["message"]["content"]

    own, told = asyncio.run(both())
    assert own == told


def test_a_schema_is_held_to(server: edgellm.Server) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    answer = asyncio.run(server.stream("Name a number.", schema=schema, max_tokens=30).finish())
    assert json.loads(answer.text)["n"] in (1, 2)


def test_others_do_not_reach_a_server_that_asks_for_no_key(smollm2_path: Path) -> None:
    with pytest.raises(EdgellmError, match="api_keys"):
        edgellm.Server(smollm2_path, "none", host="0.0.0.0")
