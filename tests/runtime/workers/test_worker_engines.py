"""An engine whose layers lie on workers: what it computes, and what becomes of it when one is gone."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray
from rpc_server import until
from tiny_gguf import write_tiny

from edgellm.memory.units import MIB
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.backends import llama_rpc
from edgellm.runtime.backends.base import LayersLost, LoadError
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.engine import Engine
from edgellm.runtime.workers.server import RpcServer
from edgellm.runtime.workers.serving import Front
from edgellm.runtime.workers.survey import WorkerError

NO_RPC = llama_rpc.missing(api)
with_rpc = pytest.mark.skipif(bool(NO_RPC), reason=NO_RPC)
N_LAYERS = 6


@dataclass
class Machine:
    """A worker in this process, with its server in a child."""

    lent_bytes: int = 64 * MIB
    said: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.server = RpcServer(n_threads=1, device="cpu")
        self.front = Front(self.server, "127.0.0.1", 0, self.lent_bytes, self.said.append)
        self.thread = threading.Thread(target=self.front.run, args=(self.stop,))
        self.thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.front.port}"

    def end(self) -> None:
        self.stop.set()
        self.thread.join()
        self.server.close()


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Machine]]:
    made = [Machine(), Machine()]
    yield made
    for machine in made:
        machine.end()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return write_tiny(path, n_layers=N_LAYERS, n_embd=256, n_ff=512, weights="Q8_0")


def options(*machines: Machine, n: int = N_LAYERS) -> EngineOptions:
    addresses = tuple(machine.address for machine in machines)
    return EngineOptions(
        n_ctx=512, n_threads=1, learn="off", workers=addresses, n_gpu_layers=n if machines else -1, main_device="cpu",
        draft_device="cpu",
    )  # fmt: skip


def logits(engine: Engine, *widths: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    engine.backend.truncate(0)
    rows = [
        engine.backend.forward([int(token) for token in rng.integers(0, 256, width)], width).copy() for width in widths
    ]
    return np.concatenate(rows)


def test_a_build_without_rpc_is_a_sentence_that_says_how_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: Any) -> Any:
        raise AttributeError("no such symbol")

    monkeypatch.setattr("edgellm.runtime.backends.llama_devices.ggml", nothing)
    with pytest.raises(LoadError, match="GGML_RPC=ON"):
        llama_rpc.add_workers(api, ("127.0.0.1:1",))


@with_rpc
def test_layers_elsewhere_compute_the_same_bits_at_every_width(machines: list[Machine], model: Path) -> None:
    if not kernels().active:
        pytest.skip("no kernels here: bits differ")
    with load(model, None, options()) as alone:
        expected = logits(alone, 1, 1, 5, 8, 3)
    with load(model, None, options(machines[0], n=4)) as engine:
        assert engine.settings.target.placed == ((machines[0].address, 4),)
        assert engine.model.same_bits
        assert np.array_equal(logits(engine, 1, 1, 5, 8, 3), expected)
        assert np.array_equal(logits(engine, 2, 6, 10), expected)


@with_rpc
def test_memory_comes_back_when_a_model_is_let_go_of(machines: list[Machine], model: Path) -> None:
    for _ in range(3):
        with load(model, None, options(machines[0])):
            pass
    assert until(lambda: not machines[0].front.facts.busy)


@with_rpc
@pytest.mark.parametrize(("n", "how"), [(2, "SIGKILL"), (N_LAYERS, "SIGKILL"), (N_LAYERS, "SIGSTOP")])
def test_a_worker_that_dies_or_stands_still_ends_the_answer_and_the_talk_goes_on(
    machines: list[Machine], model: Path, n: int, how: str
) -> None:
    machine = machines[1]
    session = ChatSession(load(model, None, options(machine, n=n)))
    list(session.reply("one", max_tokens=4))
    before = list(session.messages)
    threading.Timer(0.2, os.kill, (machine.server.pid, signal.Signals[how])).start()
    started = time.monotonic()
    with pytest.raises(LayersLost, match=f"the worker {machine.address} was lost"):
        talk_on(session, len(before), until_s=started + 30)
    assert time.monotonic() - started < 10
    assert session.messages[: len(before)] == before
    with pytest.raises(LayersLost):  # and nothing is computed until it is loaded anew
        list(session.reply("three"))
    assert until(lambda: machine.server.is_up, 60)
    assert any("started again" in line for line in machine.said)
    session.engine.close()
    session.engine = again(model, options(machine, n=n))
    del session.messages[len(before) :]
    assert list(session.reply("four", max_tokens=4))
    session.engine.close()


def talk_on(session: ChatSession, n_kept: int, until_s: float) -> None:
    while time.monotonic() < until_s:
        list(session.reply("two", max_tokens=400))
        del session.messages[n_kept:]


def again(model: Path, options: EngineOptions) -> Engine:
    ends = time.monotonic() + 60
    while True:
        try:
            return load(model, None, options)
        except WorkerError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.2)


@with_rpc
def test_a_server_that_is_sent_nonsense_ends_alone(machines: list[Machine]) -> None:
    """A tensor outside its buffer, which llama.cpp's server ends its process at."""
    from rpc_server import Client

    from edgellm.runtime.workers.wire import SIZE, Command

    machine = machines[0]
    assert until(lambda: not machine.front.facts.busy, 60)
    client = Client(machine.front.port)
    client.hello()
    handle = client.ask(Command.ALLOC_BUFFER, ctypes.c_uint32(0).value.to_bytes(4, "little") + SIZE.pack(4096))[:8]
    tensor = bytearray(296)
    tensor[12:20] = handle
    for at in (20, 24, 28, 32):
        tensor[at : at + 4] = (64).to_bytes(4, "little")
    tensor[216 + 8 : 216 + 16] = b"\xff" * 8
    client.tell(Command.SET_TENSOR, bytes(tensor) + bytes(9) + bytes(100))
    assert client.is_closed()
    assert until(lambda: machine.server.is_up and not machine.front.facts.busy, 60)
