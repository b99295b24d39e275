"""Which drafter file runs: with what it learnt here, the catalogue's, or what is asked for; answers never change."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from draft_adapters import adapter_for, quantised_tiny, write_adapter
from tiny_gguf import write_tiny
from typer.testing import CliRunner

import edgellm
from edgellm.app.defaults import adapted_folder, learned_folder
from edgellm.app.drafter_adapters import choose, take_back
from edgellm.app.listener import Silence
from edgellm.app.loading import prepare
from edgellm.cli.main import app
from edgellm.export.obtain import store
from edgellm.export.obtain.catalogue import CatalogueError, load_catalogue
from edgellm.export.obtain.store import ModelFile
from edgellm.memory.draft_adapter import DraftAdapterError
from edgellm.memory.files import sha256_of
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.distillation.adopted import Adopted, target_key

QUESTION = "the thin hat in the tin"


class Recorder(Silence):
    def __init__(self) -> None:
        self.details: list[str] = []
        self.warned: list[str] = []

    def detail(self, text: str) -> None:
        self.details.append(text)

    def warning(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture
def told() -> Recorder:
    return Recorder()


@pytest.fixture
def pair(tmp_path: Path, catalogue: Callable[..., None]) -> tuple[ModelFile, ModelFile]:
    """A target and a drafter that the catalogue knows by their files' names, without an adapter's file yet."""
    write_tiny(tmp_path / "tiny-target.gguf", n_layers=8, n_ctx_train=256)
    quantised_tiny(tmp_path / "tiny-drafter.gguf")
    entries = [
        {"name": name, "files": [{"quant": quant, "filename": f"{name}.gguf", "sources": [{"hf": f"us/{name}"}]}]}
        for name, quant in (("tiny-target", "F32"), ("tiny-drafter", "Q4_1"))
    ]
    catalogue(entries[0] | {"adapters": {"tiny-drafter": "tiny.adapter"}}, entries[1])
    found = [store.locate(str(tmp_path / f"{name}.gguf")) for name in ("tiny-target", "tiny-drafter")]
    assert found[0] is not None
    assert found[1] is not None
    return found[0], found[1]


@pytest.fixture
def shipped(pair: tuple[ModelFile, ModelFile], tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "tiny.adapter", pair[1].path, 0.1)


def adopt(pair: tuple[ModelFile, ModelFile], by: float = 0.2) -> Adopted:
    adopted = Adopted(adapted_folder())
    adopted.adopt(target_key(pair[0].path), adapter_for(pair[1].path, by), pair[1].path)
    return adopted


def origin(pair: tuple[ModelFile, ModelFile], asked: str | None = None, told: Recorder | None = None) -> str | None:
    adapter = choose(*pair, asked, listener=told or Recorder()).adapter
    return adapter.origin if adapter is not None else None


def run_json(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_what_was_learnt_here_goes_before_the_catalogues_and_what_is_asked_for_before_both(
    pair: tuple[ModelFile, ModelFile], shipped: Path, tmp_path: Path
) -> None:
    assert origin(pair) == "project"
    adopt(pair)
    assert origin(pair) == "here"
    assert origin(pair, str(write_adapter(tmp_path / "mine.adapter", pair[1].path, 0.3))) == "asked"
    assert origin(pair, "none") is None
    assert choose(*pair, "none").path == pair[1].path


def test_it_is_named_with_what_it_brought(pair: tuple[ModelFile, ModelFile], shipped: Path, told: Recorder) -> None:
    choose(*pair, listener=told)
    assert told.details == [
        "tiny-drafter with the adapter for tiny-target (made by the project on 12,345 tokens, "
        "2.76 -> 3.04 tokens a pass)"
    ]


def test_the_catalogues_adapter_is_not_used_with_another_file(
    pair: tuple[ModelFile, ModelFile], tmp_path: Path, told: Recorder
) -> None:
    write_adapter(tmp_path / "tiny.adapter", quantised_tiny(tmp_path / "other.gguf", seed=1))
    assert origin(pair, told=told) is None
    assert "made for another file of tiny-drafter than the one here" in told.details[0]
    assert told.warned == []


def test_a_damaged_one_of_the_catalogue_is_a_warning(
    pair: tuple[ModelFile, ModelFile], shipped: Path, told: Recorder
) -> None:
    shipped.write_bytes(shipped.read_bytes()[:-1])
    assert origin(pair, told=told) is None
    assert "an adapter of the catalogue is not used" in told.warned[0]


def test_one_that_was_taken_back_is_not_offered_again(
    pair: tuple[ModelFile, ModelFile], shipped: Path, told: Recorder
) -> None:
    adopt(pair)
    for why, after in (("slower here", "project"), ("slower too", None)):
        adapter = choose(*pair).adapter
        assert adapter is not None
        take_back(pair[0].path, adapter, why)
        assert origin(pair) == after
    assert origin(pair, told=told) is None
    assert all("taken back on" in text for text in told.details)
    shown = run_json("show", pair[0].path)
    assert [text.partition(": ")[2] for text in shown["adapters_taken_back"]] == ["slower here", "slower too"]


def test_what_is_asked_for_and_does_not_fit_is_refused(pair: tuple[ModelFile, ModelFile], tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other.adapter", quantised_tiny(tmp_path / "other.gguf", seed=1))
    with pytest.raises(DraftAdapterError, match="was made for another file than"):
        choose(*pair, str(other))
    with pytest.raises(DraftAdapterError, match="there is no adapter"):
        choose(*pair, str(tmp_path / "missing.adapter"))
    with pytest.raises(DraftAdapterError, match="is no draft adapter of edgellm"):
        choose(*pair, str(pair[1].path))


def test_a_full_disk_costs_the_adapter_and_not_the_answer(
    pair: tuple[ModelFile, ModelFile], shipped: Path, told: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(shipped)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert choose(*pair, listener=told).path == pair[1].path
    assert "tiny-drafter drafts without its adapter: " in told.warned[0]
    assert "0 B are free on its disk" in told.warned[0]
    with pytest.raises(OSError, match="free on its disk") as caught:
        choose(*pair, str(shipped))
    assert caught.value.errno == errno.ENOSPC


def test_the_answer_is_the_targets_with_any_adapter(pair: tuple[ModelFile, ModelFile], shipped: Path) -> None:
    """What is known of its drafts is kept apart; what it costs goes by name and size, which are the same."""
    options = edgellm.EngineOptions(n_ctx=128, n_draft=3, fixed=True, learned=learned_folder())
    answers, n_known, keys = [], [], []
    for asked in ("none", None):
        with edgellm.load(pair[0].path, pair[1].path, options, draft_adapter=asked) as engine:
            assert isinstance(engine.draft_model, LlamaModel)
            assert (engine.draft_model.path == pair[1].path) is (asked == "none")
            answers.append(engine.generate(QUESTION, max_tokens=24).finish().tokens)
            keys.append((engine.draft_model.path.name, engine.draft_model.path.stat().st_size))
        n_known.append(len(list(learned_folder().glob("knowledge-*.bin"))))
    assert answers[0] == answers[1]
    assert n_known == [1, 2]
    assert keys[0] == keys[1]


def test_every_report_names_it(pair: tuple[ModelFile, ModelFile], shipped: Path) -> None:
    target, draft = pair[0].path, pair[1].path
    answer = run_json("chat", target, "-d", draft, "-p", QUESTION, "-n", 4, "-c", 128, "-k", 2)
    report = run_json("check", target, draft, "--measure")
    bench = run_json("bench", target, "-d", f"{draft}+copy", "--limit", 1, "-n", 4, "-c", 256, "-k", 2)
    plan = run_json("plan", target, "-d", draft)
    shown = run_json("show", target)
    named = [answer["draft_adapter"], report["draft_adapter"], bench["configs"][0]["draft_adapter"], plan["adapter"]]
    assert {one["sha256"] for one in [*named, *shown["draft_adapters"]]} == {sha256_of(shipped)}
    assert {one["origin"] for one in named} == {"project"}
    for command in (["check", target, draft], ["plan", target, "-d", draft], ["show", target]):
        done = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=False)
        assert "tiny-drafter with the adapter for tiny-target (made by the project" in " ".join(done.stdout.split())
    assert run_json("check", target, draft, "--draft-adapter", "none")["draft_adapter"] is None


def test_a_plan_runs_with_the_adapter_that_it_was_made_with(
    pair: tuple[ModelFile, ModelFile], shipped: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "plan.json"
    command = ["plan", str(pair[0].path), "-d", str(pair[1].path), "--draft-adapter", "none", "--save", str(saved)]
    assert CliRunner().invoke(app, [*command, "--ctx", "128", "--budget", "1GB"]).exit_code == 0
    assert prepare(None, None, plan=saved).adapter is None
    made = prepare(None, None, plan=saved, draft_adapter=shipped).adapter  # what is said now goes before
    assert made is not None
    assert made.origin == "asked"


def test_without_a_drafter_it_has_no_effect_and_says_so(
    pair: tuple[ModelFile, ModelFile], shipped: Path, told: Recorder
) -> None:
    assert prepare(pair[0].path, "none", draft_adapter=shipped, listener=told).adapter is None
    assert told.warned == ["nothing drafts, so the adapter of a drafter has no effect"]


def test_a_pair_that_is_not_here_is_planned_with_the_catalogues_adapter(
    tmp_path: Path, catalogue: Callable[..., None]
) -> None:
    drafter = quantised_tiny(tmp_path / "tiny-drafter.gguf")
    facts = {
        "architecture": "llama", "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "n_embd": 64,
        "n_ff": 128, "n_vocab": 320, "n_ctx_train": 256, "n_params": 60_000, "tied": True,
    }  # fmt: skip
    file = {"quant": "Q4_1", "filename": "a.gguf", "sha256": sha256_of(drafter), "sources": [{"hf": "us/a"}]}
    entries = [
        {"name": "tiny-target", "facts": facts | {"n_layers": 80}, "adapters": {"tiny-drafter": "tiny.adapter"}},
        {"name": "tiny-drafter", "facts": facts, "files": [file]},
    ]
    catalogue(*entries)
    write_adapter(tmp_path / "tiny.adapter", drafter)
    assert run_json("plan", "tiny-target", "-d", "tiny-drafter")["adapter"]["origin"] == "project"
    assert run_json("show", "tiny-target")["draft_adapters"][0]["draft"] == "tiny-drafter"
    catalogue(entries[0], entries[1] | {"files": [file | {"sha256": "0" * 64}]})
    assert run_json("plan", "tiny-target", "-d", "tiny-drafter")["adapter"] is None


@pytest.mark.parametrize("file", ["../tiny.adapter", "tiny.gguf", "/etc/passwd", ""])
def test_a_catalogue_names_adapters_in_its_own_folder_alone(catalogue: Callable[..., None], file: str) -> None:
    catalogue({"name": "tiny-target", "adapters": {"tiny-drafter": file}})
    with pytest.raises(CatalogueError, match="'tiny-target' is not in the format"):
        load_catalogue()


def test_the_shipped_catalogue_names_adapters_that_are_there() -> None:
    """And each is for the default file of its drafter."""
    from edgellm.export.obtain.catalogue import ADAPTERS, find
    from edgellm.memory.draft_adapter import read_draft_adapter

    named = set()
    for entry in load_catalogue():
        for drafter, path in entry.adapters.items():
            adapter = read_draft_adapter(path)
            assert adapter.base == find(drafter).files[0].sha256
            assert adapter.record["target"] == entry.name
            named.add(path)
    assert named == set(ADAPTERS.glob("*.adapter"))
