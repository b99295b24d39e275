"""Other people's files: what the engine would end the process for is one sentence, and what is wrong is no answer."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import write_tiny

from edgellm.memory.gguf import read_header
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.backends.base import BadNumbers, ContextFull, LoadError, checked
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.engine import Engine

DRAFTING = EngineOptions(n_ctx=256, n_draft=4, fixed=True, copy=False, learn="off")
BY_ITSELF = EngineOptions(n_ctx=256, learn="off")


def said(engine: Engine, question: str = "the cat in the hat") -> str:
    return "".join(ChatSession(engine).reply(question, max_tokens=12))


def spoil(path: Path, tensor: str, value: float, *, row: int = 0) -> Path:
    """Overwrite one float of a tensor in the file."""
    header = read_header(path)
    (found,) = (item for item in header.tensors if item.name == tensor)
    with path.open("r+b") as file:
        file.seek(header.data_offset + found.offset + 4 * row * found.shape[0])
        file.write(np.float32(value).tobytes())
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tensor", ["output_norm.weight", "blk.2.ffn_down.weight", "token_embd.weight"])
def test_weights_that_are_no_numbers_are_told_and_never_answered_from(
    tensor: str, value: float, tmp_path: Path
) -> None:
    path = spoil(write_tiny(tmp_path / "bad.gguf"), tensor, value)
    with pytest.raises(BadNumbers, match=r"bad\.gguf computes numbers that are none .* pull it again"):
        load(path, None, BY_ITSELF).close()


def test_a_drafter_that_begins_to_compute_nonsense_is_left_alone_and_the_answer_goes_on(tmp_path: Path) -> None:
    target = write_tiny(tmp_path / "target.gguf")
    with load(target, None, DRAFTING) as engine:
        expected = said(engine)
    draft = write_tiny(tmp_path / "draft.gguf", n_layers=1)
    with load(target, draft, DRAFTING) as engine:
        assert engine.draft_model is not None
        assert engine.controller is not None
        backend = engine.controller.model.backend  # type: ignore[union-attr]
        forward, n_passes = backend.forward, 0

        def failing(tokens: list[int], n_outputs: int) -> np.ndarray:  # type: ignore[type-arg]
            nonlocal n_passes
            n_passes += 1
            rows = forward(tokens, n_outputs)
            return checked(rows * np.float32("nan"), "draft.gguf") if n_passes > 4 and n_outputs else rows

        backend.forward = failing
        assert said(engine) == expected
        assert any("drafts no more: draft.gguf" in warning for warning in engine.warnings)
        assert said(engine) == expected
        assert len([warning for warning in engine.warnings if "drafts no more" in warning]) == 1


def test_one_number_that_is_none_is_found_in_any_row() -> None:
    rows = np.zeros((3, 1000), np.float32)
    assert checked(rows, "x") is rows
    for bad in (np.nan, np.inf, -np.inf):
        rows[1, 777] = bad
        with pytest.raises(BadNumbers):
            checked(rows, "x")


@pytest.mark.parametrize("n_ctx_train", [1, 2, 3, 8, 16, 32, 63])
@pytest.mark.parametrize("options", [DRAFTING, BY_ITSELF], ids=["fixed", "by itself"])
def test_a_drafter_trained_for_a_few_tokens_changes_nothing(
    n_ctx_train: int, options: EngineOptions, tmp_path: Path
) -> None:
    target = write_tiny(tmp_path / "target.gguf")
    draft = write_tiny(tmp_path / "draft.gguf", n_layers=1, n_ctx_train=n_ctx_train)
    with load(target, None, options) as engine:
        expected = said(engine)
    with load(target, draft, options) as engine:
        assert said(engine) == expected


@pytest.mark.parametrize("n_ctx_train", [1, 2, 8, 16, 32])
@pytest.mark.parametrize("exact", [False, True])
def test_a_target_trained_for_a_few_tokens_says_when_they_are_full(
    n_ctx_train: int, exact: bool, tmp_path: Path
) -> None:
    target = write_tiny(tmp_path / "target.gguf", n_ctx_train=n_ctx_train)
    with load(target, None, EngineOptions(exact=exact, learn="off")) as engine:
        assert engine.backend.n_ctx == n_ctx_train
        with pytest.raises(ContextFull):
            said(engine)


def test_a_file_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "weights.gguf", vocab="none")
    with pytest.raises(LoadError, match=r"weights\.gguf holds no vocabulary"):
        LlamaModel(path)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "encoder.gguf", "bert", n_ctx_train=64)
    with pytest.raises(LoadError, match=r"\(bert\) keeps no cache .* take a decoder-only model"):
        load(path, None, BY_ITSELF)


def test_a_name_that_is_not_utf_8_opens(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.gguf"))
    write_tiny(tmp_path / "plain.gguf").rename(path)
    with load(path, path, DRAFTING) as engine:
        assert said(engine)


def test_a_check_of_the_engine_s_own_ends_in_a_sentence_and_not_in_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf.GGUFWriter.add_tensor

    def halved(self: gguf.GGUFWriter, name: str, tensor: np.ndarray, **more: object) -> None:  # type: ignore[type-arg]
        add(self, name, tensor.astype(np.float16) if name == "output_norm.weight" else tensor, **more)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", halved)
    path = write_tiny(tmp_path / "halves.gguf")
    code = "import sys; from edgellm.runtime import load; load(sys.argv[1]).close()"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert "binary-ops.cpp" in sentence
    assert "/binary-ops.cpp" not in sentence


def test_a_vocabulary_alone_is_named_as_what_it_is(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "words.gguf", "llama")
    writer.add_tokenizer_model("none")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
        write()
    writer.close()
    with pytest.raises(LoadError, match=r"words\.gguf holds a vocabulary only"):
        load(tmp_path / "words.gguf", None, BY_ITSELF)


def test_a_state_and_a_window_in_one_model_can_be_cut_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = gguf.GGUFWriter.write_header_to_file

    def with_window(self: gguf.GGUFWriter) -> None:
        self.add_sliding_window(64)
        write(self)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_window)
    path = write_tiny(tmp_path / "both.gguf", "lfm2")
    with load(path, None, replace(DRAFTING, n_draft=0)) as engine:
        assert engine.model.is_hybrid
        assert engine.model.n_window == 64  # type: ignore[union-attr]
        expected = said(engine, "the the the the the")
    with load(path, None, replace(DRAFTING, copy=True)) as engine:
        session = ChatSession(engine)
        assert "".join(session.reply("the the the the the", max_tokens=12)) == expected
        assert session.last is not None
        assert session.last.stats.n_drafted > session.last.stats.n_accepted  # some were taken back
