"""`edgellm plan` and `edgellm devices`, as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from loopback_hub import LoopbackHub
from tiny_gguf import ARCHITECTURES, write_tiny

HEAVY = ("llama_cpp", "onnxruntime", "torch", "transformers", "numpy", "matplotlib", "edgellm.runtime")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "model.gguf", "qwen2", n_embd=128, n_layers=4)


def edgellm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgellm.cli", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_a_plan_that_fits_is_printed_with_exit_0(model: Path) -> None:
    done = edgellm("plan", model, "--draft", "none", "--budget", "1GiB")
    assert done.returncode == 0, done.stderr
    assert "target cache" in done.stdout
    assert "fits" in done.stdout


def test_the_json_holds_what_is_promised(model: Path) -> None:
    done = edgellm("plan", model, "--draft", "none", "--budget", "1GiB", "--ctx", "2048", "--json")
    data = json.loads(done.stdout)
    promised = {
        "fits", "limit_bytes", "total_bytes", "headroom_bytes", "lines", "n_ctx", "n_draft", "kv", "n_ubatch",
        "tokens_per_s", "steps",
    }  # fmt: skip
    assert promised <= data.keys()
    assert data["fits"] is True
    assert data["n_ctx"] == 2048
    assert data["total_bytes"] == sum(line["n_bytes"] for line in data["lines"])
    assert data["headroom_bytes"] == 2**30 - data["total_bytes"]
    assert data["tokens_per_s"]["kind"] == "estimated"


def test_what_a_drafter_learns_beside_a_chat_is_a_line_of_the_plan_or_a_sentence(tmp_path: Path) -> None:
    target, draft = write_tiny(tmp_path / "target.gguf", n_layers=8), write_tiny(tmp_path / "drafter.gguf", n_layers=1)
    pair = ("plan", target, "--draft", draft, "--json", "--budget")
    without, with_it = (json.loads(edgellm(*pair, "1GiB", *more).stdout) for more in ((), ("--adapt", "idle")))
    (line,) = [line for line in with_it["lines"] if line["name"] == "drafter training"]
    assert with_it["total_bytes"] == without["total_bytes"] + line["n_bytes"]
    assert with_it["fits"] is True
    assert not with_it["lost"]
    tight = f"{(without['total_bytes'] + line['n_bytes'] // 2) // 2**20}MiB"
    short = edgellm(*pair, tight, "--adapt", "battery")
    assert short.returncode == 0  # the pair itself fits
    (sentence,) = json.loads(short.stdout)["lost"]
    assert sentence.startswith("drafter does not learn beside a chat: training takes ")
    assert edgellm("plan", target, "--adapt", "always").returncode == 2


def test_what_is_kept_of_conversations_is_said(model: Path, tmp_path: Path) -> None:
    def remarks(path: Path, *options: str) -> str:
        return " ".join(json.loads(edgellm("plan", path, "--json", *options).stdout)["remarks"])

    assert "no more memory" in remarks(model, "--parallel", "4")
    assert "beginnings" not in remarks(model, "--parallel", "4")
    assert "2.00 GiB at most" in remarks(model, "--prefix-cache", "2GiB")
    slides = write_tiny(tmp_path / "slides.gguf", "gemma3", n_layers=6)
    assert "window" in remarks(slides, "--parallel", "4", "--prefix-cache", "2GiB")
    assert "no more memory" not in remarks(slides, "--parallel", "4")
    assert edgellm("plan", model, "--prefix-cache", "much").returncode == 2


def test_what_does_not_fit_exits_3_and_names_what_would(model: Path) -> None:
    done = edgellm("plan", model, "--draft", "none", "--budget", "68MiB", "--ctx", "32768")
    assert done.returncode == 3
    assert "would fit" in done.stderr
    assert "--ctx" in done.stderr
    hopeless = edgellm("plan", model, "--draft", "none", "--budget", "1MiB", "--json")
    assert hopeless.returncode == 3
    assert json.loads(hopeless.stdout)["nearest"] is None


@pytest.mark.parametrize(
    "arguments",
    [("--mem", "6 apples"), ("--device", "toaster"), ("--mem", "6GB", "--budget", "1GB"), ("--kv", "f64")],
)
def test_wrong_usage_exits_2(model: Path, arguments: tuple[str, ...]) -> None:
    assert edgellm("plan", model, *arguments).returncode == 2


def test_a_saved_plan_reads_back(model: Path, tmp_path: Path) -> None:
    from edgellm.memory.stored import plan_from_json

    file = tmp_path / "plan.json"
    done = edgellm("plan", model, "--draft", model, "--budget", "1GiB", "--save", file)
    assert done.returncode == 0, done.stderr
    assert plan_from_json(json.loads(file.read_text())).fits
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("arguments", [["--json"], ["--matrix", "--json"], ["--mem", "6GB", "--json"]], ids=str)
def test_planning_imports_no_inference_library(arguments: list[str], model: Path) -> None:
    reference = [] if "--mem" in arguments else [str(model), "--draft", "none"]
    code = (
        "import sys\n"
        f"sys.argv = {['edgellm', 'plan', *reference, *arguments]!r}\n"
        "from edgellm.cli.main import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("extra", ["on", "off"])
def test_the_engine_s_own_layouts_are_planned_only_where_they_work(
    extra: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_KERNELS", "off")
    monkeypatch.setenv("EDGELLM_EXTRA_BUFFERS", extra)
    assert json.loads(edgellm("plan", model, "--draft", "none", "--json").stdout)["repack"] is (extra == "on")
    assert json.loads(edgellm("plan", model, "--mem", "4GB", "--load", "copied", "--json").stdout)["repack"] is True


def test_llama_cpp_itself_can_be_asked(model: Path) -> None:
    asked = json.loads(edgellm("plan", model, "--draft", "none", "--budget", "1GiB", "--probe", "--json").stdout)
    reckoned = json.loads(edgellm("plan", model, "--draft", "none", "--budget", "1GiB", "--json").stdout)
    assert (asked["exact"], reckoned["exact"]) == (True, False)
    assert asked["total_bytes"] == pytest.approx(reckoned["total_bytes"], rel=0.01)


def test_of_a_cache_that_is_not_known_llama_cpp_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XVERSE has Llama's tensors; llama.cpp knows it and the planner's list does not."""
    monkeypatch.setitem(ARCHITECTURES, "xverse", ARCHITECTURES["llama"])
    other = write_tiny(tmp_path / "other.gguf", "xverse", n_embd=128, tied=False)
    asked = edgellm("plan", other, "--draft", "none", "--budget", "1GiB", "--json")
    assert asked.returncode == 0, asked.stderr
    assert "xverse is not known here, so llama.cpp is asked" in asked.stderr
    lines = {line["name"]: line["n_bytes"] for line in json.loads(asked.stdout)["lines"]}
    assert lines["target cache"] == 4 * 4096 * 2 * 64 * 2


def test_a_model_of_the_catalogue_needs_no_download() -> None:
    done = edgellm("plan", "llama-3.1-8b-instruct", "--mem", "16GiB", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lines"][0]["n_bytes"] > 4 * 10**9


def test_a_model_on_the_hub_is_planned_from_the_beginning_of_its_file(hub: LoopbackHub, model: Path) -> None:
    """The file is cut behind its header, and its size is told as that of the whole."""
    hub.add_repo("me/tiny-GGUF", {"tiny-F32.gguf": model.read_bytes() + bytes(8 * 2**20)})
    remote = edgellm("plan", "me/tiny-GGUF", "--draft", "none", "--budget", "1GiB", "--json")
    assert remote.returncode == 0, remote.stderr
    local = edgellm("plan", model, "--draft", "none", "--budget", "1GiB", "--json")
    assert json.loads(remote.stdout)["lines"] == json.loads(local.stdout)["lines"]
    fetched = [request for request in hub.requests if request.method == "GET" and "resolve" in request.path]
    assert [request.range for request in fetched] == [f"bytes=0-{2**20 - 1}"]


def test_a_checkpoint_on_the_hub_is_planned_from_its_config(hub: LoopbackHub) -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 256,
        "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 4096,
    }  # fmt: skip
    hub.add_repo("me/checkpoint", {"config.json": json.dumps(config).encode(), "model.safetensors": b""})
    done = edgellm("plan", "me/checkpoint:Q8_0", "--draft", "none", "--budget", "1GiB", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["quantisation"] == "Q8_0"
    damaged = hub.add_repo("me/damaged-GGUF", {"x-Q8_0.gguf": b"GGUF" + bytes(range(256)) * 64})
    assert damaged.files
    refused = edgellm("plan", "me/damaged-GGUF", "--draft", "none")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error:")
    assert len(refused.stderr.splitlines()) == 1


def test_a_plan_that_was_run_here_tells_what_it_took(model: Path, tmp_path: Path) -> None:
    asked = ("plan", model, "--draft", "none", "--budget", "1GiB", "--ctx", "512", "--json")
    assert json.loads(edgellm(*asked).stdout)["measured"] is None
    done = edgellm(*asked, "--calibrate")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["measured"]
    assert measured["predicted_bytes"] == json.loads(done.stdout)["process_bytes"]
    assert measured["peak_bytes"] > 2**20
    later = json.loads(edgellm(*asked).stdout)
    assert later["measured"] == measured
    assert later["tokens_per_s"] == {
        "value": measured["tokens_per_s"], "kind": "measured", "plain": measured["plain_tokens_per_s"],
    }  # fmt: skip
    (Path(os.environ["EDGELLM_HOME"]) / "calibration.json").write_text("{damaged")
    assert json.loads(edgellm(*asked).stdout)["tokens_per_s"]["kind"] == "estimated"
    assert edgellm("plan", model, "--mem", "4GB", "--calibrate").returncode == 2


def test_a_saved_plan_is_run_and_a_smaller_machine_refuses_it(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    saved = edgellm("plan", model, "--draft", "none", "--budget", "1GiB", "--ctx", "512", "--save", file)
    assert saved.returncode == 0, saved.stderr
    chat = ("chat", model, "--draft", "none", "--plan", file, "-p", "the hat", "-n", "4", "--json")
    done = edgellm(*chat)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stats"]["n_new"] == 4
    needed = json.loads(file.read_text())["process_bytes"]
    refused = edgellm(*chat, "--budget", str(needed * 85 // 100))
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "plan again" in refused.stderr
    assert edgellm(*chat, "--ctx", "4096").returncode == 2
    file.write_text(file.read_text()[:-20])
    damaged = edgellm(*chat)
    assert (damaged.returncode, len(damaged.stderr.splitlines())) == (1, 1)


def test_a_conversation_that_shifts_says_what_it_forgot(model: Path) -> None:
    assert edgellm("chat", model, "--on-full", "never", "-p", "x").returncode == 2
    done = edgellm("chat", model, "--draft", "none", "--ctx", "256", "--on-full", "shift", "-p", "the hat", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_forgotten"] == 0


def test_an_unknown_repository_is_answered_with_what_is_missing() -> None:
    done = edgellm("plan", "nobody/no-such-model", "--mem", "16GiB")
    assert done.returncode == 1
    assert "edgellm pull" in done.stderr


def test_without_a_model_the_best_pairs_are_listed() -> None:
    done = edgellm("plan", "--device", "raspberry-pi-5-8gb", "--json")
    largest = json.loads(done.stdout)
    pairs = [largest, *largest["others"]]
    assert len(pairs) > 5
    assert all(pair["fits"] for pair in pairs)
    sizes = [pair["lines"][0]["n_bytes"] for pair in pairs]
    assert sizes == sorted(sizes, reverse=True)
    nothing = edgellm("plan", "--budget", "10MiB", "--json")
    assert (nothing.returncode, json.loads(nothing.stdout)["fits"]) == (3, False)


def test_the_json_has_one_shape_with_and_without_a_model(model: Path) -> None:
    shapes = [
        {key: type(value) for key, value in json.loads(edgellm(*words, "--json").stdout).items() if value is not None}
        for words in (("plan", "--mem", "8GB"), ("plan", model, "--mem", "8GB"))
    ]
    common = shapes[0].keys() & shapes[1].keys()
    assert {"fits", "lines", "lost", "changes", "needed_bytes", "device", "others", "remarks"} <= common
    assert all(shapes[0][key] is shapes[1][key] for key in common)
    assert [*shapes[0]][:2] == [*shapes[1]][:2] == ["lost", "changes"]  # what matters most is said first


def test_the_matrix_is_a_table_csv_and_json(tmp_path: Path) -> None:
    places = "raspberry-pi-5-4gb,laptop-16gb"
    file = tmp_path / "matrix.csv"
    assert edgellm("plan", "qwen3-4b,llama-3.1-8b-instruct", "--matrix", places, "-o", file).returncode == 0
    rows = list(csv.DictReader(file.open()))
    cells = json.loads(edgellm("plan", "qwen3-4b,llama-3.1-8b-instruct", "--matrix", places, "--json").stdout)
    assert len(rows) == len(cells) == 4
    assert [row["fits"] for row in rows] == [str(cell["fits"]) for cell in cells]
    assert "qwen3-4b" in edgellm("plan", "qwen3-4b", "--matrix", places).stdout
    assert edgellm("plan", "qwen3-4b", "--matrix", places, "-o", tmp_path / "x.pdf").returncode == 2


def test_a_picture_is_drawn_or_its_remedy_is_said(tmp_path: Path) -> None:
    file = tmp_path / "matrix.png"
    done = edgellm("plan", "qwen3-4b", "--matrix", "laptop-8gb", "-o", file)
    if done.returncode:
        assert "edgellm[plots]" in done.stderr
        assert not file.exists()
    else:
        assert file.read_bytes().startswith(b"\x89PNG")


def test_devices_begin_with_this_machine() -> None:
    listed = json.loads(edgellm("devices", "--json").stdout)
    assert listed[0]["kind"] == "machine"
    assert {"name", "total_bytes", "usable_bytes", "bandwidth_bytes_s", "source"} <= listed[1].keys()
    assert "raspberry-pi" in edgellm("devices").stdout


def test_what_the_engine_ends_itself_over_is_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of another width in sliding layers: the engine aborts on a Gemma 3 that says so."""
    write = gguf.GGUFWriter.write_header_to_file

    def with_narrow_heads(self: gguf.GGUFWriter) -> None:
        self.add_uint32("gemma3.attention.key_length_swa", 16)
        self.add_uint32("gemma3.attention.value_length_swa", 16)
        write(self)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_narrow_heads)
    path = write_tiny(tmp_path / "narrow.gguf", "gemma3")
    done = edgellm("plan", path, "--draft", "none")
    assert done.returncode == 1
    assert "llama.cpp cannot size narrow.gguf" in done.stderr
    assert "Traceback" not in done.stderr
