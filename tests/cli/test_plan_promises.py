"""What a plan promises: what was asked is kept or said first, what fits fits, and every plan can be run as printed."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from raw_gguf import LLAMA, llama_tensors, write_raw
from tiny_gguf import write_tiny

from edgellm.app.plans import models_of, read_plan
from edgellm.cli import main as command
from edgellm.memory.context import ContextSettings
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.bringup.probe import probe
from edgellm.runtime.learning import costs as curves

FIXED = EngineOptions(fixed=True, learn="off")  # nothing is measured before the first answer


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


Run = Callable[..., Done]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process, as `main` runs it."""

    def edgellm(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["edgellm", *map(str, arguments)])
        code = 0
        try:
            command.main()
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return edgellm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_tiny(made / "target.gguf", "llama", n_embd=256, n_layers=6, n_ff=512, head_dim=64)
    for name in ("llama", "mamba", "lfm2", "qwen35"):
        write_tiny(made / f"{name}.gguf", name, n_embd=128)
    return made


def lines_of(plan: dict[str, Any]) -> dict[str, int]:
    return {line["name"]: line["n_bytes"] for line in plan["lines"]}


# ---- what was asked for ----------------------------------------------------------------------------------------------


def test_a_drafter_that_does_not_fit_is_said_in_the_first_line(run: Run) -> None:
    asked = ("plan", "llama-3.2-3b-instruct", "--draft", "llama-3.2-1b-instruct", "--budget", "3GB")
    done = run(*asked)
    assert done.code == 0, done.err
    assert done.out.startswith("llama-3.2-1b-instruct is not used as the drafter: it does not fit beside")
    told = run(*asked, "--json").json
    assert next(iter(told)) == "lost"
    assert len(told["lost"]) == 1
    assert told["drafter"] is None
    assert any("draft model dropped" in change for change in told["changes"])
    assert "given up to fit: draft model dropped" in done.out
    roomy = run("plan", "llama-3.2-3b-instruct", "--draft", "llama-3.2-1b-instruct", "--budget", "8GB", "--json").json
    assert (roomy["lost"], roomy["changes"], roomy["drafter"]) == ([], [], "llama-3.2-1b-instruct")


def test_what_else_is_asked_for_is_kept_or_does_not_fit(run: Run) -> None:
    asked = ("--ctx", "16384", "--kv", "f16", "--n-draft", "6", "--draft", "none", "--json")
    for budget in ("8GB", "3GB", "1GB"):
        plan = run("plan", "llama-3.2-3b-instruct:Q4_K_M", "--budget", budget, *asked).json
        assert (plan["n_ctx"], plan["kv"], plan["n_draft"], plan["quantisation"]) == (16_384, "f16", 6, "Q4_K_M")
        assert plan["fits"] == (budget == "8GB")


def test_a_drafter_of_states_is_planned_with_its_copy_and_drafts(run: Run, folder: Path) -> None:
    pair = (folder / "target.gguf", "--draft", folder / "mamba.gguf")
    lines = lines_of(run("plan", *pair, "--budget", "1GiB", "--json").json)
    assert 0 < lines["drafter states"] <= lines["drafter cache"]
    with load(folder / "target.gguf", folder / "mamba.gguf", FIXED) as engine:
        session = ChatSession(engine)
        assert list(session.reply("the hat", max_tokens=12))
        assert session.last is not None
        assert session.last.stats.n_drafted > 0


@pytest.mark.parametrize("name", ["lfm2", "qwen35"])
def test_a_hybrid_drafter_is_planned_with_its_snapshots_and_runs(name: str, run: Run, folder: Path) -> None:
    drafter, file = folder / f"{name}.gguf", folder / f"{name}.json"
    done = run("plan", folder / "target.gguf", "--draft", drafter, "--ctx", "512", "--save", file, "--json")
    assert done.code == 0, done.err
    settings = ContextSettings(**done.json["drafter_settings"])
    assert settings.n_rs_seq == 60
    assert lines_of(done.json)["drafter cache"] == probe(drafter, [settings])[0].kv_bytes
    with load(folder / "target.gguf", drafter, FIXED, plan=read_plan(file)) as engine:
        assert list(ChatSession(engine).reply("the cat in the hat", max_tokens=6))
        assert engine.controller is not None
        backend = engine.controller.model.backend  # type: ignore[union-attr]
        assert backend.settings == settings
        assert curves.measure(backend, curves.DRAFT_WIDTHS, repeats=1, budget_s=0.1).widths  # 64 tokens and back


# ---- what fits, and how much is needed -------------------------------------------------------------------------------


def test_the_least_that_is_needed_is_one_number_for_every_device(run: Run) -> None:
    model = ("plan", "qwen2.5-coder-1.5b-instruct:Q4_K_M", "--json")
    places = (("--mem", "3GB"), ("--mem", "16GiB"), ("--device", "iphone-12"), ("--budget", "1.3GB"))
    needed = {run(*model, *place).json["needed_bytes"] for place in places}
    assert len(needed) == 1
    least = needed.pop()
    assert run(*model, "--budget", str(least)).code == 0
    short = run(*model, "--budget", str(least - 1))
    assert (short.code, short.json["needed_bytes"]) == (3, least)
    assert re.search(r"needs at least \d", run("plan", "qwen2.5-coder-1.5b-instruct", "--mem", "8GB").out)


def test_what_fits_leaves_the_error_of_predictions(run: Run, folder: Path) -> None:
    from edgellm.memory.plan import ERROR_SHARE

    plan = run("plan", folder / "target.gguf", "--budget", "1GiB", "--json").json
    assert plan["margin_bytes"] == pytest.approx(plan["process_bytes"] * ERROR_SHARE, abs=1)
    assert plan["required_bytes"] == plan["process_bytes"] + plan["margin_bytes"]
    assert plan["headroom_bytes"] == 2**30 - plan["required_bytes"]


def test_copying_alone_promises_no_speed(run: Run) -> None:
    speed = run("plan", "qwen3-4b", "--draft", "none", "--mem", "16GB", "--json").json["tokens_per_s"]
    assert speed["value"] == speed["plain"]


def test_answers_are_in_the_units_that_were_asked_in(run: Run) -> None:
    for size, unit, other in (("6GB", "GB", "iB"), ("6GiB", "GiB", "GB")):
        for words in (("qwen3-1.7b", "--explain"), ()):
            out = run("plan", *words, "--mem", size).out
            assert re.search(rf"\d {unit}\b", out)
            assert not re.search(rf"\d [kKMG]?{other}\b(?!/s)", out)
    phone = run("plan", "qwen3-1.7b", "--device", "android-6gb").out
    assert "of 6.00 GB" in phone
    assert "iB" not in phone


def test_a_size_without_a_unit_is_asked_about(run: Run) -> None:
    for option in ("--mem", "--budget"):
        done = run("plan", "qwen3-1.7b", option, "6")
        assert (done.code, done.out) == (2, "")
        assert "did you mean 6GB?" in done.err
    assert "did you mean" not in run("plan", "--mem", "0GB").err
    assert "more than any memory" in run("plan", "--mem", "9" * 400).err


@pytest.mark.parametrize("name", ["pixel", "galaxy-s24", "Pixel 8", "samsung"])
def test_a_phone_by_its_brand_is_offered_those_that_are_known(name: str, run: Run) -> None:
    done = run("plan", "--device", name)
    assert done.code == 2
    assert "android-6gb" in done.err


def test_half_a_device_is_a_programs_as_the_table_of_phones_has_it() -> None:
    from edgellm.memory.device import known_devices, sized_device

    androids = [device for device in known_devices() if device.name.startswith("android")]
    assert {device.total_bytes for device in androids} == {4 * 10**9, 6 * 10**9, 8 * 10**9, 12 * 10**9}
    assert all(sized_device(device.total_bytes).usable_bytes == device.usable_bytes for device in androids)
    for phone in (device for device in known_devices() if device.kind == "phone"):
        assert sized_device(phone.total_bytes).usable_bytes <= max(
            other.usable_bytes for other in known_devices() if other.total_bytes == phone.total_bytes
        )


def test_a_context_beyond_training_is_remarked(run: Run, folder: Path) -> None:
    done = run("plan", "smollm2-135m-instruct", "--ctx", "16384", "--mem", "8GB", "--json")
    assert any("trained for 8,192 tokens" in remark for remark in done.json["remarks"])
    assert run("plan", "smollm2-135m-instruct", "--ctx", "8192", "--mem", "8GB", "--json").json["remarks"] == []


def test_no_name_is_broken_where_a_terminal_is_narrow(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.export.obtain.catalogue import load_catalogue

    for columns in ("80", "50"):
        monkeypatch.setenv("COLUMNS", columns)
        text = run("plan", "--mem", "64GB").out + run("plan", "--matrix", "all").out
        for entry in load_catalogue():
            if entry.role == "target" and entry.facts and entry.name != "llama-3.1-70b-instruct":
                assert f"{entry.name}:{entry.files[0].quant}" in text
        assert "rtx-4060-laptop-8gb" in text


# ---- saved, and run --------------------------------------------------------------------------------------------------


def test_a_plan_of_a_file_finds_it_from_elsewhere(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    file = tmp_path / "plan.json"
    done = run("plan", "./target.gguf", "--draft", "llama.gguf", "--ctx", "512", "--save", file)
    assert done.code == 0, done.err
    monkeypatch.chdir(tmp_path)
    found = models_of(read_plan(file), None, None)
    assert found == (str(folder / "target.gguf"), str(folder / "llama.gguf"))


def test_a_quantisation_that_nobody_offers_is_planned_with_the_way_to_get_it(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = run("plan", "llama-3.2-3b-instruct", "--budget", "2.2GB", "--save", file)
    assert done.code == 0, done.err
    quantisation = json.loads(file.read_text())["quantisation"]
    assert quantisation != "Q4_K_M"
    line = f"`edgellm export llama-3.2-3b-instruct --quant {quantisation}`"
    assert line in done.out
    for _ in range(2):
        chat = run("chat", "--plan", file, "-p", "x")
        assert (chat.code, chat.out) == (1, "")
        assert line in chat.err
    pair = run("plan", "vicuna-7b", "--draft", "llama-68m", "--budget", "16GB")
    assert "`edgellm export llama-68m --quant Q4_K_M`" in pair.out


def test_a_split_model_is_refused_as_a_whole_where_it_does_not_fit(run: Run, tmp_path: Path) -> None:
    tensors = llama_tensors(24, n_embd=1024, n_ff=4096)
    sizes = {"block_count": 24, "embedding_length": 1024, "feed_forward_length": 4096, "split.count": 2}
    for number, part in ((1, tensors[:9]), (2, tensors[9:])):
        entries = {**(LLAMA | sizes if number == 1 else {"split.count": 2}), "split.no": number - 1}
        write_raw(tmp_path / f"m-0000{number}-of-00002.gguf", entries, part)
    first = tmp_path / "m-00001-of-00002.gguf"
    assert run("plan", first, "--draft", "none", "--budget", "400MiB").code == 3
    chat = run("chat", first, "--draft", "none", "--budget", "400MiB", "-p", "x")
    assert (chat.code, "more than" in chat.err) == (3, True)


def test_save_writes_regular_files_alone(run: Run, folder: Path, tmp_path: Path) -> None:
    plan = ("plan", folder / "target.gguf", "--draft", "none", "--ctx", "512", "--save")
    real, link, pipe = tmp_path / "real.json", tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to("real.json")
    assert run(*plan, link).code == 0
    assert link.is_symlink()
    assert json.loads(real.read_text())["n_ctx"] == 512
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null"), tmp_path):
        before = path.stat().st_mode
        refused = run(*plan, path)
        assert (refused.code, refused.out) == (2, "")
        assert stat.S_IFMT(path.stat().st_mode) == stat.S_IFMT(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "pipe", "real.json"]
    assert run(*plan, "-").json["n_ctx"] == 512
    assert run("plan", "--save", real).code == 2
    assert run("plan", "--mem", "6GB", "--save", "-").code == 2


@pytest.mark.parametrize(
    "change",
    [
        {"n_ctx": 0}, {"n_ctx": 10**9}, {"n_ubatch": 0}, {"n_threads": 0}, {"n_threads": 10**9}, {"n_outputs": 0},
        {"n_draft": 40}, {"n_outputs": 400}, {"copy": "yes"}, {"drafter": "x"}, {"lines": [{}]}, {"steps": 7},
        {"tokens_per_s": {"value": float("nan"), "kind": "measured", "plain": 1}}, {"target": None}, {"lost": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_with_impossible_numbers_is_one_sentence(
    change: dict[str, Any], run: Run, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    assert run("plan", folder / "target.gguf", "--draft", "none", "--ctx", "512", "--save", file).code == 0
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    done = run("chat", "--plan", file, "-p", "x")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "the plan is damaged" in done.err


# ---- memory against context ------------------------------------------------------------------------------------------


def test_memory_against_context_is_drawn_with_the_devices_edge(run: Run) -> None:
    done = run("plan", "llama-3.2-3b-instruct", "--matrix", "--mem", "6GB")
    assert done.code == 0, done.err
    for word in ("2,048", "32,768", "f16", "q8_0", "q4_0", "alone", "with llama-3.2-1b-instruct", "edge: 3.00 GB", "╌"):
        assert word in done.out
    assert run("plan", "--matrix", "llama-3.2-3b-instruct", "--mem", "6GB").out == done.out
    assert run("plan", "--matrix").code == 2


def test_each_cell_is_what_a_plan_of_it_takes(run: Run) -> None:
    told = run("plan", "qwen3-4b", "--matrix", "--mem", "6GB", "--json").json
    cells = told["cells"]
    assert len(cells) == 2 * 3 * 5
    for cell in cells[:: len(cells) // 5]:
        words = ("--ctx", str(cell["n_ctx"]), "--kv", cell["kv"], "--draft", cell["drafter"] or "none")
        plan = run("plan", "qwen3-4b", *words, "--budget", "64GB", "--json").json
        assert plan["required_bytes"] == cell["n_bytes"]
        assert cell["fits"] == (cell["n_bytes"] <= told["device"]["usable_bytes"])


@pytest.mark.parametrize(("suffix", "beginning"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".csv", b"model,")])
def test_memory_against_context_is_written(suffix: str, beginning: bytes, run: Run, tmp_path: Path) -> None:
    file = tmp_path / f"x{suffix}"
    done = run("plan", "qwen3-4b", "--matrix", "--mem", "6GB", "-o", file)
    if done.code:
        assert "edgellm[plots]" in done.err
    else:
        assert file.read_bytes().startswith(beginning)
