"""`edgellm doctor`, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from edgellm.runtime.kernels import load


def doctor(*options: str, kernels: str = "auto") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgellm.cli", "doctor", *options]
    return subprocess.run(
        command, env={**os.environ, "EDGELLM_KERNELS": kernels}, capture_output=True, text=True, check=True
    )


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
