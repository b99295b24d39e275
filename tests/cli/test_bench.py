"""`edgellm bench`: what it reports, and that it notices when an output is not the target's own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import write_tiny
from typer.testing import CliRunner

from edgellm.cli.main import app
from edgellm.runtime.answer import Stats
from edgellm.runtime.bringup.load import load_target, with_drafter
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.comparison import PLAIN, Prompt, Report, Run, read_prompts, run
from edgellm.runtime.drafters.base import Draft, NoDrafter

SUMMARY = {
    "n_prompts", "plain_tokens_per_s", "tokens_per_s", "ratio", "ratio_low", "ratio_high", "tokens_per_round",
    "acceptance", "identical", "time_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "target.gguf"
    write_tiny(path, seed=1)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    records = [
        {"id": "a/1", "task": "a", "turns": ["one two three one two three"]},
        {"id": "b/1", "task": "b", "turns": ["a question", "and another one"]},
        {"id": "b/2", "task": "b", "turns": ["left out by --limit"]},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def bench(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=True)


def test_the_json_report_carries_every_documented_figure(target: Path, prompts: Path) -> None:
    done = bench(
        target,
        "--draft",
        "copy",
        "--draft",
        f"{target}+copy",
        "--draft-tokens",  # a controller would not ask a model as slow as its target
        4,
        "--prompts",
        prompts,
        "--limit",
        2,
        "--max-tokens",
        12,
        "--json",
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [config["name"] for config in report["configs"]] == ["copy", f"{target.stem}+copy"]
    assert set(report["tasks"]) == {"a", "b"}
    for summary in (report["overall"], *report["tasks"].values(), *(config["overall"] for config in report["configs"])):
        assert set(summary) >= SUMMARY
        assert set(summary["time_s"]) == {"draft", "verify", "translate", "sample", "rest"}
        assert summary["ratio_low"] <= summary["ratio"] <= summary["ratio_high"]
    assert report["overall"]["n_prompts"] == 2
    assert {record["config"] for record in report["prompts"]} == {PLAIN, "copy", f"{target.stem}+copy"}
    assert len(report["prompts"]) == 2 * 3
    assert report["machine"]["peak_bytes"] > 2**20
    # A model that drafts for itself is always right, so a round gives its whole draft and one token more.
    both = next(config for config in report["configs"] if config["name"] != "copy")
    assert both["overall"]["acceptance_by"]["model"] == 1.0
    assert both["overall"]["identical"] == 2


def test_the_table_names_tasks_configurations_and_the_machine(target: Path, prompts: Path) -> None:
    done = bench(target, "--draft", "copy", "--prompts", prompts, "--limit", 2, "--max-tokens", 8)
    assert done.exit_code == 0, done.output
    assert re.search(r"^ ?all +2 ", done.stdout, re.MULTILINE)
    assert "threads, kernels" in done.stdout


def test_what_is_set_for_a_chat_without_a_drafter_measures_copying(
    target: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_DRAFT", "none")
    monkeypatch.setenv("EDGELLM_MODEL", str(target))
    done = CliRunner().invoke(app, ["bench", "-f", str(prompts), "--limit", "1", "-n", "4", "--json"])
    assert done.exit_code == 0, done.output
    assert [config["name"] for config in json.loads(done.stdout)["configs"]] == ["copy"]


def test_a_changed_token_is_reported_with_its_place_and_its_logit_gap(target: Path) -> None:
    class Liar:
        """A backend wrapper that lets one wrong token through an answer, as a broken kernel would."""

        def __init__(self, backend: Any) -> None:
            self._backend, self.lies = backend, False

        def __getattr__(self, name: str) -> Any:
            return getattr(self._backend, name)

        def forward(self, tokens: Any, n_outputs: int) -> Any:
            rows = self._backend.forward(tokens, n_outputs)
            if self.lies and n_outputs and len(self._backend.tokens) > self.lie_at:
                rows, self.lies = np.roll(rows, 1, axis=1), False
            return rows

    plain = load_target(target, EngineOptions(n_ctx=256))
    liar = Liar(plain.backend)
    prompt = Prompt("p", "t", ("a question",))

    class Marked(NoDrafter):
        def begin(self, prompt: Any, **_: Any) -> None:
            liar.lies, liar.lie_at = True, len(prompt) + 3

        def propose(self, tokens: Any, limit: int) -> Draft:
            return Draft()

    class Unmarked(NoDrafter):
        def begin(self, prompt: Any, **_: Any) -> None:
            liar.lies = False

    plain = replace(plain, backend=liar, drafter=Unmarked())  # type: ignore[arg-type]
    other = replace(with_drafter(plain, None, copy=False), drafter=Marked())
    report = run({PLAIN: plain, "marked": other}, [prompt], max_tokens=8)
    plain.close()
    found = report.differences["marked", "p"]
    assert (found.turn, found.position) == (0, 4)
    assert found.gap > 0
    assert report.summary("marked")["identical"] == 0
    assert report.noise is not None


def test_repeating_compares_like_with_like_and_keeps_every_run(target: Path, prompts: Path) -> None:
    done = bench(
        target, "--draft", "copy", "--prompts", prompts, "--limit", 1, "--max-tokens", 4, "--repeat", 3, "--json"
    )
    report = json.loads(done.stdout)
    assert len(report["prompts"]) == 2 * 3
    assert report["overall"]["n_prompts"] == 1


def test_the_interval_brackets_the_ratio_and_narrows_to_it_when_prompts_agree() -> None:
    report = Report(["c"])
    for i in range(5):
        prompt = Prompt(str(i), "t", ("x",))
        for name, decode_s in ((PLAIN, 2.0), ("c", 1.0)):
            report.runs.append(Run(name, prompt, [(1,)], Stats(n_new=10, n_rounds=5, decode_s=decode_s), 0.0))
    summary = report.summary("c")
    assert summary["ratio"] == summary["ratio_low"] == summary["ratio_high"] == 2.0


@pytest.mark.parametrize("line", ["{", "[]", '{"id": 1}', '{"turns": "text"}', '{"turns": []}', '{"turns": [1]}', "7"])
def test_a_bad_prompt_file_is_one_sentence_that_names_the_line(tmp_path: Path, target: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "ok", "turns": ["hello"]}\n' + line + "\n")
    done = CliRunner().invoke(app, ["bench", str(target), "--prompts", str(path)])
    assert done.exit_code != 0
    assert "line 2" in str(done.exception)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no prompts"):
        read_prompts(path)
