"""llama.cpp on an accelerator: what holds on the processor holds there, as far as the device's own sums allow.

`pytest -m vulkan` with an engine that was built for one (docs/gpu.md); GGML_VK_VISIBLE_DEVICES=0 has it take a software
device, which it never takes by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.memory.placement import Accelerator, UnknownAccelerator
from edgellm.memory.plan import DoesNotFit
from edgellm.memory.units import MIB
from edgellm.runtime import ChatSession, EngineOptions, comparison, load
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.backends.llama_process import accelerators
from edgellm.runtime.bringup import planning
from edgellm.runtime.bringup.agreement import try_widths
from edgellm.runtime.bringup.load import with_drafter
from edgellm.runtime.sampling import Sampling

pytestmark = pytest.mark.vulkan

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 256, 400)]
SIZES = {"n_embd": 128, "n_heads": 2, "n_kv_heads": 1, "n_ff": 256, "n_layers": 3, "weights": "Q8_0"}
QUESTIONS = ("Why is the sky blue?", "one two three one two three one two", "Name four birds, one a line.")
Open = Callable[..., LlamaBackend]


@pytest.fixture(scope="module")
def device() -> Accelerator:
    found = accelerators()
    if not found:
        pytest.skip(
            "this llama.cpp sees no accelerator: docs/gpu.md says how it is built for one, and "
            "GGML_VK_VISIBLE_DEVICES=0 has it take lavapipe"
        )
    return found[0]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("vulkan") / "target.gguf", "llama", **SIZES)


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Near enough to the target to be accepted at times: the same weights, a layer fewer."""
    return write_tiny(tmp_path_factory.mktemp("vulkan") / "drafter.gguf", "llama", **{**SIZES, "n_layers": 2})


@pytest.fixture
def opened(device: Accelerator) -> Iterator[Open]:
    held: list[LlamaBackend] = []

    def backend(path: Path, n_layers: int = 4, **options: object) -> LlamaBackend:
        placed = ((device.name, n_layers),) if n_layers else ()
        context = ContextSettings(**{"n_ctx": 512, "n_outputs": 5, "n_ubatch": 32, **options}, placed=placed)  # type: ignore[arg-type]
        held.append(LlamaBackend(LlamaModel(path, ModelOptions(placed=placed)), context))
        return held[-1]

    yield backend
    for item in held:
        item.close()
        item.model.close()


def on(device: Accelerator, draft: str = "cpu", **more: object) -> EngineOptions:
    fixed = {"n_ctx": 512, "n_draft": 4, "learn": "off", "main_device": device.name, "draft_device": draft}
    return EngineOptions(**(fixed | more))  # type: ignore[arg-type]


def read(backend: LlamaBackend, tokens: list[int], n_rows: int = 4) -> np.ndarray:  # type: ignore[type-arg]
    """Logits of the last tokens behind all others."""
    backend.truncate(0)
    backend.forward(tokens[:-n_rows], 0)
    return backend.forward(tokens[-n_rows:], n_rows).copy()


def test_a_model_lies_where_its_plan_places_it_and_answers(device: Accelerator, target: Path) -> None:
    with load(target, None, on(device)) as engine:
        assert engine.settings.target.placed == ((device.name, 4),)
        assert engine.plan is not None
        assert 0 < engine.plan.device_bytes(device.name) <= device.usable_bytes
        assert not engine.model.same_bits
        assert device.description in engine.model.placement_key
        assert engine.backend.tokens == []  # warmed up, and nothing of it left
        assert "".join(ChatSession(engine).reply(QUESTIONS[0], max_tokens=8))


@pytest.mark.parametrize("draft", ["cpu", "there"])
def test_drafted_text_is_the_plain_text_of_the_device_within_its_noise(
    draft: str, device: Accelerator, target: Path, drafter: Path
) -> None:
    options = on(device, device.name if draft == "there" else "cpu", fixed=True)
    prompts = [comparison.Prompt(str(i), "own", (text,)) for i, text in enumerate(QUESTIONS)]
    with load(target, drafter, options) as engine:
        assert engine.settings.drafter is not None
        assert bool(engine.settings.drafter.placed) == (draft == "there")
        plain = with_drafter(engine, None, copy=False, options=options)
        assert plain.controller is None
        report = comparison.run({comparison.PLAIN: plain, "drafted": engine}, prompts, max_tokens=24)
    drafted = report.summary("drafted")
    assert sum(drafted["drafted_by"].values()) > 0
    assert all(0 <= each.gap <= (report.noise or 0) for each in report.differences.values())


def test_a_single_token_that_is_run_as_two_has_the_bits_of_a_pass_of_two(device: Accelerator, target: Path) -> None:
    placed = ((device.name, 4),)
    settings = ContextSettings(n_ctx=512, n_outputs=5, n_ubatch=32, placed=placed)
    model = LlamaModel(target, ModelOptions(placed=placed))
    backend = LlamaBackend(model, settings, pad_single=True)
    assert try_widths(backend).n_exact >= 2
    backend.close()
    model.close()


def test_going_back_gives_the_bits_of_a_text_that_never_went_there(opened: Open, target: Path) -> None:
    backend, other = opened(target), opened(target)
    held = TOKENS[:40]
    for each in (backend, other):
        each.forward(held, 0)
    for n_kept in (1, 4, 2):  # of five drafted tokens, as a loop does
        backend.forward(TOKENS[200:205], 5)
        backend.truncate(len(held))
        kept = [each.forward(TOKENS[200 : 200 + n_kept], n_kept).copy() for each in (backend, other)]
        assert np.array_equal(*kept)
        held = [*held, *TOKENS[200 : 200 + n_kept]]
        assert backend.tokens == other.tokens == held
    assert np.array_equal(*(each.forward(TOKENS[300:303], 3).copy() for each in (backend, other)))


def test_the_device_computes_what_the_processor_does(opened: Open, target: Path) -> None:
    """Whole and in part; sums in another order are all that differs."""
    rows = [read(opened(target, n_layers), TOKENS[:48]) for n_layers in (0, 4, 2, 1)]
    assert all(np.corrcoef(other.ravel(), rows[0].ravel())[0, 1] > 0.999 for other in rows[1:])


def test_forgetting_the_oldest_turns_the_keys_as_on_the_processor(opened: Open, target: Path) -> None:
    rows = []
    for n_layers in (0, 4):
        backend = opened(target, n_layers)
        backend.forward(TOKENS[:64], 0)
        backend.forget_oldest(32)
        assert backend.tokens == TOKENS[32:64]
        rows.append(backend.forward(TOKENS[64:68], 4).copy())
    assert np.corrcoef(rows[1].ravel(), rows[0].ravel())[0, 1] > 0.999


def test_a_full_context_forgets_and_goes_on(device: Accelerator, target: Path, drafter: Path) -> None:
    with load(target, drafter, on(device, n_ctx=256)) as engine:
        session = ChatSession(engine, on_full="shift")
        for question in QUESTIONS * 2:
            assert "".join(session.reply(question, max_tokens=24))


def test_a_seed_draws_the_same_text_again(device: Accelerator, target: Path, drafter: Path) -> None:
    with load(target, drafter, on(device)) as engine:
        said = []
        for seed in (7, 7, 8):
            engine.backend.truncate(0)
            sampling = Sampling(temperature=1.0, seed=seed)
            said.append(engine.generate(QUESTIONS[0], max_tokens=16, sampling=sampling).finish().text)
        assert said[0] == said[1] != said[2]


def test_a_device_that_is_not_there_is_refused_with_those_that_are(device: Accelerator, target: Path) -> None:
    with pytest.raises(UnknownAccelerator, match=rf"'Vulkan9': there are cpu, {device.name}"):
        load(target, None, replace(on(device), main_device="Vulkan9"))


def test_too_many_layers_for_the_device_are_refused_and_fewer_are_found(
    device: Accelerator, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card says that it is nearly full."""
    whole, _ = planning.plan_here(target, None, on(device))
    assert whole is not None
    weights = sum(line.n_bytes for line in whole.lines if line.device == device.name and "weights" in line.name)
    for left, most in ((0, 0), (weights // 2, 3)):
        full = replace(device, free_bytes=max(128 * MIB, device.total_bytes // 20) + left)
        assert full.usable_bytes <= left
        monkeypatch.setattr(planning, "accelerators", lambda _workers, full=full: [full])
        with pytest.raises(DoesNotFit, match=rf"of {device.name}, which has .* choose fewer --gpu-layers"):
            planning.plan_here(target, None, on(device, n_gpu_layers=4))
        fewer, _ = planning.plan_here(target, None, on(device))
        assert fewer is not None
        assert sum(n for _, n in fewer.settings.target.placed) <= most


def edgellm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgellm.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_device_is_listed_with_its_kind_and_memory(device: Accelerator) -> None:
    rows = json.loads(edgellm("devices", "--here", "--json").stdout)
    (row,) = (each for each in rows if each["name"] == device.name)
    assert (row["kind"], row["unified"], row["total_bytes"]) == (device.kind, device.unified, device.total_bytes)
    assert device.name in edgellm("devices", "--here").stdout


def test_the_command_takes_a_device_and_a_number_of_layers(device: Accelerator, target: Path) -> None:
    asked = ("chat", target, "--offline", "-p", "Hello", "--max-tokens", "4", "--draft", "none")
    done = edgellm(*asked, "--main-device", device.name, "--gpu-layers", "2")
    assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr
    wrong = edgellm(*asked, "--main-device", "Vulkan9")
    assert wrong.returncode == 2
    assert "no device is called 'Vulkan9'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


LOSING = """
import os
import sys
from pathlib import Path
from edgellm.app.loading import prepare
from edgellm.runtime import ChatSession, EngineOptions
from edgellm.runtime.backends.base import LayersLost
options = EngineOptions(main_device=sys.argv[2], draft_device="cpu", learn="off", n_ctx=512)
pair = prepare(sys.argv[1], "none", options, offline=True)
session = ChatSession(pair.open())
"".join(session.reply("Hello", max_tokens=8))
Path(os.environ["EDGELLM_LOSE_IF"]).touch()
lost = ""
try:
    "".join(session.reply("Hello again", max_tokens=8))
except LayersLost as error:
    lost = str(error)
n_kept = len(session.messages)
session.engine.close()
session.engine = pair.reopen(processor=session.engine.model.has_failed)
"".join(session.reply("And again", max_tokens=8))
session.engine.close()
print(lost, "|", n_kept, "|", len(session.messages))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands before the loader, and loses the device or its memory (lost_device.c)."""
    library = tmp_path_factory.mktemp("shim") / "lost_device.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    command = [str(compiler), "-shared", "-fPIC", Path(__file__).with_name("lost_device.c"), "-o", library, "-ldl"]
    if compiler is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs a C compiler, and Vulkan's headers where it looks for them (libvulkan-dev)")
    return library


def test_a_device_that_is_lost_ends_the_answer_in_a_sentence_and_the_talk_goes_on_without_it(
    device: Accelerator, target: Path, shim: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"LD_PRELOAD": str(shim), "EDGELLM_LOSE_IF": str(tmp_path / "lost")}
    command = [sys.executable, "-c", LOSING, target, device.name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lost, *counts = done.stdout.strip().split(" | ")
    assert lost.startswith(f"{device.name} failed in the middle of a pass (")
    assert counts == ["2", "4"]  # the question that nobody answered is taken back


def test_a_device_without_memory_is_a_sentence(device: Accelerator, target: Path, shim: Path) -> None:
    asked = ("chat", target, "--offline", "-p", "Hello", "--draft", "none", "--main-device", device.name)
    environment = os.environ | {"LD_PRELOAD": str(shim), "EDGELLM_LACK_AT": "10000"}
    command = [sys.executable, "-m", "edgellm.cli", *map(str, asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "not enough memory" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
