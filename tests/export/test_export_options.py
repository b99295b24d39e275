"""Every option of `edgellm export` in each of its ways: it has an effect, or it is refused in one sentence."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgellm.app.export_options import EVERYWHERE, RULES, BadOption, ExportRequest, Way, settled, way_of
from edgellm.cli.export import export
from edgellm.cli.main import app

# Ways in which an option has an effect: to GGUF, to ONNX, of an adapter, merged; small letters where it is repeated.
EFFECTS = {
    "draft": "G O M g m",
    "quant": "G O A M",
    "draft-quant": "G O M",
    "adapter": "G O M g m",
    "mem": "G M",
    "ctx": "G M",
    "trim-vocab": "G M",
    "trim-corpus": "G M g m",
    "trim-input": "G M",
    "drop-layers": "G M",
    "draft-head": "G M",
    "imatrix": "G M g m",
    "converter": "G M g m",
    "base": "A M a m",
    "merge": "M m",
    "exporter": "O",
    "exporter-python": "G O M g m",
    "locked": "G A M g a m",
    "verify": "G O A M",
    "revision": "G O A M",
}
# What an option wants beside it.
WITH = {
    "draft-quant": ["draft"], "adapter": ["draft"], "ctx": ["mem"], "trim-vocab": ["draft"],
    "trim-corpus": ["draft", "trim-vocab"],
    "trim-input": ["draft", "trim-vocab"], "drop-layers": ["draft"], "draft-head": ["draft"],
}  # fmt: skip
FLAGS = {"trim-input", "merge", "locked", "verify"}
VALUES: dict[str, object] = {
    "adapter": Path("corpus.txt"),
    "draft": "nobody/draft", "quant": "Q8_0", "draft-quant": "Q8_0", "mem": "2GB", "ctx": 4096, "trim-vocab": 0.5,
    "trim-corpus": Path("corpus.txt"), "drop-layers": "1", "draft-head": "Q4_0", "imatrix": Path("corpus.txt"),
    "converter": "own", "base": "nobody/base", "exporter": "optimum", "exporter-python": Path("corpus.txt"),
    "revision": "main",
}  # fmt: skip
WAYS: dict[str, tuple[Way, list[str]]] = {
    "G": ("gguf", []), "O": ("onnx", ["--format", "onnx"]), "A": ("adapter", ["--base", "nobody/base"]),
    "M": ("merge", ["--merge"]), "g": ("gguf", ["--locked"]), "a": ("adapter", ["--base", "nobody/base", "--locked"]),
    "m": ("merge", ["--merge", "--locked"]),
}  # fmt: skip
IDLE = [(option, way) for option, ways in EFFECTS.items() for way in WAYS if way not in ways.split()]
# These choose the way themselves.
IDLE = [(option, way) for option, way in IDLE if (option, way) not in {("base", "G"), ("base", "g"), ("merge", "G")}]
IDLE = [(option, way) for option, way in IDLE if option != "merge" or way == "O"]


def words(option: str) -> list[str]:
    return [f"--{option}"] if option in FLAGS else [f"--{option}", str(VALUES[option])]


def said(output: str) -> str:
    """What stands in the box."""
    return " ".join(output.replace("│", " ").split())


def field(option: str) -> str:
    return option.replace("-", "_")


def asked(option: str, way: str) -> tuple[ExportRequest, set[str]]:
    """A request in a way that asks for an option, and what that wants beside it."""
    names = {option, *WITH.get(option, ())} if way.isupper() else {option}
    given = {field(name): name in FLAGS or VALUES[name] for name in names}
    ways = {
        "format": "onnx" if way == "O" else "gguf",
        "base": "nobody/base" if way in "aA" else given.get("base"),
        "merge": way in "mM" or "merge" in names,
        "locked": way.islower() or "locked" in names,
    }
    return ExportRequest("nobody/model", **{**given, **ways}), set(given)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def nothing_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    Path("corpus.txt").write_text("text", encoding="utf-8")


@pytest.mark.parametrize(("option", "way"), IDLE)
def test_an_option_without_effect_is_told_before_anything_else(option: str, way: str) -> None:
    beside = [word for name in WITH.get(option, ()) for word in words(name)] if way == "G" else []
    done = CliRunner().invoke(app, ["export", "nobody/model", *WAYS[way][1], *beside, *words(option)])
    assert done.exit_code == 2, (done.output, done.exception)
    assert f"--{option}" in said(done.output)


@pytest.mark.parametrize(("option", "way"), [(option, way) for option, ways in EFFECTS.items() for way in ways.split()])
def test_an_option_with_an_effect_is_kept(option: str, way: str) -> None:
    request, typed = asked(option, way)
    kept = settled(request, WAYS[way][0], typed)
    assert way_of(request) == WAYS[way][0]
    assert getattr(kept, field(option)) == getattr(request, field(option))


@pytest.mark.parametrize("option", WITH)
def test_an_option_wants_the_one_that_it_is_of(option: str) -> None:
    done = CliRunner().invoke(app, ["export", "nobody/model", *words(option)])
    assert done.exit_code == 2
    assert f"--{option} has no effect without --{WITH[option][-1]}" in said(done.output)


@pytest.mark.parametrize(("option", "way"), IDLE)
def test_what_is_set_for_all_exports_is_no_wish_for_this_one(option: str, way: str) -> None:
    request, _ = asked(option, way)
    kept = settled(request, WAYS[way][0], typed=())
    assert getattr(kept, field(option)) == getattr(ExportRequest("m"), field(option))


def test_what_is_typed_counts_before_what_is_set_for_all() -> None:
    request = ExportRequest("nobody/model", quant="Q8_0", mem="2GB")
    assert settled(request, "gguf", {"quant"}).mem is None
    assert settled(request, "gguf", {"mem"}).quant is None
    to_onnx = ExportRequest("nobody/model", format="onnx", quant="int8", locked=True)
    assert settled(to_onnx, "onnx", {"quant"}).quant == "int8"
    with pytest.raises(BadOption, match="--quant does not go with --mem"):
        settled(request, "gguf", {"quant", "mem"})


@pytest.mark.parametrize(
    ("model", "sentence"), [("folder", "folder lies on this disk"), ("user/repo:Q8_0", "names a GGUF file")]
)
def test_a_revision_is_of_a_repository(model: str, sentence: str) -> None:
    Path("folder").mkdir()
    Path("folder/config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BadOption, match=sentence):
        settled(ExportRequest(model, revision="main"), "gguf")


def test_a_drafter_cut_out_of_the_model_is_for_gguf() -> None:
    with pytest.raises(BadOption, match="--draft self goes with --format gguf"):
        settled(ExportRequest("nobody/model", format="onnx", draft="self"), "onnx")


def test_every_option_of_the_command_is_accounted_for() -> None:
    options = {name.strip("_") for name in inspect.signature(export).parameters} - {"context"}
    assert options == {*RULES, *(name.strip("_") for name in EVERYWHERE)}
    assert set(EFFECTS) == {name.replace("_", "-") for name in RULES}
    needs = [(name, rule.needs) for name, rule in RULES.items() if rule.needs]
    order = list(RULES)
    assert all(order.index(str(needed)) < order.index(name) for name, needed in needs)
