"""llama.cpp's quantiser behind our door: types, progress, importance, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import random_weights, small_tokenizer, tiny_model, write_weights

from edgellm.export import pipeline
from edgellm.export.convert import engine_jobs
from edgellm.export.convert.engine_jobs import EngineJobError, quantise
from edgellm.export.convert.gguf_writer import PlannedTensor, f32s, string, write_gguf
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.convert.script import Converter
from edgellm.export.environments import ExporterError
from edgellm.export.obtain.source import resolve
from edgellm.export.request import Options, Request
from edgellm.memory.files import sha256_of
from edgellm.memory.gguf import read_header


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are whole blocks of every type."""
    folder = tmp_path_factory.mktemp("quantise")
    tiny_model(folder / "model", "llama")
    config = json.loads((folder / "model" / "config.json").read_text()) | {"hidden_size": 256, "intermediate_size": 512}
    config["vocab_size"] = small_tokenizer(folder / "model")
    (folder / "model" / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model", random_weights(config))
    to_gguf(folder / "model", folder / "half.gguf")
    return folder / "half.gguf"


@pytest.mark.parametrize("quant", ["Q4_K_M", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0"])
def test_the_usual_types_come_out_smaller_close_and_the_same_twice(tmp_path: Path, half: Path, quant: str) -> None:
    seen: list[tuple[int, int]] = []
    quantise(half, tmp_path / "a.gguf", quant, on_tensor=lambda done, total: seen.append((done, total)))
    quantise(half, tmp_path / "b.gguf", quant)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert read_header(tmp_path / "a.gguf").quantisation == quant
    assert read_header(tmp_path / "a.gguf").tensor_bytes < read_header(half).tensor_bytes * 0.6
    n_tensors = len(read_header(half).tensors)
    assert seen[-1] == (n_tensors, n_tensors)
    tokens = list(range(20))
    before, after = engine_jobs.logits(half, tokens), engine_jobs.logits(tmp_path / "a.gguf", tokens)
    assert np.linalg.norm(after - before) < 0.3 * np.linalg.norm(before)


def test_the_head_can_have_a_type_of_its_own(tmp_path: Path, half: Path) -> None:
    quantise(half, tmp_path / "plain.gguf", "Q8_0")
    quantise(tmp_path / "plain.gguf", tmp_path / "light.gguf", "Q8_0", head="Q4_0", requantise=True)
    before, after = read_header(tmp_path / "plain.gguf"), read_header(tmp_path / "light.gguf")
    changed = {a.name: b.type for a, b in zip(before.tensors, after.tensors, strict=True) if a.type != b.type}
    assert changed == {"token_embd.weight": "Q4_0", "output.weight": "Q4_0"}
    with pytest.raises(EngineJobError, match="no known type"):
        quantise(half, tmp_path / "out.gguf", "Q8_0", head="Q4_K_M")  # a file's type, not a matrix's


def test_an_importance_matrix_changes_what_is_kept_exact(tmp_path: Path, half: Path) -> None:
    rng, tensors = np.random.default_rng(1), []
    for tensor in read_header(half).tensors:
        if len(tensor.shape) == 2:
            sums = rng.uniform(0, 100, tensor.shape[0]).astype("<f4").tobytes()
            shape = (tensor.shape[0], 1)
            tensors.append(PlannedTensor(f"{tensor.name}.in_sum2", shape, "F32", lambda sums=sums: [sums]))
            one = np.ones(1, "<f4").tobytes()
            tensors.append(PlannedTensor(f"{tensor.name}.counts", (1, 1), "F32", lambda one=one: [one]))
    write_gguf(tmp_path / "imatrix.gguf", {"general.type": string("imatrix"), "x": f32s([1.0])}, tensors)
    quantise(half, tmp_path / "plain.gguf", "Q4_0")
    quantise(half, tmp_path / "important.gguf", "Q4_0", imatrix=tmp_path / "imatrix.gguf")
    assert (tmp_path / "plain.gguf").read_bytes()[-100_000:] != (tmp_path / "important.gguf").read_bytes()[-100_000:]


def test_what_llama_cpp_refuses_is_one_sentence_and_leaves_nothing(tmp_path: Path, half: Path) -> None:
    with pytest.raises(EngineJobError, match="no known type"):
        quantise(half, tmp_path / "out.gguf", "Q9_X")
    with pytest.raises(EngineJobError, match="failed on quantising"):
        quantise(half, tmp_path / "out.gguf", "IQ2_XXS")  # needs an importance matrix
    (tmp_path / "broken.gguf").write_bytes(half.read_bytes()[:5000])
    with pytest.raises(EngineJobError, match="failed on quantising"):
        quantise(tmp_path / "broken.gguf", tmp_path / "out.gguf", "Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]


def test_another_architecture_goes_through_the_script_that_is_named(tmp_path: Path, half: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["MambaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    script = tmp_path / "convert.py"
    script.write_text(
        "import sys, shutil\n"
        "assert sys.argv[2::2][:2] == ['--outfile', '--outtype'] and sys.argv[5] == 'f16', sys.argv\n"
        f"shutil.copyfile({str(half)!r}, sys.argv[3])\n"
    )
    named = Converter(script, Path(sys.executable), False, {})
    options = Options(("Q8_0",), converter=sha256_of(script))
    asked = Request(resolve(str(folder)), None, options, tmp_path / "out", converter=named)
    made = pipeline.export(asked, lambda event: None)
    assert read_header(tmp_path / "out" / "tiny-Q8_0.gguf").quantisation == "Q8_0"
    assert "not compared: transformers failed" in made.document["target"]["verification"]["logits"]
    script.write_text("raise SystemExit('cannot')")
    options = Options(("Q4_0",), converter=sha256_of(script))
    with pytest.raises(ExporterError, match="cannot"):
        pipeline.export(Request(asked.target, None, options, tmp_path / "b", converter=named), lambda e: None)
