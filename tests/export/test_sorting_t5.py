"""A T5 that was trained for a minute, exported and chatted with: what transformers' greedy search says, word for word.

Run with `-m converter`. EDGELLM_TEST_TRANSFORMERS names a Python that has torch, transformers and sentencepiece.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from sorting_t5 import WORDS, a_text

from edgellm.export import manifest
from edgellm.export.environments import environment
from edgellm.runtime import EngineOptions, load

pytestmark = pytest.mark.converter

CHILD = Path(__file__).with_name("sorting_t5.py")
NAMED = os.environ.get("EDGELLM_TEST_TRANSFORMERS")
N_TEXTS, N_TOKENS = 50, 40


def edgellm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgellm.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def python() -> Path:
    return Path(NAMED) if NAMED else environment("llama_cpp", ask=lambda _: True)


def texts() -> list[str]:
    """Words in any order, among them doubled spaces, signs that the vocabulary lacks, and texts of no known word."""
    rng = random.Random(11)
    found = [a_text(rng) for _ in range(N_TEXTS - 5)]
    return [*found, "zoo  ball\tant", "ear, cat? 123", "żółw cat", WORDS.split()[0], "fox " * 20 + "ant"]


def test_an_exported_t5_says_what_transformers_says_through_chat_and_python(python: Path, tmp_path: Path) -> None:
    folder, asked, told = tmp_path / "t5", tmp_path / "texts.json", tmp_path / "told.json"
    subprocess.run([python, "-I", CHILD, "make", folder], check=True, capture_output=True)
    asked.write_text(json.dumps(texts()))
    subprocess.run([python, "-I", CHILD, "answer", folder, asked, told, str(N_TOKENS)], check=True, capture_output=True)
    expected = json.loads(told.read_text())

    done = edgellm("export", folder, "-o", tmp_path / "out", "--quant", "F16,Q8_0")
    assert done.returncode == 0, done.stderr
    document = manifest.verify(tmp_path / "out").document["target"]
    assert document["converter"]["by"] == "own"
    assert document["verification"]["tokens"]["different"] == 0
    logits = document["verification"]["logits"]
    assert logits["same_choice"] == logits["n_tokens"]
    path = next((tmp_path / "out").rglob("*F16*.gguf"))

    with load(path, None, EngineOptions(learn="off", fixed=True, n_draft=4)) as engine:
        n_drafted = 0
        for text, one in zip(texts(), expected, strict=True):
            for n_draft in (None, 0):
                answer = engine.generate(text, max_tokens=N_TOKENS, n_draft=n_draft).finish()
                assert [*answer.tokens] == [token for token in one["tokens"] if token != 1], text
                assert answer.text == one["text"]
                n_drafted += answer.stats.n_drafted
        assert n_drafted
    for text, one in list(zip(texts(), expected, strict=True))[::10]:
        done = edgellm("chat", path, "-p", text, "--max-tokens", str(N_TOKENS))
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip("\n") == one["text"].rstrip("\n")
    print(f"\n{N_TEXTS} texts, {sum(len(one['tokens']) for one in expected)} tokens; {logits}")
