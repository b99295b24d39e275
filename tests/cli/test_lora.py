"""`--lora FILE[:SCALE]` in chat, bench and plan, and what `show` and `check` say of an adapter."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loras import gguf_adapter
from tiny_gguf import write_tiny

from edgellm.app.adapters import loras
from edgellm.cli.main import main
from edgellm.memory.adapter import AdapterError
from edgellm.memory.gguf import read_header

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_embd=128, n_ff=256, tied=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("chat", ...)`: (exit code, stdout, stderr)."""
    monkeypatch.setenv("EDGELLM_THREADS", "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgellm", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return int(code or 0), captured.out, captured.err

    return call


def test_a_scale_is_a_number_behind_the_last_colon_and_any_other_colon_is_the_paths(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, colon = gguf_adapter(tmp_path / "a.gguf", tiny), gguf_adapter(tmp_path / "b:2", tiny)
    monkeypatch.chdir(tmp_path)
    told = [
        (str(plain), plain, 1),
        (f"{plain}:0.5", plain, 0.5),
        (f"{plain}:-2", plain, -2),
        (f"{plain}:1e-1", plain, 0.1),
    ]
    told += [(str(colon), colon, 1), (f"{colon}:3", colon, 3), ("a.gguf:2", Path("a.gguf"), 2)]
    for text, path, scale in told:
        (found,) = loras([text])
        assert (found.path, found.scale) == (path, scale)
    for text, sentence in (
        (f"{plain}:x", "there is no adapter"),
        ("C:\\a.gguf", "no adapter C:"),
        (f"{plain}:nan", "nan is none"),
    ):
        with pytest.raises(AdapterError, match=sentence):
            loras([text])


def test_an_exports_folder_stands_for_the_one_adapter_in_it(tiny: Path, tmp_path: Path) -> None:
    path = gguf_adapter(tmp_path / "x-lora-F16.gguf", tiny)
    assert [lora.path for lora in loras([str(tmp_path)])] == [path]
    gguf_adapter(tmp_path / "x-lora-F32.gguf", tiny)
    with pytest.raises(AdapterError, match="holds several adapters"):
        loras([str(tmp_path)])
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="as PEFT has it: `edgellm export"):
        loras([str(tmp_path)])


def test_chat_applies_what_is_typed_or_what_the_environment_says_and_names_it(
    tiny: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (gguf_adapter(tmp_path / f"{name}.gguf", tiny, seed=seed) for seed, name in enumerate(("one", "two")))
    ask = ("chat", tiny, "-d", "none", "--ctx", 256, "-p", "hat", "-n", 12, "--json")
    plain, applied = (json.loads(run(*ask, *more)[1]) for more in ((), ("--lora", f"{one}:2", "--lora", two)))
    assert plain["loras"] == []
    assert applied["loras"] == [{"path": str(one), "scale": 2.0}, {"path": str(two), "scale": 1.0}]
    assert plain["text"] != applied["text"]
    monkeypatch.setenv("EDGELLM_LORA", f'"{one}:2" "{two}"')
    told = json.loads(run(*ask)[1])
    assert (told["text"], told["loras"]) == (applied["text"], applied["loras"])
    assert json.loads(run(*ask, "--lora", f"{one}:0")[1])["text"] == plain["text"]


def test_bench_measures_the_adapted_target_and_names_the_adapters(tiny: Path, tmp_path: Path, run: Run) -> None:
    lora = gguf_adapter(tmp_path / "one.gguf", tiny)
    code, text, _ = run(
        "bench", tiny, "-d", "copy", "--lora", lora, "--limit", 1, "--max-tokens", 8, "--ctx", 512, "--json"
    )
    report = json.loads(text)
    assert code == 0
    assert report["configs"][0]["loras"] == [{"path": str(lora), "scale": 1.0}]
    assert report["prompts"][-1]["identical"]


def test_a_plan_has_a_line_for_adapters_and_chat_runs_them_from_it(tiny: Path, tmp_path: Path, run: Run) -> None:
    lora, saved = gguf_adapter(tmp_path / "one.gguf", tiny, rank=32), tmp_path / "plan.json"
    ask = ("plan", tiny, "-d", "none", "--ctx", 256, "--budget", "1GB")
    without, with_it = (json.loads(run(*ask, *more, "--json")[1]) for more in ((), ("--lora", f"{lora}:0.5")))
    lines = {line["name"]: line["n_bytes"] for line in with_it["lines"]}
    assert lines["adapters"] == read_header(lora).tensor_bytes
    assert with_it["process_bytes"] > without["process_bytes"] + lines["adapters"]
    assert with_it["loras"] == [f"{lora}:0.5"]
    assert run(*ask, "--lora", f"{lora}:0.5", "--save", saved)[0] == 0
    told = json.loads(run("chat", "--plan", saved, "-p", "hat", "-n", 4, "--json")[1])
    assert told["loras"] == [{"path": str(lora), "scale": 0.5}]
    assert "adapters" in run(*ask, "--lora", lora)[1]


def test_files_in_each_others_places_are_told_in_one_sentence(tiny: Path, tmp_path: Path, run: Run) -> None:
    lora = gguf_adapter(tmp_path / "one.gguf", tiny)
    other = write_tiny(tmp_path / "other.gguf", "qwen2")
    is_adapter = f"{lora} is an adapter and no model: give it with --lora beside its base model"
    for arguments, sentence in (
        (("chat", lora, "-p", "x"), is_adapter),
        (("bench", lora), is_adapter),
        (("plan", lora), is_adapter),
        (("check", tiny, lora), is_adapter),
        (("chat", tiny, "-d", lora, "-p", "x"), is_adapter),
        (("export", lora, "-o", tmp_path / "out"), is_adapter),
        (("chat", tiny, "-d", "none", "--lora", tiny, "-p", "x"), f"{tiny} is a model and no adapter"),
        (("plan", tiny, "--lora", tiny), f"{tiny} is a model and no adapter"),
        (("chat", other, "-d", "none", "--lora", lora, "-p", "x"), f"{lora} is for llama and other.gguf is qwen2"),
        (("plan", other, "--lora", lora), f"{lora} is for llama and other.gguf is qwen2"),
        (("chat", tiny, "--lora", "nowhere.gguf", "-p", "x"), "there is no adapter nowhere.gguf"),
    ):
        code, text, talk = run(*arguments)
        assert (code, text) == (1, ""), arguments
        assert sentence in " ".join(talk.split()), arguments


def test_show_says_what_an_adapter_is(tiny: Path, tmp_path: Path, run: Run) -> None:
    lora = gguf_adapter(tmp_path / "one.gguf", tiny, rank=3)
    code, text, _ = run("show", lora)
    assert code == 0
    assert "LoRA of rank 3 for 28 matrices, used with --lora beside its base model" in text
