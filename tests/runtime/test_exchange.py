"""Another file of the same drafter for an engine that runs: the target keeps what it has read."""

from __future__ import annotations

from pathlib import Path

import pytest
from draft_adapters import adapter_for, quantised_tiny
from tiny_gguf import write_tiny

from edgellm.memory.draft_adapter import AdapterFile
from edgellm.runtime import EngineOptions, load
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.bringup.exchange import close_drafter, with_draft_file, without_drafter
from edgellm.runtime.distillation.adopted import Adopted
from edgellm.runtime.engine import Engine

QUESTION = [{"role": "user", "content": "in the"}]
FURTHER = [*QUESTION, {"role": "assistant", "content": "hat"}, {"role": "user", "content": "and the"}]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_tiny(tmp_path / "target.gguf", n_layers=2, seed=1), quantised_tiny(tmp_path / "drafter.gguf")


def tokens(engine: Engine, messages: list[dict[str, str]], n: int = 24) -> tuple[int, ...]:
    return engine.generate(messages, max_tokens=n).finish().tokens


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("copy", [False, True])
def test_answers_and_what_was_read_stay_and_the_drafts_are_the_new_files(
    files: tuple[Path, Path], tmp_path: Path, fixed: bool, copy: bool
) -> None:
    target, draft = files
    options = EngineOptions(n_ctx=256, n_threads=1, n_draft=4, fixed=fixed, copy=copy, learn="fresh")
    with load(target, None, EngineOptions(n_ctx=256, n_threads=1, copy=False)) as plain:
        expected = [tokens(plain, QUESTION), tokens(plain, FURTHER)]
    adapter = AdapterFile.read(_written(tmp_path / "one.adapter", adapter_for(draft, 0.5).to_bytes()))
    merged = Adopted(tmp_path / "adapted").with_adapter(adapter, draft)
    with load(target, draft, options) as engine:
        assert tokens(engine, QUESTION) == expected[0]
        held = list(engine.backend.tokens)
        other = with_draft_file(engine, merged, adapter.sha256)
        assert list(other.backend.tokens) == held
        close_drafter(engine)
        assert other.draft_model is not None
        assert other.draft_model.path == merged
        answer = other.generate(FURTHER, max_tokens=24).finish()
        assert answer.tokens == expected[1]
        assert answer.stats.n_cached > 0
        assert answer.stats.n_drafted > 0 or not fixed
        back = with_draft_file(other, draft, None)
        close_drafter(other)
        assert tokens(back, QUESTION) == expected[0]
        alone = without_drafter(back)
        assert tokens(alone, FURTHER) == expected[1]
        assert alone.draft_model is None


def test_a_file_that_cannot_be_loaded_leaves_the_engine_as_it_was(files: tuple[Path, Path], tmp_path: Path) -> None:
    target, draft = files
    damaged = _written(tmp_path / "damaged.gguf", b"GGUF" + bytes(100))
    with load(target, draft, EngineOptions(n_ctx=256, n_threads=1, learn="fresh")) as engine:
        before = tokens(engine, QUESTION)
        with pytest.raises(LoadError):
            with_draft_file(engine, damaged, None)
        assert tokens(engine, QUESTION) == before
        assert engine.controller is not None
        assert engine.controller.model is not None


def test_where_nothing_drafts_nothing_is_exchanged(files: tuple[Path, Path]) -> None:
    target, draft = files
    with (
        load(target, None, EngineOptions(n_ctx=256, n_threads=1)) as engine,
        pytest.raises(LoadError, match="no draft"),
    ):
        with_draft_file(engine, draft, None)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
