"""A real checkpoint the whole way: a repository of the Hub, `edgellm export` by its name, and the same model again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import hub_folder_of
from loopback_hub import LoopbackHub

from edgellm.export import manifest
from edgellm.export.convert import engine_jobs
from edgellm.export.convert.trim import FREQUENT
from edgellm.memory.gguf import read_header

N_GREEDY = 256  # tokens
TYPES = ("F16", "Q4_K_M")
REPOS = {
    "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "qwen2.5-coder-0.5b-instruct": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
}


@pytest.mark.model
@pytest.mark.parametrize("name", REPOS)
def test_a_repository_of_a_real_model_becomes_that_model(
    tmp_path: Path, hub: LoopbackHub, model_path: Callable[[str], Path], name: str
) -> None:
    source, repo = model_path(name), REPOS[name]
    stem = repo.rpartition("/")[2]
    hub.add_folder(repo, hub_folder_of(source, tmp_path / stem), licence="apache-2.0")
    command = [sys.executable, "-m", "edgellm.cli", "export", repo, "--quant", ",".join(TYPES), "-o", "out", "--json"]
    done = subprocess.run([*command, "--no-verify"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"]["source"]["revision"] == hub.repos[repo].commit
    manifest.verify(tmp_path / "out")
    # The source's own numbers in each type: what its file holds, brought to half precision first as the repository was.
    before = {"F16": tmp_path / "source-F16.gguf", "Q4_K_M": tmp_path / "source-Q4_K_M.gguf"}
    engine_jobs.quantise(source, before["F16"], "F16", requantise=True)
    engine_jobs.quantise(before["F16"], before["Q4_K_M"], "Q4_K_M")
    text = "Write a function that sorts a list of words by length.\n\ndef by_length(words):\n"
    for kind in TYPES:
        after = tmp_path / "out" / f"{stem}-{kind}.gguf"
        assert read_header(after).quantisation == kind
        tokens = engine_jobs.tokenise(source, [text])[0]
        assert engine_jobs.tokenise(after, [text])[0] == tokens
        found, expected = engine_jobs.logits(after, tokens), engine_jobs.logits(before[kind], tokens)
        assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)
        assert engine_jobs.generate(after, text, N_GREEDY) == engine_jobs.generate(before[kind], text, N_GREEDY)
    assert engine_jobs.tokenise(tmp_path / "out" / f"{stem}-F16.gguf", [words()]) == engine_jobs.tokenise(
        source, [words()]
    )


def words() -> str:
    return " ".join(FREQUENT.read_text(encoding="ascii").splitlines()[:5000])
