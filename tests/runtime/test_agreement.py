"""Which widths of a device may verify drafts: tried once, kept, believed only where it can be true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.bringup import agreement as module
from edgellm.runtime.bringup.agreement import QUIET, Agreement, agreement, try_widths
from edgellm.runtime.bringup.exactness import exact_width


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LlamaBackend]:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    model = LlamaModel(write_tiny(tmp_path / "tiny.gguf", weights="Q8_0"), ModelOptions(mmap=False))
    backend = LlamaBackend(model, ContextSettings(256, 64, 6))
    yield backend
    backend.close()
    model.close()


def test_widths_end_at_the_first_that_differs_by_more() -> None:
    found = Agreement((0.0, 0.0, 0.02, 0.03, 0.5, 0.0))
    assert (found.n_exact, found.n_quiet) == (2, 4)
    assert Agreement((0.0,)).n_quiet == Agreement((0.0,)).n_exact == 1
    assert Agreement((0.0, float("inf"))).n_quiet == 1
    assert 0.03 < QUIET < 0.4  # between the two that an H200 shows


def test_it_says_what_the_search_for_exact_widths_says(backend: LlamaBackend) -> None:
    found = try_widths(backend)
    assert found.n_exact == exact_width(backend)
    assert found.n_exact == 6 or not kernels().active
    assert backend.tokens == []


def test_the_second_time_nothing_is_tried(backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    first = agreement(backend)
    monkeypatch.setattr(module, "try_widths", lambda backend: pytest.fail("it was tried again"))
    assert agreement(backend) == first


@pytest.mark.parametrize("kept", [[], [0.0] * 99, ["a"], [-1.0], [float("nan")], {"a": 1}, None, 3])
def test_what_cannot_be_true_is_tried_anew(backend: LlamaBackend, tmp_path: Path, kept: object) -> None:
    first = agreement(backend)
    path = tmp_path / "home" / "widths.json"
    (key,) = json.loads(path.read_text())
    path.write_text(json.dumps({key: kept}))
    assert agreement(backend) == first
    assert json.loads(path.read_text())[key] == list(first.changes)


def test_another_cache_type_is_asked_anew(backend: LlamaBackend, tmp_path: Path) -> None:
    agreement(backend)
    other = LlamaBackend(backend.model, replace(backend.settings, kv="f32"))
    agreement(other)
    other.close()
    assert len(json.loads((tmp_path / "home" / "widths.json").read_text())) == 2
