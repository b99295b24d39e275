"""Beginnings on the disk: what is put back is, bit for bit, what reading would have given, or is not put back."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny

from edgellm.memory import files
from edgellm.memory.context import ContextSettings, KvType
from edgellm.memory.sealed import seal, unseal
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.backends.llama_sequences import LlamaSequences, Part
from edgellm.runtime.backends.sequence_states import SequenceStates
from edgellm.runtime.backends.state_rows import UnknownState
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.parallel.engine import ParallelEngine
from edgellm.runtime.parallel.load import load_parallel
from edgellm.runtime.parallel.prefix_files import KIND, VERSION
from edgellm.runtime.parallel.saved_prefixes import N_PIECE, names_of
from edgellm.runtime.request import Request

N_PROMPT = 5 * N_PIECE + 10


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[LlamaModel]:
    if not kernels().active:
        pytest.skip("the engine's own kernels share no cells")
    loaded = LlamaModel(smollm2_path)
    yield loaded
    loaded.close()


def text_of(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(100, 40_000) for _ in range(n)]


def context_of(model: LlamaModel, kv: KvType = "f16") -> tuple[LlamaSequences, SequenceStates]:
    settings = ContextSettings(n_ctx=256, n_ubatch=64, n_outputs=16, kv=kv)
    context = LlamaSequences(model, settings, 3, n_parked=4)
    return context, SequenceStates(context)


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_a_text_goes_on_from_rows_as_from_reading(model: LlamaModel, kv: KvType) -> None:
    text, more = text_of(1, 150), text_of(2, 8)
    context, states = context_of(model, kv)
    context.read(0, text)
    rows = states.rows(0, 0, 150)
    expected = context.forward([Part(0, more, 8)])[0][0].copy()
    context.close()

    context, states = context_of(model, kv)
    context.read(1, text_of(3, 90))  # cells of others lie between
    context.read(2, text_of(4, 33))
    context.truncate(1, 50)
    context.read(0, text[:20])
    for first, last in ((20, 70), (70, 72), (72, 150)):
        assert states.restore(0, text[first:last], rows[first:last])
        context.read(1, [5, 6, 7])
    assert context.held[0] == text
    assert np.array_equal(context.forward([Part(0, more, 8)])[0][0], expected)
    assert context.copy(0, 2, 150)  # the others know the cells too
    assert np.array_equal(context.forward([Part(2, more, 8)])[0][0], expected)
    context.close()


def test_rows_that_are_not_the_texts_change_nothing(model: LlamaModel) -> None:
    text = text_of(1, 120)
    context, states = context_of(model)
    context.read(0, text)
    rows = states.rows(0, 0, 120)
    expected = context.forward([Part(0, [9], 1)])[0][0].copy()
    context.truncate(0, 60)
    changed = rows.copy()
    changed[61, 7] ^= 1
    assert not states.restore(0, text[60:], changed[60:])
    assert not states.restore(0, text_of(5, 60), rows[60:])
    assert not states.restore(0, text[60:], rows[:60])
    assert context.held[0] == text[:60]
    assert states.restore(0, text[60:], rows[60:])
    assert np.array_equal(context.forward([Part(0, [9], 1)])[0][0], expected)
    context.close()


def test_a_window_that_slides_is_refused(tmp_path: Path) -> None:
    model = LlamaModel(write_tiny(tmp_path / "tiny.gguf", "gemma3", n_layers=6))
    context = LlamaSequences(model, ContextSettings(n_ctx=256, n_ubatch=64), 2, n_parked=4)
    with pytest.raises(UnknownState, match="sliding window"):
        SequenceStates(context)
    context.close()
    model.close()


def test_names_depend_on_all_tokens_before_and_on_the_model() -> None:
    text = text_of(1, 3 * N_PIECE + 5)
    names = list(names_of(b"model", text))
    assert len(names) == 3
    assert names[:2] == list(names_of(b"model", text[: 2 * N_PIECE]))
    assert not set(names) & set(names_of(b"other", text))
    assert not set(names) & set(names_of(b"model", [text[0] + 1, *text[1:]]))


class Served:
    """An engine with a folder of beginnings."""

    def __init__(self, path: Path, folder: Path, n_parallel: int = 2, **options: int) -> None:
        self.warnings: list[str] = []
        base = EngineOptions(n_ctx=512, n_parallel=n_parallel, learn="off", copy=False, prefixes=folder)
        asked = dataclasses.replace(base, **options)  # type: ignore[arg-type]
        self.engine: ParallelEngine = load_parallel(path, None, asked, warn=self.warnings.append)

    def ask(self, prompt: list[int]) -> tuple[tuple[int, ...], int]:
        """The answer, and how many tokens of the prompt were not read."""
        answer = self.engine.generate(Request(prompt=tuple(prompt), max_tokens=6)).finish()
        return answer.tokens, answer.stats.n_cached

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()


@pytest.fixture(scope="module")
def made(
    model: LlamaModel, smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[int, ...]]:
    """A folder with a prompt's files, and the answer to it."""
    folder = tmp_path_factory.mktemp("made") / "prefixes"
    with Served(smollm2_path, folder) as served:
        tokens, n_cached = served.ask(text_of(1, N_PROMPT))
        assert n_cached == 0
    assert len(list(folder.glob("*.prefix"))) == 5
    return folder, tokens


@pytest.fixture
def kept(made: tuple[Path, tuple[int, ...]], tmp_path: Path) -> tuple[Path, tuple[int, ...]]:
    """A copy of it."""
    return shutil.copytree(made[0], tmp_path / "prefixes"), made[1]


@pytest.mark.parametrize("n_parallel", [1, 3])
def test_what_was_read_is_not_read_again_by_the_next_process(
    smollm2_path: Path, kept: tuple[Path, tuple[int, ...]], n_parallel: int
) -> None:
    folder, tokens = kept
    if sys.platform != "win32":
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.prefix")} == {0o600}
    with Served(smollm2_path, folder, n_parallel) as served:
        assert served.ask(text_of(1, N_PROMPT)) == (tokens, 5 * N_PIECE)
        other = [*text_of(1, 3 * N_PIECE + 7), *text_of(2, 40)]  # begins alike, and goes on otherwise
        assert served.ask(other)[1] == 3 * N_PIECE + 7
        assert not served.warnings
    with Served(smollm2_path, folder, n_parallel) as served:
        assert served.ask(other)[1] == 3 * N_PIECE


def test_files_that_are_damaged_or_lie_are_read_anew_with_one_warning(
    smollm2_path: Path, kept: tuple[Path, tuple[int, ...]]
) -> None:
    folder, tokens = kept
    whole = {path: path.read_bytes() for path in folder.glob("*.prefix")}
    for lies in (False, True):
        for path, data in whole.items():
            changed = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
            if lies:  # whoever may write here can make a checksum too
                payload = unseal(data, KIND, VERSION, path.stem, max_bytes=len(data))
                changed = seal(bytes([payload[0] ^ 1]) + payload[1:], KIND, VERSION, path.stem)
            path.write_bytes(changed)
        with Served(smollm2_path, folder) as served:
            assert served.ask(text_of(1, N_PROMPT)) == (tokens, 0)
            assert len(served.warnings) == 1
            assert "read anew" in served.warnings[0]


def test_another_model_or_another_cache_finds_nothing(smollm2_path: Path, kept: tuple[Path, tuple[int, ...]]) -> None:
    folder, _ = kept
    with Served(smollm2_path, folder, kv="q8_0") as served:  # type: ignore[arg-type]
        assert served.ask(text_of(1, N_PROMPT))[1] == 0
        assert not served.warnings


def test_a_bound_is_kept_to(smollm2_path: Path, kept: tuple[Path, tuple[int, ...]]) -> None:
    folder, _ = kept
    n_bytes = max(path.stat().st_size for path in folder.glob("*.prefix"))
    with Served(smollm2_path, folder, prefix_bytes=6 * n_bytes) as served:
        served.ask(text_of(2, N_PROMPT))
    assert sum(path.stat().st_size for path in folder.glob("*.prefix")) <= 6 * n_bytes
    with Served(smollm2_path, folder) as served:  # the newer one is whole
        assert served.ask(text_of(2, N_PROMPT))[1] == 5 * N_PIECE


def test_a_full_disk_costs_the_files_alone(smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels().active:
        pytest.skip("the engine's own kernels share no cells")
    tried = threading.Event()

    def full(path: Path, data: bytes, *, private: bool = False) -> None:
        tried.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "write", full)
    with Served(smollm2_path, tmp_path / "prefixes") as served:
        first = served.ask(text_of(1, N_PROMPT))[0]
        assert tried.wait(60)
        assert served.ask(text_of(1, N_PROMPT)) == (first, N_PROMPT - 1)
        served.ask(text_of(2, N_PROMPT))
    assert len(served.warnings) == 1
    assert "No space left" in served.warnings[0]


def test_nothing_is_written_while_somebody_is_answered(smollm2_path: Path, tmp_path: Path) -> None:
    if not kernels().active:
        pytest.skip("the engine's own kernels share no cells")
    folder = tmp_path / "prefixes"
    with Served(smollm2_path, folder) as served:
        seat = served.engine._free.popleft()  # somebody is answered
        served.ask(text_of(1, N_PROMPT))
        time.sleep(0.3)
        assert not folder.exists()
        served.engine._free.append(seat)
    assert len(list(folder.glob("*.prefix"))) == 5
