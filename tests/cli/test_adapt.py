"""`edgellm adapt`: what it says where, as JSON too, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from learning_pairs import PATH, questions, tiny_pair
from typer.testing import CliRunner

from edgellm.app import adapting
from edgellm.app.adapt_jobs import MINUTES, N_TOKENS
from edgellm.app.adapting import AdaptJob, Outcome, Progress
from edgellm.cli import _errors
from edgellm.cli.adapt import sentence
from edgellm.cli.main import app
from edgellm.export.obtain.store import ModelFile
from edgellm.memory.folders import home
from edgellm.memory.plan import DoesNotFit
from edgellm.runtime.distillation.orders import Result

SIDE = {"agreement": 0.741, "accepted_of_4": 2.01, "tokens_per_pass": 2.62, "n_tokens": 4000, "n_answers": 31}
COMPARISON = {"old": SIDE, "new": {**SIDE, "tokens_per_pass": 2.9}, "ratio": 1.107, "interval": [1.06, 1.15]}
JOB = AdaptJob(
    ModelFile(Path("t.gguf"), "big", "Q4_K_M", 1, None, None, "path"),
    ModelFile(Path("d.gguf"), "small", "Q4_1", 1, None, None, "path"),
)
BETTER = Result(True, "used from now on: …", "learnt", COMPARISON, 120, 90, 21_000, 31, 300.0, "/there/d.gguf")
run = CliRunner().invoke


@pytest.fixture
def adapted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`adapted(result)` is what the next command's training will have done; gives what it is asked for."""

    def become(result: Result | Exception) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def prepare(model: str | None, draft: str | None, **more: Any) -> AdaptJob:
            asked.update(model=model, draft=draft, **more)
            return JOB

        def adapt(job: AdaptJob, listener: Any, cancel: Any = None, *, watch: Any) -> Outcome:
            if isinstance(result, Exception):
                raise result
            watch(Progress("learning", 3, 9, 90, 120.0, 1.25, 200.0))
            listener.warning("something is odd")
            return Outcome(job, result, 7, 301.0)

        monkeypatch.setattr(adapting, "prepare", prepare)
        monkeypatch.setattr(adapting, "adapt", adapt)
        return asked

    return become


def test_a_better_drafter_is_a_table_and_a_sentence(adapted: Callable[..., dict[str, Any]]) -> None:
    asked = adapted(BETTER)
    done = run(app, ["adapt", "big", "-d", "small", "--minutes", "5", "--mem", "2GB", "--threads", "3"])
    assert done.exit_code == 0
    assert (asked["model"], asked["draft"], asked["minutes"], asked["memory"]) == ("big", "small", 5.0, "2GB")
    assert "2.62" in done.stdout
    assert "2.90" in done.stdout
    assert done.stdout.strip().endswith("used from now on: …")
    assert "small learns from big, for 5 minutes at most" in done.stderr
    assert "step 3 of 9, 90 answers, 120 tok/s, loss 1.250, 3 min left" in done.stderr
    assert "warning: something is odd" in done.stderr
    assert "90 answers (21,000 tokens), judged by 31 others" in done.stderr


def test_without_names_it_is_the_default_pair(adapted: Callable[..., dict[str, Any]]) -> None:
    asked = adapted(BETTER)
    assert run(app, ["adapt"]).exit_code == 0
    assert (asked["model"], asked["draft"], asked["prompts"]) == (None, None, None)
    assert (asked["minutes"], asked["n_tokens"]) == (MINUTES, N_TOKENS)


def test_as_json_it_is_one_document_on_stdout(adapted: Callable[..., dict[str, Any]]) -> None:
    adapted(BETTER)
    report = json.loads(run(app, ["adapt", "--json"]).stdout)
    assert report["adopted"] is True
    assert (report["target"], report["drafter"]) == ("big", "small")
    assert (report["new"]["tokens_per_pass"], report["interval"]) == (2.9, [1.06, 1.15])
    assert (report["path"], report["n_answered"], report["seconds"]) == ("/there/d.gguf", 7, 301.0)


def test_no_better_is_no_failure(adapted: Callable[..., dict[str, Any]]) -> None:
    adapted(Result(False, "not used: …", comparison={**COMPARISON, "interval": [0.98, 1.03]}))
    done = run(app, ["adapt", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["adopted"] is False
    adapted(Result(False, "too few lessons"))
    done = run(app, ["adapt"])
    assert (done.exit_code, done.stdout.strip()) == (0, "too few lessons")


def test_what_does_not_fit_is_exit_code_3(adapted: Callable[..., dict[str, Any]]) -> None:
    adapted(DoesNotFit("training small takes 3 GB and there is 1 GB for it: end other programs"))
    done = run(app, ["adapt"])
    assert done.exception is not None
    assert _errors.exit_code(done.exception) == _errors.DOES_NOT_FIT


@pytest.mark.parametrize("words", [["--mem", "much"], ["--minutes", "0"], ["--tokens", "5"], ["a", "b"]])
def test_wrong_use_is_exit_code_2(words: list[str]) -> None:
    done = run(app, ["adapt", *words])
    code = _errors.exit_code(done.exception) if done.exit_code == 1 and done.exception else done.exit_code
    assert code == _errors.USAGE


def test_memory_has_a_variable_of_its_own(
    adapted: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EDGELLM_MEM says for what device is planned, which is no bound on this program."""
    monkeypatch.setenv("EDGELLM_MEM", "4GB")
    asked = adapted(BETTER)
    run(app, ["adapt"])
    assert asked["memory"] is None
    monkeypatch.setenv("EDGELLM_ADAPT_MEM", "3GB")
    run(app, ["adapt"])
    assert asked["memory"] == "3GB"


def test_where_it_stands_is_one_line() -> None:
    told = sentence(Progress("answering", 12_040, 30_000, 81, 108.4, None, 170.0))
    assert told == "answering: 12,040 of 30,000 tokens, 81 answers, 108 tok/s, 3 min left"
    assert sentence(Progress("answering", 31_000, 30_000, 190)) == "190 answers (31,000 tokens) to learn from"
    assert sentence(Progress("judging", what="judging what was learnt")) == "judging what was learnt …"


COMMAND = (  # a shell's background job begins with Ctrl-C ignored, and so does all that tests start in one
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from edgellm.app import adapting; adapting.TRAINING = 'training_child'\nfrom edgellm.cli.main import main; main()"
)


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another signal there")
def test_ctrl_c_keeps_what_was_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    pair = tiny_pair(home())
    pair.answered(questions(60))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("question 1\n")
    words = ["adapt", str(pair.target), "-d", str(pair.draft), "-f", str(prompts), "--threads", "1", "--json"]
    environment = {**os.environ, "PYTHONPATH": PATH, "EDGELLM_TEST_STEP_S": "0.5"}
    begun = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as a terminal's foreground job: the signal reaches the children too
    )
    assert begun.stderr is not None
    said = ""
    while "step " not in said:
        line = begun.stderr.readline()
        assert line, said
        said += line
    time.sleep(0.3)
    os.killpg(begun.pid, signal.SIGINT)
    stdout, rest = begun.communicate(timeout=120)
    assert begun.returncode == _errors.INTERRUPTED
    assert stdout == ""
    assert "the same command goes on from there" in rest
    environment["EDGELLM_TEST_STEP_S"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], env=environment, capture_output=True, text=True, check=True
    )
    assert "going on with the training that was interrupted" in done.stderr
    assert json.loads(done.stdout)["adopted"] is True
