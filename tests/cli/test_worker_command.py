"""`edgellm worker` and `--workers`: what is refused in a sentence, what is said aloud, and a talk that goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_cpp import llama_cpp as api
from tiny_gguf import write_tiny
from typer.testing import CliRunner

from edgellm.cli import worker
from edgellm.cli._talk import Talk
from edgellm.cli.main import app
from edgellm.export.obtain.store import locate
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.backends import llama_rpc
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.workers.survey import WorkerError

RUNNER = CliRunner()


def sentence_of(*arguments: str) -> tuple[int, str]:
    done = RUNNER.invoke(app, list(arguments))
    error = str(done.exception) if not isinstance(done.exception, SystemExit | None) else ""
    return done.exit_code, " ".join((done.output + error).split())


@pytest.mark.parametrize("said", ["", ",", "a:b", "a:1,b:0"])
def test_what_is_no_address_is_a_usage_error(said: str) -> None:
    done = RUNNER.invoke(app, ["chat", "x.gguf", "--workers", said, "-p", "x"])
    assert getattr(done.exception, "exit_code", done.exit_code) == 2


@pytest.mark.skipif(not llama_rpc.missing(api), reason="this build has RPC")
def test_a_build_without_rpc_says_how_it_is_built() -> None:
    with pytest.raises(WorkerError, match="GGML_RPC=ON"):
        RUNNER.invoke(app, ["worker", "--port", "0"], catch_exceptions=False)


def test_other_plans_than_one_model_by_formulas_are_refused() -> None:
    for more in (["--probe"], ["--calibrate"], ["--matrix"]):
        code, said = sentence_of("plan", "qwen2.5-coder-1.5b-instruct", "--workers", "127.0.0.1:1", *more)
        assert code == 2, more
        assert "--workers plans one MODEL" in said.replace("│ ", "")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("board", False)],
)
def test_only_addresses_of_this_machine_alone_are_quiet(host: str, loopback: bool) -> None:
    assert worker._is_loopback(host) == loopback


def test_the_loud_sentence_names_the_danger_and_the_tunnel() -> None:
    said = worker.OPEN.format(host="0.0.0.0", port=7, tunnel=worker.TUNNEL.format(port=7))
    for words in ("no password", "nothing is encrypted", "ssh -N -L 7:127.0.0.1:7"):
        assert words in said


def test_a_talk_loads_its_models_anew_before_the_next_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    located = locate(str(write_tiny(tmp_path / "tiny.gguf")))
    assert located is not None
    options = EngineOptions(n_ctx=1024, n_threads=1)
    session = ChatSession(load(located.path, options=options))
    talk = Talk(session, located, None, max_tokens=8)
    lost: list[LlamaModel] = []
    why = "the worker board:50052 was lost (it ended), and layers of tiny.gguf with it"
    monkeypatch.setattr(LlamaModel, "lost_layers", property(lambda model: why if model in lost else ""))

    def reopen() -> None:
        session.engine.close()
        session.engine = load(located.path, options=options)

    talk.reopen = reopen
    try:
        assert talk.do("hat")
        before = list(session.messages)
        assert len(before) == 2
        lost.append(session.engine.model)  # type: ignore[arg-type]
        first, talk.reopen = session.engine, None
        capsys.readouterr()
        assert talk.do("coat")
        assert capsys.readouterr().err.count(why) == 1
        assert session.messages == before
        talk.reopen = reopen
        assert talk.do("coat")
        assert session.engine is not first
        assert session.messages[:2] == before
        assert len(session.messages) == 4
    finally:
        session.engine.close()
