"""The whole way, on tiny models: one folder that appears at once, can be checked, repeated and packed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_model

from edgellm.app.evaluation import tabulate
from edgellm.export import bundle, manifest, pipeline
from edgellm.export.convert import engine_jobs
from edgellm.export.convert.gguf_copy import raw_entries
from edgellm.export.convert.gguf_writer import PlannedTensor, string, u32, write_gguf
from edgellm.export.convert.trim import TrimError, trim_vocabulary
from edgellm.export.manifest import ManifestError
from edgellm.export.obtain.source import resolve
from edgellm.export.read.facts import UnsupportedModel
from edgellm.export.request import Options, Request
from edgellm.export.staging import ExportError
from edgellm.memory.files import sha256_of
from edgellm.memory.gguf import TensorInfo, read_header
from edgellm.runtime.bringup.load import load

N_KILLS = int(os.environ.get("EDGELLM_TEST_KILLS", "6"))  # 100 for the long run


def request(folder: Path, *, draft: bool = False, **options: Any) -> Request:
    target = folder / "target-model"
    if not target.exists():
        tiny_model(target, "llama")
        tiny_model(folder / "draft-model", "qwen2")
    drafter = resolve(str(folder / "draft-model")) if draft else None
    settings = Options(**{"quants": ("Q8_0", "F16"), **options})
    return Request(resolve(str(target)), drafter, settings, folder / "out", verify=False)


def ignore(_: object) -> None:
    pass


def test_a_model_and_its_drafter_become_one_checked_folder(tmp_path: Path) -> None:
    events: list[Any] = []
    made = pipeline.export(request(tmp_path, draft=True), events.append)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    models = ["draft-draft-model-F16", "draft-draft-model-Q8_0", "target-model-F16", "target-model-Q8_0"]
    assert names == sorted([*(f"{name}.gguf" for name in models), "edgellm.json"])
    assert [entry["role"] for entry in made.files()] == ["target", "target", "draft", "draft"]
    assert read_header(tmp_path / "out" / "target-model-Q8_0.gguf").quantisation == "Q8_0"
    assert manifest.verify(tmp_path / "out").document == made.document
    assert {event["step"] for event in events} == {"convert", "quantise"}
    assert not list(tmp_path.glob(".*"))


def test_repeating_an_export_finds_it_done_and_another_one_does_not_overwrite_it(tmp_path: Path) -> None:
    first = pipeline.export(request(tmp_path), ignore)
    assert pipeline.export(request(tmp_path), ignore).document == first.document
    with pytest.raises(ExportError, match="remove it, or choose another --output"):
        pipeline.export(request(tmp_path, quants=("Q4_0",)), ignore)


def test_a_locked_export_repeats_every_bit_or_says_what_changed(tmp_path: Path) -> None:
    there = pipeline.export(request(tmp_path), ignore)
    (tmp_path / "out" / "target-model-Q8_0.gguf").unlink()  # as where only the manifest is under version control
    assert pipeline.reproduce(request(tmp_path), there, ignore) == []
    manifest.verify(tmp_path / "out")
    weights = tmp_path / "target-model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    differences = pipeline.reproduce(request(tmp_path), there, ignore)
    assert "the target's model.safetensors has changed" in differences
    assert "target-model-F16.gguf comes out otherwise" in differences


def test_a_changed_missing_or_shortened_file_is_found(tmp_path: Path) -> None:
    pipeline.export(request(tmp_path), ignore)
    path = tmp_path / "out" / "target-model-Q8_0.gguf"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ManifestError, match="is not the file that was exported"):
        manifest.verify(tmp_path / "out")
    path.write_bytes(whole[:-1])
    with pytest.raises(ManifestError, match="where the manifest says"):
        manifest.verify(tmp_path / "out")
    path.unlink()
    with pytest.raises(ManifestError, match="is missing"):
        manifest.verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"quants": [7]}, "quants"), ({"format": "onnx"}, "format"), ({"keep_vocab": "all"}, "keep_vocab")],
)
def test_options_that_repeat_nothing_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ManifestError, match=f"repeated with {named} "):
        Options.of(options)


@pytest.mark.parametrize("name", ["../evil.gguf", "/etc/passwd", "..", "a/../../b", "a//b", "a/./b"])
def test_a_manifest_cannot_name_a_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    pipeline.export(request(tmp_path), ignore)
    path = tmp_path / "out" / manifest.NAME
    document = json.loads(path.read_text())
    document["files"][0]["path"] = name
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match="outside its folder"):
        manifest.verify(tmp_path / "out")


def test_a_bundle_holds_one_type_of_each_and_is_the_same_to_the_bit(tmp_path: Path) -> None:
    pipeline.export(request(tmp_path, draft=True), ignore)
    packed = bundle.pack(tmp_path / "out", tmp_path / "assets", quant="F16")
    assert [(entry["role"], entry["quant"]) for entry in packed.files()] == [("target", "F16"), ("draft", "Q8_0")]
    assert manifest.verify(tmp_path / "assets").document == packed.document
    for name in ("a.tar", "b.tar"):
        bundle.pack(tmp_path / "out", tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    manifest.verify(tmp_path / "unpacked")
    with pytest.raises(ManifestError, match="no target of type Q2_K; it has Q8_0, F16"):
        bundle.pack(tmp_path / "out", tmp_path / "other", quant="Q2_K")


@pytest.mark.parametrize("name", ["app.tar.gz", "app.tgz", "app.zip"])
def test_an_archive_is_of_the_kind_that_its_name_says(tmp_path: Path, name: str) -> None:
    pipeline.export(request(tmp_path), ignore)
    made = bundle.pack(tmp_path / "out", tmp_path / name)
    bundle.pack(tmp_path / "out", tmp_path / f"again-{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()
    shutil.unpack_archive(tmp_path / name, tmp_path / "unpacked", filter=None if name.endswith("zip") else "data")
    assert manifest.verify(tmp_path / "unpacked").document == made.document
    assert not list(tmp_path.glob(".*"))


def test_a_manifest_that_names_no_files_is_no_proof_of_any(tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_text(json.dumps({"format": 1, "options": {}, "files": []}))
    with pytest.raises(ManifestError, match="names no files"):
        manifest.verify(tmp_path)


def importances(path: Path, widths: dict[str, int]) -> Path:
    """An importance matrix as llama.cpp's own tool writes it."""
    tensors = []
    for name, width in widths.items():
        sums, counts = struct.pack(f"<{width}f", *range(1, width + 1)), struct.pack("<f", 4.0)
        tensors.append(PlannedTensor(f"{name}.in_sum2", (width, 1), "F32", lambda data=sums: [data]))  # type: ignore[misc]
        tensors.append(PlannedTensor(f"{name}.counts", (1, 1), "F32", lambda data=counts: [data]))  # type: ignore[misc]
    write_gguf(path, {"general.type": string("imatrix")}, tensors)
    return path


@pytest.mark.parametrize(
    ("widths", "sentence"),
    [
        ({"blk.0.attn_q.weight": 64, "model.layers.0.q.weight": 64}, "1 of its 2 matrices, model.layers.0.q.weight"),
        ({"blk.0.attn_q.weight": 128}, "are not in .* or are of another width"),
        ({}, "is an importance matrix of nothing"),
    ],
)
def test_an_importance_matrix_of_another_model_is_refused(
    tmp_path: Path, widths: dict[str, int], sentence: str
) -> None:
    imatrix = importances(tmp_path / "other.gguf", widths)
    asked = replace(request(tmp_path, quants=("Q8_0",), imatrix=sha256_of(imatrix)), imatrix=imatrix)
    with pytest.raises(ExportError, match=sentence):
        pipeline.export(asked, ignore)


def test_a_disk_that_fills_up_while_quantising_is_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise engine_jobs.EngineJobError("llama.cpp failed on quantising a to Q8_0 (basic_ios::clear: iostream error)")

    monkeypatch.setattr(engine_jobs, "events", fill)
    with pytest.raises(OSError, match="No space left on device"):
        pipeline.export(request(tmp_path, quants=("Q8_0",)), ignore)


def test_a_name_that_begins_like_another_leaves_its_unfinished_work_alone(tmp_path: Path) -> None:
    unfinished = [tmp_path / f".{name}.0123456789abcdef.partial" for name in ("out.5", "out", "[out]")]
    for folder in unfinished:
        folder.mkdir()
    pipeline.export(request(tmp_path), ignore)
    assert [folder.exists() for folder in unfinished] == [True, False, True]


def test_two_processes_that_make_the_same_folder_make_it_once_and_leave_no_lock(tmp_path: Path) -> None:
    tiny_model(tmp_path / "target-model", "llama")
    command = [sys.executable, "-m", "edgellm.cli", "export", "target-model", "--quant", "F16,BF16", "--no-verify"]
    both = [
        subprocess.Popen([*command, "-o", name], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for name in ("out", "./sub/../out", "out.5")
    ]
    (tmp_path / "sub").mkdir()
    told = [(child.communicate()[1], child.returncode) for child in both]
    assert [code for _, code in told] == [0, 0, 0], told
    manifest.verify(tmp_path / "out")
    manifest.verify(tmp_path / "out.5")
    assert not list(tmp_path.glob(".*"))


def test_the_output_of_a_folder_named_by_a_dot_is_named_after_it(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    command = [sys.executable, "-m", "edgellm.cli", "export", ".", "--quant", "F16", "--no-verify"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    manifest.verify(folder / "tiny-export")


def test_what_llama_cpp_does_otherwise_is_said_and_kept_in_the_manifest(tmp_path: Path) -> None:
    asked = request(tmp_path)
    config = json.loads((tmp_path / "target-model" / "config.json").read_text())
    changes = {"architectures": ["MistralForCausalLM"], "sliding_window": 1024, "max_position_embeddings": 4096}
    (tmp_path / "target-model" / "config.json").write_text(json.dumps(config | changes))
    events: list[Any] = []
    made = pipeline.export(replace(asked, target=resolve(str(tmp_path / "target-model"))), events.append)
    (remark,) = made.document["target"]["remarks"]
    assert "states a context of 1024 tokens" in remark
    assert remark in [event.get("text") for event in events]


def test_what_a_drafter_reads_with_and_the_table_of_its_pair_are_packed_and_repeated_too(tmp_path: Path) -> None:
    asked = request(tmp_path, draft=True, keep_vocab=0.9, quants=("Q8_0", "F16"))
    asked = replace(asked, tabulate=tabulate)
    made = pipeline.export(asked, ignore)
    extra = {entry["role"]: entry["path"] for entry in made.files() if entry["role"] not in {"target", "draft"}}
    assert extra == {"words": "draft-draft-model-words.gguf", "table": "draft-draft-model.pair"}
    with load(
        *(tmp_path / "out" / name for name in ("target-model-Q8_0.gguf", "draft-draft-model-F16.gguf"))
    ) as engine:
        assert engine.table is not None
        assert engine.draft_model is not None
        assert engine.draft_model.vocabulary.n_tokens == made.document["draft"]["trimmed"]["n_vocab_before"]
    packed = bundle.pack(tmp_path / "out", tmp_path / "assets")
    assert {entry["path"] for entry in packed.files()} > set(extra.values())
    assert pipeline.reproduce(asked, made, ignore) == []
    alone = replace(request(tmp_path, draft=True, keep_vocab=0.9, trim_input=True), output=tmp_path / "alone")
    assert {entry["role"] for entry in pipeline.export(alone, ignore).files()} == {"target", "draft"}


def test_a_smaller_drafter_is_judged_beside_the_whole_one_of_its_type(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def judge(target: Path, draft: Path, *, measure: bool) -> dict[str, Any]:
        header = read_header(draft)
        seen.append((header.quantisation, header.metadata["tokenizer.ggml.tokens"].n_items))
        return {"n": len(seen)}

    asked = replace(request(tmp_path, draft=True, keep_vocab=0.9, quants=("Q8_0",)), judge=judge)
    made = pipeline.export(asked, ignore)
    assert made.document["pair"] == {"exported": {"n": 1}, "before": {"n": 2}}
    assert [quant for quant, _ in seen] == ["Q8_0", "Q8_0"]
    assert seen[0][1] < seen[1][1] == 304
    assert not list((tmp_path / "out").glob("*before*"))


def test_a_drafter_can_lose_layers_and_tokens(tmp_path: Path) -> None:
    made = pipeline.export(request(tmp_path, draft=True, drop_layers=(1,), keep_vocab=0.9, quants=("Q8_0",)), ignore)
    header = read_header(tmp_path / "out" / "draft-draft-model-Q8_0.gguf")
    assert header.hparam("block_count") == 1
    trimmed = made.document["draft"]["trimmed"]
    assert trimmed["n_vocab"] < trimmed["n_vocab_before"] == 304
    with pytest.raises(ExportError, match="has layers 0 to 1"):
        pipeline.export(replace(request(tmp_path, draft=True, drop_layers=(2,)), output=tmp_path / "other"), ignore)


def test_a_draft_head_inside_a_file_is_kept_and_reported_and_one_of_another_kind_is_refused(tmp_path: Path) -> None:
    pipeline.export(request(tmp_path, quants=("F16",)), ignore)
    plain = tmp_path / "out" / "target-model-F16.gguf"
    header = read_header(plain)
    data = plain.read_bytes()
    tensors = [
        PlannedTensor(tensor.name, tensor.shape, tensor.type, partial(part_of, data, header.data_offset, tensor))
        for tensor in header.tensors
    ]
    entries = dict(raw_entries(plain))
    write_gguf(tmp_path / "mtp.gguf", entries | {"llama.nextn_predict_layers": u32(1)}, tensors)
    asked = replace(request(tmp_path, quants=("Q8_0",)), target=resolve(str(tmp_path / "mtp.gguf")))
    made = pipeline.export(replace(asked, output=tmp_path / "mtp"), ignore)
    assert made.document["target"]["draft_head_layers"] == 1
    assert read_header(tmp_path / "mtp" / "mtp-Q8_0.gguf").hparam("nextn_predict_layers") == 1
    with pytest.raises(TrimError, match="draft head of its own"):
        trim_vocabulary(tmp_path / "mtp.gguf", tmp_path / "trimmed.gguf", [0])
    config = tmp_path / "draft-model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["LlamaForCausalLMEagle3"]}))
    with pytest.raises(UnsupportedModel, match="cannot draft alone"):
        pipeline.export(replace(request(tmp_path, draft=True), output=tmp_path / "eagle"), ignore)


def part_of(data: bytes, start: int, tensor: TensorInfo) -> list[bytes]:
    return [data[start + tensor.offset : start + tensor.offset + tensor.n_bytes]]


def test_killed_at_any_moment_an_export_leaves_no_damaged_folder_and_goes_on(tmp_path: Path) -> None:
    """SIGKILL at random moments."""
    tiny_model(tmp_path / "target-model", "llama")
    command = [sys.executable, "-m", "edgellm.cli", "export", "target-model", "--quant", "Q8_0,Q4_0,F16", "-o", "out"]
    started = time.monotonic()
    subprocess.run([*command, "--no-verify"], cwd=tmp_path, check=True, capture_output=True)
    whole_s = time.monotonic() - started
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    n_killed = 0
    rng = random.Random(7)
    for _ in range(N_KILLS):
        for path in (tmp_path / "out").glob("*"):
            path.unlink()
        if (tmp_path / "out").exists():
            (tmp_path / "out").rmdir()
        child = subprocess.Popen(
            [*command, "--no-verify"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            child.wait(rng.uniform(0.1, whole_s))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            n_killed += 1
        child.communicate()
        if (tmp_path / "out").exists():
            manifest.verify(tmp_path / "out")
    subprocess.run([*command, "--no-verify"], cwd=tmp_path, check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected
    assert n_killed
