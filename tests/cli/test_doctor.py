"""`edgellm doctor`, run as a user runs it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from edgellm.memory.folders import home
from edgellm.runtime.backends.llama_library import structures
from edgellm.runtime.kernels import load


def doctor(*options: str, kernels: str = "auto", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgellm.cli", "doctor", *options]
    return subprocess.run(
        command, env={**os.environ, "EDGELLM_KERNELS": kernels, **env}, capture_output=True, text=True, check=True
    )


def problems(**env: str) -> list[str]:
    found: list[str] = json.loads(doctor("--json", "--no-measure", **env).stdout)["problems"]
    return found


def test_the_facts_agree_with_what_is_installed() -> None:
    facts = json.loads(doctor("--json").stdout)
    assert facts["variants"] == list(load.variants())
    assert facts["active"] == (facts["kernels"] != "stock")
    if facts["roofline"]:
        assert 1e8 < facts["roofline"]["bytes_per_s"] < 1e13
        assert 1e8 < facts["roofline"]["macs_per_s"] < 1e15


def test_people_read_which_kernels_and_why() -> None:
    done = doctor(kernels="off")
    assert "stock: EDGELLM_KERNELS=off" in done.stdout
    assert done.stderr == ""


def test_a_healthy_installation_has_no_problems_and_says_so() -> None:
    done = doctor("--no-measure", EDGELLM_EXTRA_BUFFERS="off")
    assert done.stdout.rstrip().endswith("nothing is wrong that could be seen from here")
    assert len(done.stdout.splitlines()) <= 25  # one screen
    facts = json.loads(doctor("--json", "--no-measure").stdout)
    assert facts["library"]["structures"] == []
    assert facts["library"]["version"] == facts["packages"]["llama-cpp-python"]
    assert facts["folders"]["home"]["path"] == str(home())
    assert facts["memory"]["usable_bytes"] > 0


def test_a_folder_that_is_none_is_told_with_the_variable_that_moves_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (sentence,) = [text for text in problems(EDGELLM_HOME=str(file)) if "written" in text]
    assert str(file) in sentence
    assert "EDGELLM_HOME" in sentence


def test_a_model_that_is_gone_is_told_with_the_command_that_brings_it(tmp_path: Path) -> None:
    entry = {"path": str(tmp_path / "gone.gguf"), "name": "tiny", "quant": "Q4_0", "n_bytes": 7, "sha256": None}
    entry |= {"licence": None, "source": "pypi", "repo": None, "revision": None}
    home().mkdir(parents=True)
    (home() / "models.lock.json").write_text(json.dumps({"models": {"tiny/gone.gguf": entry}}))
    assert problems() == [f"{tmp_path / 'gone.gguf'} is gone: `edgellm pull tiny:Q4_0` brings it again"]


def test_a_library_that_ends_the_process_leaves_the_report_standing(tmp_path: Path) -> None:
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = [text for text in problems(PYTHONPATH=path) if "cannot be used" in text]
    assert len(found) == 1
    assert "SIGILL" in found[0]
    assert "pip install" in found[0]


def test_a_limit_of_the_system_is_shown_with_its_place() -> None:
    code = (
        "import resource, sys; from edgellm.cli.main import main; "
        "resource.setrlimit(resource.RLIMIT_AS, (2**44, 2**44)); "
        "sys.argv = ['edgellm', 'doctor', '--no-measure']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "16384.00 GiB by ulimit -v" in done.stdout


def test_structures_that_differ_from_the_bindings_are_told() -> None:
    import llama_cpp.llama_cpp as api

    assert structures(api) == []

    class Shorter(ctypes.Structure):
        _fields_ = api.llama_context_params._fields_[1:]

    def shifted() -> Shorter:
        real = api.llama_context_default_params()
        return Shorter.from_buffer_copy(bytes(real)[: ctypes.sizeof(Shorter)])

    fake = SimpleNamespace(
        _lib=api._lib,
        llama_context_default_params=shifted,
        llama_model_default_params=api.llama_model_default_params,
        llama_model_quantize_default_params=api.llama_model_quantize_default_params,
    )
    found = structures(fake)
    assert found
    assert all(text.startswith("Shorter: ") for text in found)
