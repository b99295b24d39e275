"""Draft heads by name: who drafts where nobody is named, what plans and reports say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_assistants import write_assistant, write_gemma4
from tiny_gguf import write_tiny
from tiny_heads import fit_head, write_with_head
from typer.testing import CliRunner

import edgellm
from edgellm.app import adapting
from edgellm.app.defaults import BadSetting
from edgellm.app.listener import Silence
from edgellm.app.loading import prepare
from edgellm.cli.main import app
from edgellm.export.convert.gguf_copy import copied, raw_entries
from edgellm.export.convert.gguf_writer import string, u32, write_gguf
from edgellm.memory.draft_heads import describe, has_head, head_shape, why_unused
from edgellm.memory.gguf import read_header
from edgellm.memory.shape import from_header
from edgellm.runtime import EngineOptions
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.parallel.load import load_parallel

OPTIONS = EngineOptions(n_ctx=512, n_threads=1, learn="off")


class Recorder(Silence):
    """A listener that remembers."""

    def __init__(self) -> None:
        self.warned: list[str] = []

    def warning(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heads") / "tiny.gguf"
    return fit_head(write_with_head(path, weights="Q8_0", tied=False))


def run(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def changed(path: Path, to: Path, **entries: bytes) -> Path:
    """The same file with other entries; those of `general` have two underscores for the point."""
    header = read_header(path)
    mine = {key.replace("__", "."): value for key, value in entries.items()}
    write_gguf(to, dict(raw_entries(path)) | mine, [copied(header, tensor) for tensor in header.tensors])
    return to


def test_it_drafts_where_it_is_named_or_nobody_is(tiny: Path, tmp_path: Path) -> None:
    for draft, wanted in ((None, True), ("mtp", True), ("MTP", True), ("none", False)):
        pair = prepare(str(tiny), draft, OPTIONS, offline=True)
        assert (pair.options.head, pair.draft) == (wanted, None)
    small = write_tiny(tmp_path / "small.gguf", n_layers=1)
    pair = prepare(str(tiny), str(small), OPTIONS, offline=True)
    assert pair.draft is not None
    assert not pair.options.head
    with edgellm.load(tiny, options=OPTIONS, offline=True) as engine:
        assert engine.drafts_itself


def test_where_there_is_none_to_name_the_reason_is_said(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="has no draft head inside"):
        prepare(str(write_tiny(tmp_path / "plain.gguf")), "mtp", OPTIONS, offline=True)
    two = changed(tiny, tmp_path / "two.gguf", qwen35__nextn_predict_layers=u32(2))
    with pytest.raises(BadSetting, match="has 2 draft heads"):
        prepare(str(two), "mtp", OPTIONS, offline=True)
    other = changed(write_tiny(tmp_path / "llama.gguf"), tmp_path / "n.gguf", llama__nextn_predict_layers=u32(1))
    with pytest.raises(BadSetting, match="this is llama"):
        prepare(str(other), "mtp", OPTIONS, offline=True)
    bare = write_tiny(tmp_path / "bare.gguf", "qwen35", n_layers=4)
    stated = changed(bare, tmp_path / "stated.gguf", qwen35__nextn_predict_layers=u32(1))
    assert "nextn.eh_proj is not in it" in (why_unused(read_header(stated)) or "")
    assert not has_head(read_header(stated))


def test_several_conversations_leave_it_out_and_say_so(tiny: Path, tmp_path: Path) -> None:
    listener = Recorder()
    several = EngineOptions(n_ctx=512, n_threads=1, learn="off", n_parallel=2)
    pair = prepare(str(tiny), "mtp", several, offline=True, listener=listener)
    assert not pair.options.head
    assert "left out" in listener.warned[0]
    target = write_gemma4(tmp_path / "target.gguf")
    assistant = write_assistant(tmp_path / "assistant.gguf", target, fitted=False)
    with load_parallel(target, assistant, several) as engine:
        assert any("is left out: it drafts for one conversation" in text for text in engine.first.warnings)
        assert engine.first.draft_model is None


def test_a_plan_counts_it_apart_and_runs_as_it_was_made(tiny: Path, tmp_path: Path) -> None:
    whole = run("plan", tiny, "--draft", "mtp", "--ctx", "512")
    without = run("plan", tiny, "--draft", "none", "--ctx", "512")
    assert (whole["drafter"], without["drafter"]) == ("mtp", None)
    lines = {line["name"]: line["n_bytes"] for line in whole["lines"]}
    bare = {line["name"]: line["n_bytes"] for line in without["lines"]}
    assert lines["target weights"] == bare["target weights"]
    header = read_header(tiny)
    of_head = [tensor.n_bytes for tensor in header.tensors if tensor.name.startswith("blk.4.")]
    assert lines["drafter weights"] == sum(of_head)
    assert {"drafter cache", "drafter states", "drafter compute", "drafter logits"} <= lines.keys()
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(whole))
    with edgellm.load(None, plan=path, offline=True, options=EngineOptions(learn="off", n_threads=1)) as engine:
        assert engine.drafts_itself
        assert engine.settings.n_draft == whole["n_draft"]


def test_what_it_reads_of_its_target_counts_towards_its_price(tiny: Path) -> None:
    header = read_header(tiny)
    target = from_header(header)
    head = head_shape(header, target)
    assert head is not None
    output = next(tensor.n_bytes for tensor in header.tensors if tensor.name == "output.weight")
    assert head.bytes_read_per_token == head.weight_bytes + output
    assert head.attention[0].n_layers == 1
    assert not head.is_recurrent


def test_show_and_check_know_it(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.runtime.bringup.planning.usable_cores", lambda: 1)
    assert "inside (MTP)" in run("show", tiny)["draft_head"]
    assert run("show", write_tiny(tmp_path / "plain.gguf"))["draft_head"] is None
    report = run("check", tiny, "mtp", "--measure")
    assert report["draft_head"]["n_bytes"] > 0
    assert 0 < report["measured"]["acceptance"] < 1
    assert report["measured"]["tokens_per_round"] > 1.2
    done = CliRunner().invoke(app, ["check", str(tiny), "mtp"], catch_exceptions=False)
    assert "draft head" in done.stdout


def test_a_benchmark_compares_it(tiny: Path) -> None:
    asked = ("--max-tokens", "8", "--limit", "1", "--threads", "1")
    report = run("bench", tiny, "--draft", "mtp", "--draft", "mtp+copy", *asked)
    assert [config["name"] for config in report["configs"]] == ["mtp", "mtp+copy"]
    assert all(prompt["identical"] for prompt in report["prompts"])
    report = run("bench", tiny, "--ablate", *asked)
    names = [config["name"] for config in report["configs"]]
    assert "model, text" in names
    assert "model, TLI" not in names


def test_an_assistant_that_lies_beside_its_target_drafts(tmp_path: Path) -> None:
    target = write_gemma4(tmp_path / "target.gguf")
    write_tiny(tmp_path / "another.gguf")
    assistant = write_assistant(tmp_path / "mtp-target.gguf", target, fitted=False)
    pair = prepare(str(target), None, OPTIONS, offline=True)
    assert pair.draft is not None
    assert pair.draft.path == assistant
    assert "name it with --draft" in (describe(read_header(assistant)) or "")
    assert prepare(str(target), "none", OPTIONS, offline=True).draft is None
    with pytest.raises(BadSetting, match="is a draft head"):
        adapting.prepare(str(target), str(assistant), offline=True)


@pytest.mark.parametrize("kind", ["eagle3", "dflash"])
def test_heads_that_need_what_is_not_handed_out_are_named_for_what_they_are(kind: str, tmp_path: Path) -> None:
    path = changed(write_tiny(tmp_path / "base.gguf"), tmp_path / "head.gguf", general__architecture=string(kind))
    assert "hands that out by no public call" in run("show", path)["draft_head"]
    with pytest.raises(LoadError, match=r"is a draft head .* so it is not used"):
        LlamaModel(path)
