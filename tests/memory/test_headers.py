"""Headers and configurations of strangers: one sentence each, within time and memory that the file justifies."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from raw_gguf import LLAMA, llama_tensors, write_raw

from edgellm.app.shapes import look_up
from edgellm.memory.gguf import GgufError, read_header
from edgellm.memory.shape import ModelShape, UnknownShape, from_header
from edgellm.memory.split import read_model

SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 256, "ssm.state_size": 64, "ssm.group_count": 2}


@pytest.fixture(autouse=True)
def little_time_and_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**28, before[1]))
    started = time.process_time()
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - started < 2


def shape_of(path: Path, architecture: str = "llama", **entries: Any) -> ModelShape:
    changed = {key.replace("__", "."): value for key, value in entries.items()}
    kept = {key: value for key, value in {**LLAMA, **changed}.items() if value is not None}
    return from_header(read_header(write_raw(path, kept, llama_tensors(), architecture=architecture)))


WRONG = [
    0, -1, 2**31, ("u64", 2**63), ("u64", 2**64 - 1), ("i64", -(2**63)), True, 4.0, math.nan, math.inf, "4", "x",
    ["a", "b", "c", "d"], [-1, 1, 1, 1], [1],
]  # fmt: skip
COUNTS = ("block_count", "embedding_length", "attention__head_count", "context_length")
OTHERS = {
    "attention__head_count_kv": "llama", "attention__key_length": "llama", "attention__value_length": "llama",
    "feed_forward_length": "llama", "nextn_predict_layers": "llama", "expert_count": "llama",
    "attention__sliding_window": "gemma3", "attention__sliding_window_pattern": "gemma3",
    "full_attention_interval": "qwen35", "attention__recurrent_layers": "qwen35", "shortconv__l_cache": "lfm2",
    "ssm__inner_size": "mamba", "ssm__conv_kernel": "mamba",
}  # fmt: skip


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("key", [*COUNTS, *OTHERS])
def test_a_number_that_cannot_be_is_a_sentence_that_names_it(key: str, value: Any, tmp_path: Path) -> None:
    architecture = OTHERS.get(key, "llama")
    extra = {name.replace(".", "__"): number for name, number in SSM.items()} if architecture != "llama" else {}
    extra |= {"attention__sliding_window": 512} if architecture == "gemma3" else {}
    shape, sentence = None, ""
    try:
        shape = shape_of(tmp_path / "x.gguf", architecture, **{**extra, key: value})
    except UnknownShape as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) < 400 + len(str(tmp_path))
    if shape is not None:  # zero and a list of the right length can be meant
        assert key not in COUNTS
        assert all(0 <= group.k_width < 2**40 and group.n_layers <= 4 for group in shape.attention)
        assert 0 <= shape.state_elements < 2**40


def test_what_is_said_is_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownShape, match="512 layers, and no tensor is of layer 4"):
        shape_of(tmp_path / "layers.gguf", block_count=512)
    with pytest.raises(UnknownShape, match="512 wide, and its embedding is 256"):
        shape_of(tmp_path / "width.gguf", embedding_length=512)
    twice = write_raw(tmp_path / "twice.gguf", LLAMA, llama_tensors() * 2)
    with pytest.raises(GgufError, match="twice"):
        read_header(twice)


def test_a_file_without_tensors_holds_a_vocabulary_only(tmp_path: Path) -> None:
    for name, entries in (("a", LLAMA), ("b", {**LLAMA, "vocab_size": 1000})):
        path = write_raw(tmp_path / f"{name}.gguf", entries, [])
        with pytest.raises(UnknownShape, match="holds a vocabulary only"):
            from_header(read_header(path))


@pytest.mark.parametrize("architecture", ["", None, 7, "llama\x1b[31mX", "llama\nX"])
def test_an_architecture_that_is_none_is_named_without_control_characters(architecture: Any, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.gguf", LLAMA, llama_tensors(), architecture=architecture)
    with pytest.raises(UnknownShape) as error:
        from_header(read_header(path))
    assert str(error.value).isprintable()


def test_a_text_is_bounded_by_what_models_have(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.gguf", {"tokenizer.chat_template": "x"}, llama_tensors())
    data = bytearray(path.read_bytes())
    at = data.index(b"tokenizer.chat_template") + 23 + 4
    data[at : at + 8] = (2**25).to_bytes(8, "little")
    with path.open("wb") as file:
        file.write(data)
        file.truncate(2**26)
    with pytest.raises(GgufError, match="text of 33,554,432 bytes"):
        read_header(path)


def test_an_unknown_architecture_with_a_state_is_known_to_keep_one(tmp_path: Path) -> None:
    for key, stateful in (("ssm.state_size", True), ("wkv.head_size", True), ("rope.dimension_count", False)):
        path = write_raw(tmp_path / "x.gguf", {**LLAMA, key: 64}, llama_tensors(), architecture="brandnew")
        shape = from_header(read_header(path), ask=True)
        assert (shape.known, shape.is_recurrent, shape.keeps_snapshots) == (False, stateful, False)


@pytest.mark.parametrize("where", ["tensors", "entries", "items"])
def test_a_count_is_bounded_by_what_models_have(where: str, tmp_path: Path) -> None:
    """The file is long enough for the count, so that running out of it is not what ends the reading."""
    path = write_raw(tmp_path / "x.gguf", {"tokenizer.ggml.tokens": ["a"]}, llama_tensors())
    data = bytearray(path.read_bytes())
    at = {"tensors": 8, "entries": 16, "items": data.index(b"tokenizer.ggml.tokens") + 21 + 8}[where]
    data[at : at + 8] = (10**8).to_bytes(8, "little")
    with path.open("wb") as file:
        file.write(data)
        file.truncate(2**26)
    with pytest.raises(GgufError, match="damaged"):
        read_header(path)


def parts(folder: Path, n: int, **first: Any) -> list[Path]:
    """A model in so many files."""
    tensors, found = llama_tensors(), []
    for index in range(n):
        entries: dict[str, Any] = {"split.no": index, "split.count": n, "split.tensors.count": len(tensors)}
        path = folder / f"m-{index + 1:05}-of-{n:05}.gguf"
        own = tensors[index * len(tensors) // n : (index + 1) * len(tensors) // n]
        found.append(
            write_raw(path, {**(LLAMA if index == 0 else {}), **entries, **(first if index == 0 else {})}, own)
        )
    return found


def test_a_split_model_is_read_as_one(tmp_path: Path) -> None:
    whole = from_header(read_header(write_raw(tmp_path / "whole.gguf", LLAMA, llama_tensors())), "m")
    for n in (1, 3):
        folder = tmp_path / str(n)
        folder.mkdir()
        assert from_header(read_model(parts(folder, n)[0]), "m") == whole


def test_a_split_model_that_is_not_whole_is_said(tmp_path: Path) -> None:
    files = parts(tmp_path, 3)
    with pytest.raises(UnknownShape, match="part of a model in several files"):
        from_header(read_header(files[0]))
    with pytest.raises(GgufError, match="part 2 of a model in 3 files: name the first"):
        read_model(files[1])
    with pytest.raises(GgufError, match="finds the others"):
        read_model(files[0].rename(tmp_path / "other.gguf"))
    (tmp_path / "other.gguf").rename(files[0])
    files[2].unlink()
    with pytest.raises(GgufError, match=r"m-00003-of-00003\.gguf is missing"):
        read_model(files[0])
    with pytest.raises(GgufError, match="one of 4000000000 parts"):
        read_model(parts(tmp_path, 1, **{"split.count": 4_000_000_000})[0])


CONFIG = {
    "model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_size": 256, "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize("key", [*CONFIG, "head_dim", "num_experts", "sliding_window", "tie_word_embeddings"])
def test_a_configuration_of_any_shape_is_planned_or_refused(key: str, tmp_path: Path) -> None:
    values = ["NaN", "Infinity", "1e400", "-4", "0", "4.5", "4000000000", '"x"', "[]", "{}", "null", "true", "4.0"]
    for value in values:
        text = json.dumps({**CONFIG, "model_type": "gemma2" if key == "sliding_window" else "llama", key: 1})
        marked = json.dumps({key: 1})[1:-1]
        (tmp_path / "config.json").write_text(text.replace(marked, marked[:-1] + value))
        sentence = ""
        try:
            assert look_up(str(tmp_path)).shape.weight_bytes > 0
        except UnknownShape as error:
            sentence = str(error)
        assert "\n" not in sentence


@pytest.mark.parametrize("text", ["", "[]", "7", '"x"', "[" * 100_000, "{", "\x00", " " * 2**21, "\ud800"])
def test_what_is_no_configuration_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UnknownShape, match=r"config\.json"):
        look_up(str(tmp_path))
