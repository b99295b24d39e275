"""Every command over a model in several files, named in each way that people name one; the witness is llama.cpp's own
loading of parts, by the library that is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf_parts import split
from loopback_hub import LoopbackHub
from tiny_gguf import write_tiny
from typer.testing import CliRunner, Result

from edgellm.app.defaults import BadSetting
from edgellm.app.listener import SILENCE
from edgellm.app.loading import prepare
from edgellm.app.served_pairs import Offer
from edgellm.cli.main import app
from edgellm.export import manifest
from edgellm.export.convert import engine_jobs
from edgellm.export.manifest import ManifestError
from edgellm.export.obtain import store
from edgellm.memory.errors import EdgellmError
from edgellm.memory.gguf import read_header
from edgellm.runtime.bringup.planning import EngineOptions

REPO = "me/m-GGUF"
SAY = ("-p", "the hat in a hat", "--draft", "none", "--ctx", "256", "--max-tokens", "24", "--temp", "0", "--no-learn")
PLAN = ("--draft", "none", "--ctx", "512", "--budget", "2GB")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("whole") / "m-Q8_0.gguf", "qwen3", weights="Q8_0", n_layers=6)


@pytest.fixture(params=[2, 3, 9])
def parts(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> list[Path]:
    return split(whole, tmp_path / "m", request.param)


@pytest.fixture
def three(whole: Path, tmp_path: Path) -> list[Path]:
    return split(whole, tmp_path / "m", 3)


def edgellm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def told(*arguments: str | Path) -> Any:
    done = edgellm(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_llama_cpp_itself_computes_the_same_bits_from_the_parts(whole: Path, parts: list[Path]) -> None:
    tokens = list(range(60, 90))
    assert (engine_jobs.logits(parts[0], tokens) == engine_jobs.logits(whole, tokens)).all()


def test_the_answer_is_that_of_the_whole_file_however_the_parts_are_named(whole: Path, three: list[Path]) -> None:
    expected = told("chat", whole, *SAY)["text"]
    assert expected
    for named in (three[0], three[2], three[0].parent):
        assert told("chat", named, *SAY)["text"] == expected
    completed = [told("complete", one, *SAY[:2], "--temp", "0")["completions"] for one in (whole, three[1])]
    assert completed[0] == completed[1]


def test_show_and_plan_tell_of_the_whole(whole: Path, parts: list[Path]) -> None:
    one, several = told("show", whole), told("show", parts[1])
    differ = {"reference", "path", "n_bytes", "parts"}
    assert {key: value for key, value in one.items() if key not in differ} == {
        key: value for key, value in several.items() if key not in differ
    }
    assert [part["filename"] for part in several["parts"]] == [part.name for part in parts]
    assert several["n_bytes"] == sum(part.stat().st_size for part in parts)
    assert f"{len(parts)} files, from {parts[0].name} on" in edgellm("show", parts[0]).stdout
    plans = [told("plan", path, *PLAN) for path in (whole, parts[-1])]
    assert plans[0]["lines"] == plans[1]["lines"]


def test_one_in_parts_drafts_and_is_checked_and_benched(whole: Path, three: list[Path], tmp_path: Path) -> None:
    report = told("check", whole, three[1])
    assert report["same_vocabulary"]
    assert report["bytes_ratio"] == pytest.approx(1.0, abs=0.05)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"turns": ["the hat"]}')
    bench = told("bench", three[2], "--draft", three[1], "--prompts", prompts, *SAY[4:8], "--repeat", "1", "--no-learn")
    assert bench["overall"]


COMMANDS = [
    ("show",), ("plan",), ("pull",), ("chat", "-p", "x"), ("complete", "-p", "x"), ("serve", "--port", "0"), ("bench",),
    ("export", "--quant", "Q8_0"), ("check",), ("adapt",),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=[name for name, *_ in COMMANDS])
def test_a_missing_part_is_named_by_every_command(command: tuple[str, ...], three: list[Path]) -> None:
    three[1].unlink()
    name, *rest = command
    second = [str(three[2])] if name == "check" else []
    with pytest.raises(EdgellmError, match=r"00002-of-00003\.gguf is missing beside m-Q8_0-00001-of") as failure:
        edgellm(name, three[0], *second, *rest)
    assert failure.value.exit_code == 1


def test_the_failure_is_one_sentence(three: list[Path]) -> None:
    three[0].unlink()
    command = [sys.executable, "-m", "edgellm.cli", "chat", str(three[2]), "-p", "x"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "error: m-Q8_0-00001-of-00003.gguf is missing beside m-Q8_0-00003-of-00003.gguf: pull or copy all 3 files of "
        "the model"
    ]


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0"])
def test_an_export_of_parts_is_one_checked_file(whole: Path, three: list[Path], tmp_path: Path, quant: str) -> None:
    made, alone = tmp_path / "made", tmp_path / "alone"
    for source, folder in ((three[1], made), (whole, alone)):
        told("export", source, "--quant", quant, "--output", folder)
    name = f"m-Q8_0-{quant}.gguf"
    assert (made / name).read_bytes() == (alone / name).read_bytes()
    assert not any(key.startswith("split.") for key in read_header(made / name).metadata)
    files = manifest.verify(made).document["target"]["source"]["files"]
    assert sorted(files) == [part.name for part in three]
    assert edgellm("verify", made).exit_code == 0
    assert told("export", three[0], "--output", made, "--locked")
    with three[2].open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(ManifestError, match=f"the target's {three[2].name} has changed"):
        told("export", three[0], "--output", made, "--locked")


@pytest.fixture
def pulled(hub: LoopbackHub, three: list[Path]) -> store.ModelFile:
    hub.add_repo(REPO, {f"Q8_0/{part.name}": part.read_bytes() for part in three}, licence="mit")
    return store.pull(REPO)


def test_what_was_pulled_in_parts_is_one_line_of_every_list(pulled: store.ModelFile) -> None:
    (row,) = told("list")
    assert (row["name"], row["quant"], row["n_bytes"]) == (REPO, "Q8_0", pulled.n_bytes)
    assert len(row["parts"]) == 3
    assert [model["path"] for model in told("doctor")["models"]] == [str(pulled.path)]
    assert told("chat", REPO, *SAY)["text"]
    pulled.files[2].unlink()
    assert told("list") == []
    assert f"{pulled.files[2].name} is gone" in edgellm("doctor").stdout


def test_a_server_offers_it_once(pulled: store.ModelFile, whole: Path) -> None:
    options = EngineOptions(n_ctx=64, copy=False, learn="off")
    first = prepare(str(whole), "none", options, offline=True)
    offer = Offer([str(whole)], first, options, "none", (), offline=True, listener=SILENCE)
    with offer.models(all_local=True) as models:
        assert [name for name in models.names if REPO in name] == [REPO, f"{REPO}:Q8_0"]
        assert models.load(models.get(REPO)).name == REPO


def test_rm_takes_all_parts(pulled: store.ModelFile) -> None:
    removed = told("rm", REPO, "--yes")
    assert removed["removed"] == [str(path) for path in pulled.files]
    assert removed["n_bytes"] == pulled.n_bytes
    assert not any(path.exists() for path in pulled.files)
    assert told("list") == []


def test_one_on_the_hub_is_planned_from_the_headers_of_its_parts(
    hub: LoopbackHub, whole: Path, three: list[Path]
) -> None:
    hub.add_repo(REPO, {part.name: part.read_bytes() for part in three})
    lines = [told("plan", name, *PLAN)["lines"] for name in (REPO, whole)]
    assert lines[0] == lines[1]


def test_a_drafter_in_parts_is_joined_before_it_learns(whole: Path, three: list[Path]) -> None:
    with pytest.raises(BadSetting, match="lies in 3 files, and a drafter learns in one: `edgellm export"):
        edgellm("adapt", whole, "--draft", three[0])


def test_the_real_model_in_parts_answers_as_its_file_does(smollm2_path: Path, tmp_path: Path) -> None:
    expected = told("chat", smollm2_path, *SAY)["text"]
    parts = split(smollm2_path, tmp_path / "parts", 3)
    assert told("chat", parts[1], *SAY)["text"] == expected
    shutil.rmtree(tmp_path / "parts")
