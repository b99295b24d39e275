"""Importance matrices: llama.cpp's statistics, made, interrupted, read and judged."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import random_weights, small_tokenizer, tiny_model, write_weights
from numpy.typing import NDArray
from tiny_gguf import write_tiny

from edgellm.export import pipeline
from edgellm.export.convert import engine_jobs, imatrix, imatrix_file
from edgellm.export.convert.engine_jobs import EngineJobError
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.convert.imatrix_file import BadImatrix, Collected
from edgellm.export.obtain.source import resolve
from edgellm.export.request import Options, Request
from edgellm.export.staging import ExportError
from edgellm.memory import files
from edgellm.memory.files import sha256_of
from edgellm.memory.gguf import read_header

TEXT = "The ferry left at six, before the fog had lifted. " * 60
N_CTX = 64


def make(model: Path, output: Path, **options: Any) -> imatrix.Made:
    given = {"datasets": ["text"], "n_ctx": N_CTX, "n_threads": 1, **options}
    return imatrix.make(model, "tiny", given.pop("text", TEXT), output, **given)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("imatrix") / "llama.gguf", "llama", n_layers=2)


def tensor(path: Path, name: str) -> NDArray[np.float32]:
    """Rows of a matrix in float32: (n_out, n_in), or a vector."""
    header = read_header(path)
    found = next(tensor for tensor in header.tensors if tensor.name == name)
    assert found.type == "F32"
    data = np.fromfile(path, "<f4", found.n_bytes // 4, offset=header.data_offset + found.offset)
    return data.reshape(tuple(reversed(found.shape)))


def test_the_sums_are_those_of_what_the_first_layer_multiplies(tmp_path: Path, llama: Path) -> None:
    """The input of layer 0 is the normed embedding: nothing of the engine is needed to know it."""
    made = make(llama, tmp_path / "imatrix.gguf", chunks=3)
    tokens = np.array(engine_jobs.tokenise(llama, [TEXT])[0][: 3 * N_CTX])
    rows = tensor(llama, "token_embd.weight")[tokens].astype(np.float64)
    rows /= np.sqrt((rows**2).mean(1, keepdims=True) + 1e-6)
    expected = ((rows * tensor(llama, "blk.0.attn_norm.weight")) ** 2).sum(0)
    for name in ("q", "k", "v"):
        sums = tensor(tmp_path / "imatrix.gguf", f"blk.0.attn_{name}.weight.in_sum2")
        assert np.allclose(sums, expected, rtol=1e-4)
        assert tensor(tmp_path / "imatrix.gguf", f"blk.0.attn_{name}.weight.counts").ravel() == [3 * N_CTX]
    assert (made.n_chunks, made.chunk_size, made.n_matrices) == (3, N_CTX, 2 * 7)


def test_the_file_says_what_llama_cpps_own_tools_look_for(tmp_path: Path, llama: Path) -> None:
    make(llama, tmp_path / "imatrix.gguf", chunks=2, datasets=["a.txt", "b.txt"])
    header = read_header(tmp_path / "imatrix.gguf")
    assert header.metadata["general.type"] == "imatrix"
    assert header.array("imatrix.datasets") == [b"a.txt", b"b.txt"]
    assert [header.metadata[f"imatrix.chunk_{name}"] for name in ("count", "size")] == [2, N_CTX]
    assert {t.name.rpartition(".")[2] for t in header.tensors} == {"in_sum2", "counts"}


@pytest.mark.parametrize("architecture", ["qwen3moe", "mamba", "lfm2", "qwen35", "gemma3", "deepseek2"])
def test_every_way_of_keeping_a_cache_gives_statistics_of_every_token(tmp_path: Path, architecture: str) -> None:
    model = write_tiny(tmp_path / "model.gguf", architecture)
    made = make(model, tmp_path / "imatrix.gguf", chunks=2)
    header = read_header(model)
    matrices = {t.name: t for t in header.tensors if t.name.startswith("blk.") and len(t.shape) > 1}
    found = imatrix_file.read(tmp_path / "imatrix.gguf")
    assert found.means.keys() <= matrices.keys()
    assert len(found.means) > len(matrices) / 2
    for name in found.means:
        counts = tensor(tmp_path / "imatrix.gguf", f"{name}.counts").ravel()
        n_used = 2 if "exps" in name else 1  # experts of a token
        assert counts.sum() == 2 * N_CTX * n_used, name
    assert imatrix.check(tmp_path / "imatrix.gguf", read_header(model), ("Q4_K_M",)) is not None
    assert made.perplexity is not None


def test_an_interrupted_run_goes_on_and_gives_the_same_bits(tmp_path: Path, llama: Path) -> None:
    make(llama, tmp_path / "whole.gguf", chunks=6)

    class Stop(Exception): ...

    def stop(event: Mapping[str, Any]) -> None:
        if event["chunk"] == 3:
            raise Stop

    with pytest.raises(Stop):
        make(llama, tmp_path / "cut.gguf", chunks=6, on_chunk=stop, save_s=0.0)
    assert not (tmp_path / "cut.gguf").exists()
    made = make(llama, tmp_path / "cut.gguf", chunks=6)
    assert made.resumed >= 3
    assert (tmp_path / "cut.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.gguf", "cut.gguf"}


def test_a_state_of_another_text_or_a_damaged_one_is_not_gone_on_from(tmp_path: Path, llama: Path) -> None:
    make(llama, tmp_path / "other.gguf", chunks=2, text=TEXT[::-1])
    for content in ((tmp_path / "other.gguf").read_bytes(), b"GGUF\0\0"):
        files.beside(tmp_path / "made.gguf", "partial").write_bytes(content)
        assert make(llama, tmp_path / "made.gguf", chunks=2).resumed == 0
        (tmp_path / "made.gguf").unlink()


def test_what_cannot_be_collected_is_one_sentence_and_leaves_nothing(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(EngineJobError, match=r"too short: it has \d+ tokens, and one chunk takes 64: give more text"):
        make(llama, tmp_path / "out.gguf", text="too short")
    damaged = tmp_path / "damaged.gguf"
    data, header = bytearray(llama.read_bytes()), read_header(llama)
    hurt = next(t for t in header.tensors if t.name == "blk.0.attn_v.weight")
    at = header.data_offset + hurt.offset
    data[at : at + hurt.n_bytes] = np.full(hurt.n_bytes // 4, np.nan, "<f4").tobytes()
    damaged.write_bytes(data)
    with pytest.raises(EngineJobError, match=r"multiplied with blk\.0\.attn_output\.weight is NaN .* \(chunk 1\)"):
        make(damaged, tmp_path / "out.gguf")
    encoder = write_tiny(tmp_path / "encoder.gguf", "bert")
    with pytest.raises(BadImatrix, match="has an encoder"):
        make(encoder, tmp_path / "out.gguf")
    (tmp_path / "out.gguf").touch()
    with pytest.raises(ExportError, match="exists"):
        make(llama, tmp_path / "out.gguf")
    assert not list(tmp_path.glob(".*"))


def test_a_matrix_of_another_model_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    first, second = (write_tiny(tmp_path / f"{seed}.gguf", "llama", seed=seed) for seed in (1, 2))
    make(first, tmp_path / "imatrix.gguf", chunks=1)
    assert imatrix.check(tmp_path / "imatrix.gguf", read_header(first), ("Q2_K",)) == []
    assert imatrix.fingerprint_of(read_header(first)) is not None
    with pytest.raises(ExportError, match=r"made of another model \(tiny\)"):
        imatrix.check(tmp_path / "imatrix.gguf", read_header(second), ("Q2_K",))


def test_a_models_fingerprint_is_the_same_in_every_type(tmp_path: Path) -> None:
    to_gguf(tiny_model(tmp_path / "tiny", "llama"), tmp_path / "half.gguf")
    engine_jobs.quantise(tmp_path / "half.gguf", tmp_path / "small.gguf", "Q8_0")
    prints = {imatrix.fingerprint_of(read_header(tmp_path / name)) for name in ("half.gguf", "small.gguf")}
    assert len(prints) == 1
    assert None not in prints


def collected(path: Path, changes: Mapping[str, tuple[Any, Any]]) -> Path:
    """A matrix of the tiny llama, of whose entries some are as given, or gone."""
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    sums: dict[str, Any] = {
        f"blk.{layer}.{name}.weight": np.full((1, 128 if name == "ffn_down" else 64), 4.0, np.float32)
        for layer in range(2)
        for name in names
    }
    counts: dict[str, Any] = {name: np.ones(1, np.float32) for name in sums}
    for name, (changed, number) in changes.items():
        if changed is None:
            del sums[name], counts[name]
        else:
            sums[name], counts[name] = np.array([changed], np.float32), np.array([number], np.float32)
    facts = {"model": "m", "fingerprint": None, "datasets": []}
    imatrix_file.write_state(path, Collected(sums, counts, 64, 1, 0.0, 0, "key"), facts)
    return path


@pytest.mark.parametrize(
    ("values", "count", "sentence"),
    [
        ([float("nan")] * 64, 1, "negative, infinite or NaN"),
        ([-1.0] * 64, 1, "negative, infinite or NaN"),
        ([1.0] * 64, float("inf"), "negative, infinite or NaN"),
        ([0.0] * 64, 0, "has seen nothing of blk.0.attn_q.weight"),
    ],
)
def test_numbers_that_no_run_gives_are_refused(
    tmp_path: Path, llama: Path, values: list[float], count: float, sentence: str
) -> None:
    path = collected(tmp_path / "i.gguf", {"blk.0.attn_q.weight": (values, count)})
    with pytest.raises(BadImatrix, match=sentence):
        imatrix.check(path, read_header(llama), ("Q4_0",))


def test_what_a_matrix_lacks_is_told_or_refused_where_a_type_needs_it(tmp_path: Path, llama: Path) -> None:
    path = collected(tmp_path / "i.gguf", {"blk.1.ffn_up.weight": (None, 0)})
    (remark,) = imatrix.check(path, read_header(llama), ("Q4_0",))
    assert "nothing on 1 of 14 matrices (blk.1.ffn_up.weight)" in remark
    with pytest.raises(ExportError, match=r"has nothing on blk\.1\.ffn_up\.weight .*, which IQ2_XS needs"):
        imatrix.check(path, read_header(llama), ("Q4_0", "IQ2_XS"))


def test_experts_that_were_never_chosen_count_alike_and_are_told(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model.gguf", "qwen3moe")
    make(model, tmp_path / "i.gguf", chunks=1)
    path, header = tmp_path / "i.gguf", read_header(tmp_path / "i.gguf")
    data = bytearray(path.read_bytes())
    name = "blk.0.ffn_up_exps.weight"
    for suffix, n_bytes in ((".in_sum2", 4 * 64), (".counts", 4)):  # of the first expert
        found = next(t for t in header.tensors if t.name == name + suffix)
        at = header.data_offset + found.offset
        data[at : at + n_bytes] = bytes(n_bytes)
    path.write_bytes(data)
    assert (imatrix_file.read(path).means[name][0] == 1).all()
    (remark,) = (remark for remark in imatrix.check(path, read_header(model), ("Q4_0",)) if "never seen" in remark)
    assert name in remark or "more: their columns" in remark


def test_llama_cpps_older_format_is_read(tmp_path: Path, llama: Path) -> None:
    whole = collected(tmp_path / "i.gguf", {})
    entries = []
    for name, mean in imatrix_file.read(whole).means.items():
        values = (mean.ravel() * 3).astype("<f4")
        head = struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, len(values))
        entries.append(head + values.tobytes())
    old = tmp_path / "imatrix.dat"
    old.write_bytes(struct.pack("<i", len(entries)) + b"".join(entries) + struct.pack("<ii", 3, 0))
    assert imatrix.check(old, read_header(llama), ("IQ2_XS",)) == []
    for name, mean in imatrix_file.read(whole).means.items():
        assert np.array_equal(imatrix_file.read(old).means[name], mean)
    for data in (b"", b"no matrix at all", old.read_bytes()[:500], struct.pack("<ii", 2**30, 2**30) * 9):
        old.write_bytes(data)
        with pytest.raises(BadImatrix, match="is no importance matrix"):
            imatrix_file.read(old)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model whose rows are whole blocks of every type."""
    folder = tiny_model(tmp_path_factory.mktemp("wide") / "wide", "llama")
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": 256, "intermediate_size": 512}
    config["vocab_size"] = small_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, random_weights(config))
    return folder


def test_the_types_that_need_a_matrix_are_those_that_llama_cpp_refuses_without(tmp_path: Path, wide: Path) -> None:
    to_gguf(wide, tmp_path / "half.gguf")
    refused = []
    for quant in engine_jobs.QUANTS:
        if quant[:3] in ("IQ1", "IQ2", "IQ3", "IQ4", "Q2_", "Q3_"):
            try:
                engine_jobs.quantise(tmp_path / "half.gguf", tmp_path / "out.gguf", quant)
            except EngineJobError:
                refused.append(quant)
    assert sorted(refused) == sorted(imatrix.NEEDY)


def test_from_a_text_to_a_type_that_needs_it(tmp_path: Path, wide: Path) -> None:
    target = resolve(str(wide))
    plain = Request(target, None, Options(("F16",)), tmp_path / "plain", verify=False)
    pipeline.export(plain, lambda event: None)
    make(tmp_path / "plain" / "wide-F16.gguf", tmp_path / "i.gguf", chunks=4)
    options = Options(("IQ2_S", "Q4_K_M"), imatrix=sha256_of(tmp_path / "i.gguf"))
    asked = replace(plain, options=options, output=tmp_path / "small", imatrix=tmp_path / "i.gguf")
    pipeline.export(asked, lambda event: None)
    assert read_header(tmp_path / "small" / "wide-IQ2_S.gguf").quantisation == "IQ2_S"
    events: list[Any] = []
    with pytest.raises(ExportError, match="IQ2_S needs an importance matrix: `edgellm imatrix MODEL --text FILE`"):
        pipeline.export(replace(plain, options=Options(("IQ2_S",)), output=tmp_path / "no"), events.append)
    with pytest.raises(ExportError, match="--imatrix is the target's: choose another --draft-quant"):
        pipeline.export(replace(asked, draft=target, output=tmp_path / "no"), events.append)
    assert not events
    assert not (tmp_path / "no").exists()


def edgellm(*arguments: object, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgellm.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, input=stdin, timeout=120)


def test_the_command_reads_files_and_stdin_and_tells_what_it_made(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    done = edgellm(
        "imatrix", llama, "--text", "a.txt", "--text", "-", "--ctx", 64, "--max-tokens", 200, "--threads", 1, "--json",
        cwd=tmp_path, stdin=TEXT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["path"], report["n_chunks"], report["n_tokens"]) == ("llama-imatrix.gguf", 3, 192)
    assert report["sha256"] == sha256_of(tmp_path / "llama-imatrix.gguf")
    assert read_header(tmp_path / "llama-imatrix.gguf").array("imatrix.datasets") == [b"a.txt", b"stdin"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["{model}", "--text", "latin.txt"], 2, "is no UTF-8 text (byte 3)"),
        (["{model}", "--text", "missing.txt"], 1, "No such file"),
        (["{model}", "--text", "a.txt", "--max-tokens", "50"], 2, "less than one chunk of 512"),
        ([".", "--text", "a.txt"], 1, "is a checkpoint: `edgellm export . --quant F16`"),
    ],
)
def test_what_the_command_cannot_use_is_one_sentence(
    tmp_path: Path, llama: Path, arguments: list[str], code: int, sentence: str
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "config.json").write_text("{}")
    done = edgellm("imatrix", *(argument.format(model=llama) for argument in arguments), cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert sentence in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
