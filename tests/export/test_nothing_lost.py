"""Bundles and importance matrices, like exports, are whole or not there: killed, on a full disk, under odd names."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from checkpoints import tiny_model
from tiny_gguf import write_tiny

from edgellm.export import manifest
from edgellm.memory import files

N_KILLS = int(os.environ.get("EDGELLM_TEST_KILLS", "2"))
EDGELLM = (sys.executable, "-m", "edgellm.cli")
IMATRIX = ("imatrix", "./g.gguf", "--text", "t.txt", "--ctx", "64", "--threads", "1", "-o", "i.gguf")
COMMANDS = {
    "a.tar": ("bundle", "out", "-o", "a.tar"),
    "a.tar.gz": ("bundle", "out", "-o", "a.tar.gz"),
    "a.zip": ("bundle", "out", "-o", "a.zip"),
    "folder": ("bundle", "out", "-o", "folder"),
    "i.gguf": IMATRIX,
}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and limits are POSIX's")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export, a model and a text."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_model(folder / "m", "llama")
    write_tiny(folder / "g.gguf", "llama", n_layers=2)
    (folder / "t.txt").write_text("The ferry left at six, before the fog had lifted. " * 60)
    subprocess.run([*EDGELLM, "export", "m", "--quant", "F16", "--no-verify", "-o", "out"], cwd=folder, check=True)
    return folder


def contents(path: Path) -> list[tuple[str, bytes]]:
    within = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
    return [(file.name, file.read_bytes()) for file in within if file.is_file()]


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_there_is_nothing_or_all_of_it_and_the_next_run_makes_it(made: Path, name: str) -> None:
    started = time.monotonic()
    subprocess.run([*EDGELLM, *COMMANDS[name]], cwd=made, check=True, capture_output=True)
    whole_s, expected = time.monotonic() - started, contents(made / name)
    rng = random.Random(11)
    for _ in range(N_KILLS):
        files.discard(made / name)
        child = subprocess.Popen([*EDGELLM, *COMMANDS[name]], cwd=made, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            child.wait(rng.uniform(0.1, whole_s))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        child.communicate()
        assert contents(made / name) in ([], expected)
    files.discard(made / name)
    subprocess.run([*EDGELLM, *COMMANDS[name]], cwd=made, check=True, capture_output=True)
    assert contents(made / name) == expected
    assert not hidden(made)
    files.discard(made / name)


def limited(command: Sequence[str], n_kib: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command that can write no file of more than so many KiB: a disk that fills up in the middle of one."""
    script = f'ulimit -f {n_kib}; exec "$@"'
    return subprocess.run(["bash", "-c", script, "bash", *command], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_fills_up_is_one_sentence_that_names_what_was_asked_for(made: Path, name: str) -> None:
    done = limited([*EDGELLM, *COMMANDS[name]], 4, made)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"{name}: File too large")
    assert "Traceback" not in done.stderr
    assert not (made / name).exists()
    assert not hidden(made)


@pytest.mark.parametrize("name", ["x" * 255, "line\nbreak", 'it\'s "quoted"', "-dash"])
def test_an_export_and_its_bundle_take_any_name(made: Path, name: str) -> None:
    for command in (("export", "m", "--quant", "F16", "--no-verify", "-o", name), ("verify", f"./{name}")):
        subprocess.run([*EDGELLM, *command], cwd=made, check=True, capture_output=True)
    archive = f"{name[:-4]}.zip"
    subprocess.run([*EDGELLM, "bundle", f"./{name}", "-o", archive], cwd=made, check=True, capture_output=True)
    assert not hidden(made)
    for path in (made / name, made / archive):
        files.discard(path)


def test_a_link_is_written_through(made: Path) -> None:
    (made / "real").mkdir()
    for name in ("link", "not-there"):
        (made / name).symlink_to(made / ("real" if name == "link" else "new"))
        command = ["export", "m", "--quant", "F16", "--no-verify", "-o", name]
        subprocess.run([*EDGELLM, *command], cwd=made, check=True, capture_output=True)
        assert (made / name).is_symlink()
        manifest.verify(made / name)
