"""OpenAI's own client and two real models in a process whose budget holds one of them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from edgellm.app.listener import SILENCE
from edgellm.app.loading import prepare
from edgellm.app.served_models import ServedModels
from edgellm.app.served_pairs import Offer
from edgellm.memory.plan import RUNTIME_BASE_BYTES
from edgellm.runtime.backends.base import Interrupted, stops_loading
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.bringup.planning import EngineOptions, beside_bytes, plan_here

QUESTION: Any = [{"role": "user", "content": "Name a colour."}]
OPTIONS = EngineOptions(n_ctx=512, copy=False, learn="off", n_parallel=2)


@pytest.fixture(scope="module")
def files(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model under two names."""
    folder = tmp_path_factory.mktemp("models")
    return tuple(Path(shutil.copy(smollm2_path, folder / f"{name}.gguf")) for name in ("one", "two"))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    url: str
    budget_bytes: int

    def counter(self, name: str, model: str) -> int:
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=20).read().decode()
        found = re.search(rf'^edgellm_{name}{{model="{model}"}} (\d+)$', text, re.M)
        assert found is not None
        return int(found[1])


@pytest.fixture(scope="module")
def process(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    plan, _ = plan_here(files[0], None, OPTIONS)
    assert plan is not None
    budget_bytes = RUNTIME_BASE_BYTES + int(1.5 * beside_bytes(plan))
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, "-m", "edgellm.cli", "serve", *map(str, files), "--draft", "none", "--port", "0"]
    command += ["--ctx", "512", "--parallel", "2", "--budget", str(budget_bytes), "--alias", "second=" + str(files[1])]
    command += ["--no-copy", "--no-learn"]  # nothing drafts, so no costs are measured at each load
    environment = {**os.environ, "EDGELLM_HOME": str(home), "EDGELLM_EXTRA_BUFFERS": "off"}
    served = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=home)
    assert served.stderr is not None
    try:
        for line in served.stderr:
            if found := re.search(r"http://\S+/v1", line):
                yield Process(served.pid, found[0], budget_bytes)
                break
        else:
            pytest.fail("the server did not start")
        served.send_signal(signal.SIGINT)
        assert served.wait(30) == 0
        assert "Traceback" not in served.stderr.read()
    finally:
        served.kill()


def test_models_take_turns_and_say_what_they_said_before(process: Process) -> None:
    texts = set()
    with openai.OpenAI(base_url=process.url, api_key="none", max_retries=0, timeout=120) as client:
        for model in ("one", "second", "one", "two"):
            answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=12)
            texts.add(answer.choices[0].message.content)
            assert answer.model == model
    assert len(texts) == 1
    assert [process.counter("model_loads_total", model) for model in ("one", "two")] == [2, 2]
    assert [process.counter("model_loaded", model) for model in ("one", "two")] == [0, 1]


def test_clients_of_both_at_once_are_all_answered(process: Process) -> None:
    async def ask(client: openai.AsyncOpenAI, model: str) -> str:
        stream = await client.chat.completions.create(model=model, messages=QUESTION, max_tokens=12, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=process.url, api_key="none", max_retries=0, timeout=300) as client:
            return await asyncio.gather(*(ask(client, ("one", "two")[i % 2]) for i in range(8)))

    texts = asyncio.run(ask_all())
    assert len(set(texts)) == 1
    assert texts[0]


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries keep freed memory as they like")
def test_what_is_let_go_is_given_back(process: Process) -> None:
    """Beside the models, what the plan does not count: the HTTP libraries."""
    assert psutil.Process(process.pid).memory_info().rss < process.budget_bytes + 48 * 2**20


def test_an_idle_model_leaves_no_thread_and_little_memory(files: tuple[Path, Path]) -> None:
    pair = prepare(files[0], "none", OPTIONS, offline=True)
    offer = Offer([str(files[0])], pair, OPTIONS, "none", [], offline=True, listener=SILENCE)
    before = threading.active_count()
    with offer.models(keep_alive="0") as models:
        for _ in range(2):
            hold = models.hold(models.first)
            loaded = hold.loaded.result(60)
            rss_bytes = psutil.Process().memory_info().rss
            assert loaded.threads.submit(loaded.served.vocabulary.encode, b"hat").result(20)
            hold.release()
            ends = time.monotonic() + 30
            while models.first.n_unloads < models.first.n_loads or threading.active_count() > before + 1:
                assert time.monotonic() < ends
                time.sleep(0.01)
            assert psutil.Process().memory_info().rss < rss_bytes - files[0].stat().st_size // 2
    assert threading.active_count() == before


def test_a_load_that_is_stopped_ends_with_nothing_kept(smollm2_path: Path) -> None:
    stop = threading.Event()
    token = stops_loading.set(stop)
    try:
        LlamaModel(smollm2_path).close()
        stop.set()
        with pytest.raises(Interrupted):
            LlamaModel(smollm2_path)
    finally:
        stops_loading.reset(token)
    LlamaModel(smollm2_path).close()


def test_an_end_while_a_model_is_loading_does_not_wait_for_it(files: tuple[Path, Path]) -> None:
    pair = prepare(files[0], "none", OPTIONS, offline=True)
    models: ServedModels = Offer([str(files[0])], pair, OPTIONS, "none", [], offline=True, listener=SILENCE).models()
    hold = models.hold(models.first)
    while models.first.state == "unloaded":
        time.sleep(0.001)
    models.close()
    assert hold.loaded.exception() is not None
    assert (models.first.state, models.first.n_loads) == ("unloaded", 0)
