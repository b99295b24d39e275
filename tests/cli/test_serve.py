"""`edgellm serve` refuses in a sentence what would not be safe or cannot be, before anything is loaded."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny
from typer.testing import CliRunner

from edgellm.cli import _errors
from edgellm.cli.main import app


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["serve", "nobody", *arguments], env={"TERMINAL_WIDTH": "300"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        assert _errors.exit_code(done.exception) == _errors.USAGE
        return _errors.sentence(done.exception)
    assert done.exit_code == _errors.USAGE, done.output
    return " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_others_are_let_in_only_with_a_key(host: str) -> None:
    assert "give --api-key-file FILE" in refused("--host", host, "--port", "0")


def test_a_port_that_is_taken_is_told_before_a_model_is_looked_for() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert f"port {port} is in use already: take another with --port" in refused("--port", str(port))


def test_an_address_that_is_none_is_told(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    assert "no address" in refused("--host", "no such host", "--port", "0", "--api-key-file", str(keys))


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xff\xfe", "schlüssel".encode(), b"a\x00b", b"k" * 70_000])
def test_a_file_without_keys_is_refused(tmp_path: Path, data: bytes) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(data)
    assert "key" in refused("--port", "0", "--api-key-file", str(keys))


def test_more_at_once_than_there_may_be_is_refused() -> None:
    assert "--parallel" in refused("--parallel", "65")


@pytest.mark.parametrize("library", ["starlette", "uvicorn"])
def test_what_is_missing_is_named_with_the_command_that_brings_it(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert refused() == f"a server needs {library}, which is missing: pip install 'edgellm[serve]'"


def test_a_name_that_cannot_be_shown_is_refused() -> None:
    assert "--alias" in refused("--alias", "", "--port", "0")


def test_an_address_of_another_machine_is_told(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    told = refused("--host", "192.0.2.1", "--port", "0", "--api-key-file", str(keys))
    assert told == "192.0.2.1 is no address of this machine: take 127.0.0.1, or 0.0.0.0 for all that it has"


@pytest.mark.parametrize("time", ["soon", "5 minutes", "-2", ""])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    assert "is no time: write it like 5m, 30s, 1h, 0 or forever" in refused("--keep-alive", time, "--port", "0")


def test_an_alias_of_a_model_that_is_not_named_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    done = CliRunner().invoke(app, ["serve", str(path), "--draft", "none", "--port", "0", "--alias", "x=other"])
    assert done.exception is not None
    assert _errors.sentence(done.exception).startswith("--alias x=other: 'other' is none of the models named: ")
