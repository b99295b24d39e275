"""Every architecture: drafts that err change no answer, rollbacks keep every bit, memory is as planned, turns go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import families
import numpy as np
import pytest
from tiny_gguf import ARCHITECTURES, CHATML, write_tiny

from edgellm.memory.gguf import read_header
from edgellm.memory.shape import UnknownShape, from_header
from edgellm.runtime import EngineOptions, load
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.backends.llama_model import LlamaModel

WINDOWS = ["gemma3", "gemma3n", "gemma4", "gpt-oss"]
STATES = ["qwen35", "lfm2", "granitehybrid", "mamba2"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("families")
    return lambda architecture: families.write(folder, architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_drafts_that_err_on_purpose_change_no_answer(architecture: str, tiny: Callable[[str], Path]) -> None:
    found = families.compare_drafts(tiny(architecture), 2, n_new=20)
    assert found.n_equal == found.n_prompts == 2
    assert 0 < found.n_accepted < found.n_drafted
    assert found.n_rounds < found.n_tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_behind_what_was_taken_back_have_the_bits_of_a_fresh_evaluation(
    architecture: str, tiny: Callable[[str], Path]
) -> None:
    found = families.compare_rollbacks(tiny(architecture), 12)
    assert found.n_rejected > 5
    assert found.n_other_bits == 0, found


@pytest.mark.parametrize("architecture", WINDOWS)
def test_a_draft_rejected_where_a_window_comes_round_changes_no_bit(
    architecture: str, tiny: Callable[[str], Path]
) -> None:
    """Of 256 cells the last were filled and let go of again: the text goes on in the first, in another order."""
    backend, other = families.open_backend(tiny(architecture)), families.open_backend(tiny(architecture))
    text = families.some(250, 1)
    backend.forward(text, 0)
    for i in range(40):
        drafted = families.some(9, 10 + i)
        backend.forward(drafted, 9)
        backend.truncate(len(text) + 2)
        text += drafted[:2]
    last = families.some(5, 3)
    rows = backend.forward(last, 5).copy()
    assert np.array_equal(rows, families.fresh_rows(other, text, last))
    for one in (backend, other):
        one.close()
        one.model.close()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_thousand_rounds_and_twenty_prompts(architecture: str, tiny: Callable[[str], Path]) -> None:
    drafted = families.compare_drafts(tiny(architecture), 20)
    assert drafted.n_equal == drafted.n_prompts == 20
    back = families.compare_rollbacks(tiny(architecture), 1000)
    assert (back.n_patterns, back.n_other_bits) == (1000, 0), back


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_cache_and_states_are_what_was_planned(architecture: str, tiny: Callable[[str], Path]) -> None:
    for line in families.compare_memory(tiny(architecture)):
        if line.name in ("weights", "cache"):
            assert line.held == pytest.approx(line.planned, abs=2048), line
        elif line.name == "states":  # with a head of the engine's own, of a hundred bytes and 20 a layer
            assert line.planned <= line.held <= line.planned + 5 * 1024, line


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("architecture", STATES)
def test_a_turn_reads_only_what_is_new(architecture: str, thinks: bool, tmp_path: Path) -> None:
    """Also where the prompt opens a thought that later prompts leave out."""
    template, budget = (families.THINKS, 20) if thinks else (CHATML, None)
    path = families.write(tmp_path, architecture, chat_template=template, added=families.TAGS)
    with load(path, None, EngineOptions(n_ctx=2048)) as engine:
        turns = families.converse(engine, 5, think_budget=budget)
    assert all(turn.n_read <= turn.n_new + 1 for turn in turns), turns
    assert all(turn.n_new < 80 < turn.n_prompt for turn in turns[2:]), turns


@pytest.mark.parametrize("n_shared", [1, 3, 7, 8])
def test_a_cache_that_is_shared_with_the_wrong_layers_is_refused(n_shared: int, tmp_path: Path) -> None:
    """llama.cpp ends the process over it."""
    path = write_tiny(tmp_path / "model.gguf", "gemma4", n_layers=8, n_shared_kv=n_shared)
    with pytest.raises(LoadError, match="share a cache"):
        LlamaModel(path)


def test_more_shared_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf", "gemma4", n_layers=8, n_shared_kv=9)
    with pytest.raises(LoadError, match="shared_kv_layers 9"):
        LlamaModel(path)
    with pytest.raises(UnknownShape, match="shared_kv_layers 9"):
        from_header(read_header(path))


def test_of_a_second_embedding_a_token_reads_one_row(tmp_path: Path) -> None:
    shape = from_header(read_header(write_tiny(tmp_path / "model.gguf", "gemma4", n_layers=8)))
    per_layer = shape.per_layer_width * shape.n_vocab * 4
    assert shape.weight_bytes - shape.bytes_read_per_token == per_layer > 0
