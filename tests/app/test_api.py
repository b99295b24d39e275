"""`import edgellm`: what it offers, what it costs, and that it answers by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub, Repo
from tiny_gguf import write_tiny

import edgellm
from edgellm.app.listener import Silence
from edgellm.export.obtain.store import NotHere
from edgellm.memory.plan import MemoryPlan

HEAVY = (
    "huggingface_hub",
    "jinja2",
    "llama_cpp",
    "numpy",
    "onnxruntime",
    "psutil",
    "rich",
    "tokenizers",
    "typer",
    "yaml",
)
QUESTION = "the thin hat in the tin"


class Recorder(Silence):
    """A listener that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warned: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warning(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture
def served(hub: LoopbackHub, tmp_path: Path, catalogue: Callable[..., None]) -> LoopbackHub:
    """A target and the small model that the catalogue recommends for it."""
    sizes = {"tiny-target": 8, "tiny-drafter": 1}
    entries = []
    for name, n_layers in sizes.items():
        data = write_tiny(tmp_path / f"{name}.gguf", n_layers=n_layers, n_ctx_train=256).read_bytes()
        file = {"quant": "F16", "filename": f"{name}.gguf", "bytes": len(data), "sources": [{"hf": f"us/{name}"}]}
        entries.append({"name": name, "drafters": ["tiny-drafter"] if n_layers > 1 else [], "files": [file]})
        hub.repos[f"us/{name}"] = Repo({f"{name}.gguf": data})
    catalogue(*entries)
    return hub


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_loads_nothing_heavy() -> None:
    assert python(f"import sys, edgellm; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


@pytest.mark.parametrize("name", [*edgellm.__all__, "__version__"])
def test_every_name_is_there(name: str) -> None:
    assert getattr(edgellm, name) is not None
    assert name in dir(edgellm)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        edgellm.lode  # noqa: B018


def test_a_model_is_loaded_by_name_with_its_drafter_and_answers(served: LoopbackHub) -> None:
    told = Recorder()
    with edgellm.load("tiny-target", listener=told) as engine:
        assert engine.model.path.name == "tiny-target.gguf"
        assert engine.draft_model is not None
        assert engine.draft_model.path.name == "tiny-drafter.gguf"
        assert engine.options.learned is not None
        generation = engine.generate([{"role": "user", "content": QUESTION}], max_tokens=8)
        text = "".join(generation)
        assert generation.answer.text == text
        session = edgellm.ChatSession(engine)
        assert "".join(session.reply(QUESTION, max_tokens=8)) == text
    assert any("tiny-target is drafted by tiny-drafter" in note for note in told.notes)


def test_a_model_is_loaded_by_path_alone_and_by_repository(served: LoopbackHub, tmp_path: Path) -> None:
    answers = []
    for reference in (tmp_path / "tiny-target.gguf", "us/tiny-target"):
        with edgellm.load(reference, "none", edgellm.EngineOptions(n_ctx=128, learn="off", copy=False)) as engine:
            assert engine.draft_model is None
            assert engine.settings.target.n_ctx == 128
            answers.append(engine.generate(QUESTION, max_tokens=8).finish().tokens)
    assert answers[0] == answers[1]


def test_nothing_is_asked_of_a_server_offline(served: LoopbackHub) -> None:
    with pytest.raises(NotHere, match="tiny-target is not on this machine"):
        edgellm.load("tiny-target", offline=True)
    assert not served.requests


def test_a_plan_by_name_is_what_is_loaded(served: LoopbackHub, tmp_path: Path) -> None:
    path = tmp_path / "tiny-target.gguf"
    plan = edgellm.plan(path, "none", budget="1GB", n_ctx=64)
    assert isinstance(plan, MemoryPlan)
    assert plan.fits
    with edgellm.load(plan=plan) as engine:
        assert engine.model.path == path
        assert engine.settings.target.n_ctx == plan.n_ctx == 64
    with pytest.raises(ValueError, match="the plan decides --ctx"):
        edgellm.load(plan=plan, options=edgellm.EngineOptions(n_ctx=128))


def test_warnings_reach_the_log_where_nobody_listens(served: LoopbackHub, caplog: pytest.LogCaptureFixture) -> None:
    del served.repos["us/tiny-drafter"]
    with edgellm.load("tiny-target") as engine:
        assert engine.draft_model is None
    assert [record.name for record in caplog.records if "no drafter" in record.getMessage()] == ["edgellm"]


def test_an_adapter_may_be_a_text_or_a_record(tmp_path: Path) -> None:
    from loras import gguf_adapter

    target = write_tiny(tmp_path / "target.gguf")
    adapter = gguf_adapter(tmp_path / "lora.gguf", target)
    found: list[Any] = []
    for given in (f"{adapter}:0.5", edgellm.Lora(adapter, 0.5)):
        with edgellm.load(target, "none", edgellm.EngineOptions(n_ctx=64, learn="off"), loras=[given]) as engine:
            found.append(engine.options.loras)
    assert found[0] == found[1] == (edgellm.Lora(adapter, 0.5),)
