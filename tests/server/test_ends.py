"""A server process that is killed, stopped, or left without a disk: the next one begins whole, and clients know."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_servers import until
from tiny_gguf import write_tiny

from edgellm.runtime.learning.persistence import listing
from edgellm.server.listening import most_connections

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
LIMITED = (
    "import os, resource, sys; limit = int(sys.argv[2]); "
    "resource.setrlimit(getattr(resource, sys.argv[1]), (limit, limit)); os.execv(sys.argv[3], sys.argv[3:])"
)
NO_END = {"261": -100, "263": -100}  # the tokens that begin and end


class Process:
    """A server of its own, and what it says."""

    def __init__(self, model: Path, home: Path, *, port: int = 0, limit: tuple[str, int] | None = None) -> None:
        command = [sys.executable, "-m", "edgellm.cli", "serve", str(model), "--draft", "none", "--port", str(port)]
        command += ["--ctx", "8192", "--parallel", "2", "--offline", "--log-requests"]
        if limit is not None:
            command = [sys.executable, "-c", LIMITED, *map(str, limit), *command]
        environment = {**os.environ, "EDGELLM_HOME": str(home)}
        self.popen = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=home)
        self.said: list[str] = []
        self.port = self._ready()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _ready(self) -> int:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.said.append(line.rstrip())
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                return int(found[1])
        pytest.fail(f"the server did not start: {self.said}")

    def _listen(self) -> None:
        assert self.popen.stderr is not None
        self.said += [line.rstrip() for line in self.popen.stderr]

    def ended(self) -> int:
        code = self.popen.wait(60)
        self._listener.join()
        return code

    def is_well(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def begin(self, *, n: int = 8, stream: bool = False) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        messages = [{"role": "user", "content": "Tell a long story of a river and a stone."}]
        body = {"messages": messages, "max_tokens": n, "stream": stream, "logit_bias": NO_END}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        return connection

    def ask(self) -> Any:
        with contextlib.closing(self.begin()) as connection:
            response = connection.getresponse()
            assert response.status == 200
            return json.loads(response.read())["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@contextlib.contextmanager
def serving(model: Path, home: Path, **settings: Any) -> Iterator[Process]:
    process = Process(model, home, **settings)
    try:
        yield process
    finally:
        process.popen.kill()
        process.ended()


@posix
def test_a_server_that_is_killed_under_load_is_followed_at_once_by_one_that_knows_what_it_learnt(
    model: Path, home: Path
) -> None:
    with serving(model, home) as first:
        known, port = first.ask(), first.port
        with contextlib.closing(first.begin(n=8000, stream=True)) as connection:
            response = connection.getresponse()
            assert response.readline().startswith(b"data: ")
            first.popen.kill()
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                response.read()
    kept = [(one.kind, one.n_entries) for one in listing(home / "learned")]
    assert {"store", "costs"} <= {kind for kind, _ in kept}
    with serving(model, home, port=port) as second:
        assert second.ask() == known
        assert len(second.said) == 2, "it complains of what it found"
    assert not [path for path in home.rglob("*") if path.suffix in (".damaged", ".part")]


@posix
@pytest.mark.parametrize("n_signals", [1, 2])
def test_the_first_signal_lets_answers_end_and_the_second_ends_them(model: Path, home: Path, n_signals: int) -> None:
    with serving(model, home) as process, contextlib.closing(process.begin(n=2000, stream=True)) as connection:
        response = connection.getresponse()
        response.readline()
        for _ in range(n_signals):
            process.popen.send_signal(signal.SIGINT)
            time.sleep(0.2)
        text = response.read().decode()
        assert process.ended() == 0
    if n_signals == 1:
        assert text.endswith("data: [DONE]\n\n")
        assert "waiting for an answer to end; Ctrl-C again ends the server at once" in process.said
    else:
        assert "the server is being stopped" in text
    assert process.said[-1] == "the server has ended"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", process.port)):
        pass


@posix
def test_a_full_disk_is_one_warning_and_no_failure(model: Path, home: Path) -> None:
    with serving(model, home, limit=("RLIMIT_FSIZE", 0)) as process:
        answers = {process.ask() for _ in range(3)}
        process.popen.send_signal(signal.SIGINT)
        assert process.ended() == 0
    assert len(answers) == 1
    assert len([line for line in process.said if "what was learnt is not kept" in line]) == 1, process.said
    assert not [line for line in process.said if "Traceback" in line]


@posix
def test_more_connections_than_files_may_be_open_are_one_warning_and_turned_away(model: Path, home: Path) -> None:
    with serving(model, home, limit=("RLIMIT_NOFILE", 72)) as process:
        with contextlib.ExitStack() as opened:
            for _ in range(200):
                sock = opened.enter_context(socket.create_connection(("127.0.0.1", process.port), timeout=10))
                sock.sendall(b"GET /health HTTP/1.1\r\n")
            time.sleep(1.5)
        until(process.is_well)  # what waited behind them is turned away first
        assert process.ask()
        process.popen.send_signal(signal.SIGINT)
        assert process.ended() == 0
    assert len([line for line in process.said if "ulimit -n" in line]) <= 1
    assert len(process.said) < 12, process.said[:20]


@posix
@pytest.mark.parametrize(
    ("limits", "raised", "n_most"),
    [
        ((256, -1), 704, 512),
        ((256, 400), 400, 208),
        ((64, 64), 64, 8),
        ((1024, 4096), None, 512),
        ((-1, -1), None, 512),
    ],
)
def test_as_many_connections_are_taken_as_files_may_be_open(
    limits: tuple[int, int], raised: int | None, n_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    asked: list[int] = []
    told = tuple(resource.RLIM_INFINITY if limit == -1 else limit for limit in limits)
    monkeypatch.setattr(resource, "getrlimit", lambda what: told)
    monkeypatch.setattr(resource, "setrlimit", lambda what, both: asked.append(both[0]))
    assert most_connections() == n_most
    assert asked == ([] if raised is None else [raised])
