"""What other programs leave of the standard streams, and names that are not UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny

from edgellm.export import manifest
from edgellm.runtime.learning import persistence

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shells of other systems cannot close a stream")

EDGELLM = f'"{sys.executable}" -m edgellm.cli'
ODD = os.fsdecode(b"caf\xe9.gguf")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_THREADS", "1")
    monkeypatch.setenv("EDGELLM_CTX", "256")


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(["sh", "-c", line], capture_output=True, cwd=folder, timeout=120)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


def test_closed_streams_are_empty_silent_or_a_sentence(tiny: Path, tmp_path: Path) -> None:
    chat = f"{EDGELLM} chat {tiny} -d none -p hi -n 3"
    expected = shell(f"{chat} < /dev/null", tmp_path)
    assert expected.returncode == 0
    closed_input = shell(f"{chat} <&-", tmp_path)
    assert (closed_input.returncode, closed_input.stdout, closed_input.stderr) == (0, expected.stdout, b"")
    assert b"nothing to answer" in shell(f"{EDGELLM} chat {tiny} -d none <&-", tmp_path).stderr
    assert shell(f"{chat} < /dev/null 2>&-", tmp_path).stdout == expected.stdout
    closed_output = shell(f"{chat} < /dev/null >&-", tmp_path)
    assert closed_output.returncode == 1
    assert closed_output.stderr == b"error: standard output is closed: there is nowhere to write to\n"


@pytest.mark.parametrize("command", ["chat {} -d none -p hi --json", "show {}", "list --all", "devices", "--help"])
def test_an_output_that_cannot_be_written_to_is_one_sentence(command: str, tiny: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    done = shell(f"{EDGELLM} {command.format(tiny)} < /dev/null > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr == b"error: standard output cannot be written to: No space left on device\n"


def test_talk_that_cannot_be_written_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    assert shell(f"{EDGELLM} show {tiny} 2> /dev/full", tmp_path).returncode == 0
    assert shell(f"{EDGELLM} show missing.gguf 2> /dev/full", tmp_path).returncode == 2


def test_a_name_that_is_not_utf8_is_shown_as_it_is_and_escaped_in_json(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / ODD).write_bytes(tiny.read_bytes())
    name = os.fsencode(ODD)
    shown = subprocess.run(
        [sys.executable, "-m", "edgellm.cli", "show", ODD], capture_output=True, cwd=tmp_path, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    assert name in shown.stdout
    facts = json.loads(
        subprocess.run(
            [sys.executable, "-m", "edgellm.cli", "show", ODD, "--json"], capture_output=True, cwd=tmp_path, timeout=60
        ).stdout.decode("utf-8")
    )
    assert os.fsencode(facts["path"]).endswith(b"/" + name)
    missing = subprocess.run(
        [sys.executable, "-m", "edgellm.cli", "show", os.fsdecode(b"./no\xe9.gguf")], capture_output=True, timeout=60
    )
    assert missing.returncode == 2
    assert b"there is no file ./no\xe9.gguf" in missing.stderr


def test_a_model_and_a_home_whose_names_are_not_utf8_are_used_like_any(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / ODD
    model.write_bytes(tiny.read_bytes())
    monkeypatch.setenv("EDGELLM_HOME", os.fsdecode(os.fsencode(tmp_path) + b"/h\xe9me"))
    command = [sys.executable, "-m", "edgellm.cli", "chat", str(model), "-d", str(model), "-p", "hat", "-n", "3"]
    done = subprocess.run([*command, "--json"], capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(done.stdout)["target"]) == os.fsencode(model)
    kept = subprocess.run([sys.executable, "-m", "edgellm.cli", "cache", "show"], capture_output=True, timeout=60)
    assert kept.returncode == 0, kept.stderr
    assert b"tokens of earlier answers" in kept.stdout


def test_what_is_written_down_of_a_name_that_is_not_utf8_is_read_back(tmp_path: Path) -> None:
    manifest.write(tmp_path, {"source": ODD})
    written = (tmp_path / manifest.NAME).read_bytes()
    assert json.loads(written.decode("utf-8"))["source"] == ODD
    file = persistence.sealed(tmp_path, "costs", f"{ODD} 123", print)
    persistence.write_json(file, {"a": 1})
    assert persistence.read_json(file) == {"a": 1}
    assert [kept.key for kept in persistence.listing(tmp_path)] == [f"{ODD} 123"]
