"""A drafter that learnt its target is exported with what it learnt: to the bit, in other types, and to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_model
from draft_adapters import write_adapter
from numpy.typing import NDArray
from typer.testing import CliRunner

from edgellm.app import adapted_drafts
from edgellm.app.export_options import BadOption
from edgellm.cli.main import app
from edgellm.export import bundle, manifest
from edgellm.export.convert import engine_jobs
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.lora.adapted_drafts import AdaptedDraft
from edgellm.export.obtain.source import ModelSource
from edgellm.export.read.facts import UnsupportedModel
from edgellm.memory.draft_adapter import AdapterFile, quantised_matrix
from edgellm.memory.files import sha256_of
from edgellm.memory.folders import home
from edgellm.memory.gguf import read_header

FAMILIES = ("llama", "qwen2", "gemma3")  # pairs of rows in llama.cpp; biases; another norm


def quantised(folder: Path, name: str = "draft.gguf") -> Path:
    """The GGUF file of a checkpoint, in a type that adapters change."""
    to_gguf(folder, folder.parent / "whole.gguf")
    engine_jobs.quantise(folder.parent / "whole.gguf", folder.parent / name, "Q4_1")
    return folder.parent / name


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    return quantised(tiny_model(tmp_path / "draft-model", "llama"))


@pytest.fixture
def adapter(tmp_path: Path, draft: Path) -> Path:
    return write_adapter(tmp_path / "learnt.adapter", draft, 0.2)


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Any]:
    tiny_model(tmp_path / "target-model", "llama")

    def run(*options: object) -> Any:
        command = ["export", tmp_path / "target-model", "-o", tmp_path / "out", "--quant", "F16", *options]
        return CliRunner().invoke(app, [*map(str, command), "--no-verify", "--json"])

    return run


def matrix(path: Path, name: str = "blk.0.ffn_down.weight") -> NDArray[np.float32]:
    header = read_header(path)
    info = next(tensor for tensor in header.tensors if tensor.name == name)
    if info.type == "F32":
        data = np.fromfile(path, "<f4", info.n_bytes // 4, offset=header.data_offset + info.offset)
        return data.reshape(info.shape[1], info.shape[0])
    return quantised_matrix(header, info).dense()


def distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_the_file_itself_is_changed_where_no_other_type_is_asked_for(
    export: Callable[..., Any], tmp_path: Path, draft: Path, adapter: Path
) -> None:
    done = export("--draft", draft, "--adapter", adapter)
    assert done.exit_code == 0, done.output
    made = manifest.verify(tmp_path / "out")
    assert made.document["draft"]["adapter"]["sha256"] == sha256_of(adapter)
    assert made.document["draft"]["adapter"]["base"] == sha256_of(draft)
    assert made.document["draft"]["adapter"]["record"]["n_tokens"] == 12_345
    assert made.options["draft_adapter"] == sha256_of(adapter)
    exported = tmp_path / "out" / "draft-draft-Q4_1.gguf"
    assert exported.stat().st_size == draft.stat().st_size
    AdaptedDraft(AdapterFile.read(adapter), draft).write(tmp_path / "expected.gguf")
    assert exported.read_bytes() == (tmp_path / "expected.gguf").read_bytes()
    packed = bundle.pack(tmp_path / "out", tmp_path / "assets")
    assert packed.document["draft"]["adapter"]["sha256"] == sha256_of(adapter)
    assert (tmp_path / "assets" / exported.name).read_bytes() == exported.read_bytes()
    assert export("--draft", draft, "--adapter", adapter).exit_code == 0  # it is done


def test_another_type_is_made_of_what_was_learnt_and_what_rounds_it_away_says_so(
    export: Callable[..., Any], tmp_path: Path, draft: Path, adapter: Path
) -> None:
    done = export("--draft", draft, "--adapter", adapter, "--draft-quant", "Q8_0,Q4_0")
    assert done.exit_code == 0, done.output
    AdaptedDraft(AdapterFile.read(adapter), draft).write(tmp_path / "expected.gguf")
    found = matrix(tmp_path / "out" / "draft-draft-Q8_0.gguf")
    assert distance(found, matrix(tmp_path / "expected.gguf")) < 0.01
    assert distance(found, matrix(draft)) > 0.1
    (remark,) = manifest.read(tmp_path / "out").document["draft"]["remarks"]
    assert remark == "Q4_0 rounds away much of what the drafter learnt: Q4_1, as it is, and Q8_0 keep it"


def test_an_adapter_of_another_file_is_refused_before_anything_is_made(
    export: Callable[..., Any], tmp_path: Path, draft: Path
) -> None:
    other = write_adapter(tmp_path / "other.adapter", quantised(tiny_model(tmp_path / "m" / "other", "qwen2")))
    done = export("--draft", draft, "--adapter", other)
    assert isinstance(done.exception, BadOption) or done.exit_code == 2
    assert "was made for another file" in done.output
    done = export("--draft", tmp_path / "draft-model", "--adapter", other)
    assert done.exit_code == 2
    assert "changes one GGUF file of tiny-drafter" in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_name_of_the_catalogue_stands_for_its_file_of_that_hash(
    export: Callable[..., Any], tmp_path: Path, draft: Path, adapter: Path, catalogue: Callable[..., None]
) -> None:
    files = [
        {"quant": quant, "filename": f"{quant}.gguf", "sha256": sha256, "sources": [{"hf": "us/tiny"}]}
        for quant, sha256 in (("Q8_0", "0" * 64), ("Q4_1", sha256_of(draft)))
    ]
    catalogue({"name": "tiny-drafter", "files": files})
    pulled = home() / "models" / "tiny-drafter" / "Q4_1.gguf"
    pulled.parent.mkdir(parents=True)
    pulled.write_bytes(draft.read_bytes())
    done = export("--draft", "tiny-drafter", "--adapter", adapter)
    assert done.exit_code == 0, done.output
    assert manifest.read(tmp_path / "out").document["draft"]["adapter"]["base"] == sha256_of(draft)
    assert adapted_drafts.of_checkpoint(adapter).base == pulled
    other = write_adapter(tmp_path / "other.adapter", quantised(tiny_model(tmp_path / "m" / "other", "qwen2")))
    with pytest.raises(BadOption, match="is not on this machine"):
        adapted_drafts.of_checkpoint(other)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_gets_the_matrices_of_the_file_with_the_adapter(tmp_path: Path, family: str) -> None:
    """Converted again, every matrix is that of the file: rows are where llama.cpp has them, and all else is kept."""
    folder = tiny_model(tmp_path / "model", family)
    base = quantised(folder)
    adapted = AdaptedDraft(AdapterFile.read(write_adapter(tmp_path / "a.adapter", base, 0.2)), base)
    adapted.write_checkpoint(ModelSource("model", folder), tmp_path / "adapted")
    assert json.loads((tmp_path / "adapted" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    to_gguf(tmp_path / "adapted", tmp_path / "again.gguf", float_type="F32")
    to_gguf(folder, tmp_path / "plain.gguf", float_type="F32")
    adapted.write(tmp_path / "merged.gguf")
    changed = {"blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.1.ffn_down.weight"}
    for name in changed:
        assert distance(matrix(tmp_path / "again.gguf", name), matrix(tmp_path / "merged.gguf", name)) < 1e-6
    plain, again = (matrix(tmp_path / f"{name}.gguf", "token_embd.weight") for name in ("plain", "again"))
    assert (plain == again).all()
    assert not list(tmp_path.glob("adapted.gguf"))


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path, draft: Path, adapter: Path) -> None:
    adapted = AdaptedDraft(AdapterFile.read(adapter), draft)
    other = tiny_model(tmp_path / "other", "qwen2")
    with pytest.raises(UnsupportedModel, match=r"was not made of other|as draft\.gguf has it"):
        adapted.write_checkpoint(ModelSource("other", other), tmp_path / "adapted")
