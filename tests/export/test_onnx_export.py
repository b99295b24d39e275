"""ONNX export and bundles: whole or not at all, checked, and used by hosts that know nothing of this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import tiny_model
from conftest import USER_ENV
from draft_adapters import write_adapter
from loopback_hub import LoopbackHub
from tiny_onnx import write_tiny_onnx

from edgellm.export import manifest
from edgellm.export.bundle import pack
from edgellm.export.check.fidelity import VerificationFailed
from edgellm.export.convert import engine_jobs
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.environments import ExporterError, environment, requirements_of
from edgellm.export.lora.adapted_drafts import AdaptedDraft
from edgellm.export.manifest import ManifestError
from edgellm.export.obtain.source import ModelSource
from edgellm.export.onnx import onnx_facts, onnx_job
from edgellm.export.onnx.onnx_export import OnnxRequest, export_onnx
from edgellm.export.read.checkpoint import read_weights
from edgellm.export.read.facts import UnsupportedModel
from edgellm.export.staging import ExportError
from edgellm.memory.context import ContextSettings
from edgellm.memory.draft_adapter import AdapterFile, quantised_matrix
from edgellm.memory.gguf import read_header
from edgellm.memory.onnx_graph import read_graph
from edgellm.runtime.backends.onnx_runtime import OnnxBackend, OnnxModel

# Stands in for an exporter's Python: answers jobs with a folder that was made before.
STAND_IN = """\
#!{python}
import json, shutil, sys
job = json.loads(sys.stdin.readline())
assert sys.argv[1:] == ["-I", {job!r}]
print("chatter that is no answer", file=sys.stderr)
if job["job"] == "export":
    {act}
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy({made!r} + "/" + name, job["output"])
    print(json.dumps({{"versions": {{"torch": "0"}}}}))
else:
    perplexity = {{"checkpoint": 9.0, "exported": 9.1}}
    print(json.dumps({{"top1": {top1}, "n_tokens": 2000, "max_relative_error": 0.0, "perplexity": perplexity}}))
"""
RequestMaker = Callable[..., OnnxRequest]


@pytest.fixture
def request_of(tmp_path: Path) -> RequestMaker:
    checkpoint = tiny_model(tmp_path / "tiny", "llama")
    made = write_tiny_onnx(tmp_path / "made")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(made / name, checkpoint)

    def asked(*, act: str = "pass", top1: float = 1.0, **more: Any) -> OnnxRequest:
        python = tmp_path / "python"
        job = str(Path(onnx_job.__file__))
        python.write_text(STAND_IN.format(python=sys.executable, job=job, act=act, made=str(made), top1=top1))
        python.chmod(0o755)
        source = ModelSource("tiny", checkpoint)
        options: dict[str, Any] = {"target": source, "draft": source, "quants": ("fp32",), "draft_quants": ("int4",)}
        return OnnxRequest(exporter="builder", python=python, output=tmp_path / "out", **(options | more))

    return asked


def quiet(event: object) -> None:
    pass


pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a shebang")


def test_an_export_is_whole_checked_and_says_what_made_it(request_of: RequestMaker) -> None:
    made = export_onnx(request_of(), quiet)
    folder = request_of().output
    assert {(entry["role"], entry["quant"]) for entry in made.files()} == {("target", "fp32"), ("draft", "int4")}
    assert made.document["tools"]["torch"] == "0"
    assert made.document["target"]["verification"]["fp32"]["top1"] == 1.0
    assert made.document["target"]["operators"]["com.microsoft.GroupQueryAttention"] == 2
    assert manifest.verify(folder).document == made.document
    assert OnnxModel(folder / "tiny-fp32").chat_template
    assert not list(folder.glob("*.log"))
    assert export_onnx(request_of(), quiet).document == made.document  # the same request finds it there


def test_a_failing_exporter_leaves_nothing_and_its_last_words(request_of: RequestMaker) -> None:
    failing = request_of(act='sys.exit(print(json.dumps({"error": "no such architecture"})) or 1)')
    with pytest.raises(ExporterError, match="exporting tiny to fp32 failed: no such architecture"):
        export_onnx(failing, quiet)
    assert not failing.output.exists()


def test_what_an_interrupted_run_made_is_not_made_again(request_of: RequestMaker) -> None:
    with pytest.raises(ExporterError):
        export_onnx(request_of(act="if job['quant'] == 'int4': sys.exit(3)"), quiet)
    events: list[Any] = []
    made = export_onnx(request_of(), events.append)
    assert [event["file"] for event in events if event["event"] == "resumed"] == ["tiny-fp32"]
    assert made.document["tools"]["torch"] == "0"
    assert {entry["path"].split("/")[0] for entry in made.files()} == {"tiny-fp32", "draft-tiny-int4"}
    assert {path.name for path in request_of().output.iterdir()} == {"edgellm.json", "tiny-fp32", "draft-tiny-int4"}


def test_a_dying_exporter_is_told_from_its_log(request_of: RequestMaker) -> None:
    with pytest.raises(ExporterError, match="chatter"):
        export_onnx(request_of(act="sys.exit(3)"), quiet)


def test_the_last_exception_of_a_log_is_told_and_not_what_was_printed_after_it(request_of: RequestMaker) -> None:
    act = 'print("ValueError: no such layer", "Exception ignored in: <function>", "bye", sep="\\n", file=sys.stderr)'
    with pytest.raises(ExporterError, match=r"to fp32 failed: ValueError: no such layer$"):
        export_onnx(request_of(act=f"sys.exit({act} or 3)"), quiet)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("raise KeyError('rope_type')", "KeyError: 'rope_type'"),
        ("import sys; sys.exit('the model is too new')", "the model is too new"),
        ("import sys\ntry: {}['a']\nexcept KeyError: sys.exit(1)", "KeyError: 'a'"),
        ("import sys; sys.exit(4)", "it ended itself with code 4 and gave no reason"),
        ("raise MemoryError", "MemoryError"),
        ("import os; os.kill(os.getpid(), 9)", "the exporter was ended by SIGKILL; most often for want of memory"),
        ("import os; os._exit(5)", "the exporter ended with code 5 and gave no reason"),
        ("nonsense(", "SyntaxError: '(' was never closed (exporter_module.py, line 3)"),
    ],
)
def test_an_exporter_is_quoted_however_it_ends_and_whatever_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, sentence: str
) -> None:
    chatter = "import atexit; print('Extra options: {}'); atexit.register(print, 'WARNING: precision')\n\n"
    (tmp_path / "exporter_module.py").write_text(chatter + code)
    python = tmp_path / "python"  # as the exporter's own, which finds the exporter
    python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(onnx_job.sys, "executable", str(python))
    with pytest.raises(onnx_job.ExporterFailed) as failed:
        onnx_job._run("exporter_module", [], tmp_path / "reason")
    assert str(failed.value) == sentence


def test_a_job_tells_what_its_exporter_raised_also_where_that_exits(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom edgellm.export.onnx import onnx_job\n"
        "def export(job): sys.exit('not exported')\n"
        "onnx_job.export = export\nsys.exit(onnx_job.main())"
    )
    job = json.dumps({"job": "export"})
    done = subprocess.run([sys.executable, "-c", script], input=job, capture_output=True, text=True)
    assert (json.loads(done.stdout), done.returncode) == ({"error": "not exported"}, 1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantised already \(gptq\)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, r"is quantised already \(MLX\)"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "is a draft head"),
        ({"architectures": ["BertModel"]}, "is an embedding model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a classifier"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "builder makes no graph of text: try --exporter opt"),
        ({"architectures": []}, "names no class"),
        ({"hidden_size": None}, "hidden_size in config.json is no count"),
    ],
)
def test_what_no_graph_comes_of_is_refused_by_its_configuration(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    onnx_facts.examine(folder, "builder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UnsupportedModel, match=sentence):
        onnx_facts.examine(folder, "builder")


def test_a_refusal_installs_and_fetches_nothing(hub: LoopbackHub, tmp_path: Path, private_folders: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "awq"}}
    (folder / "config.json").write_text(json.dumps(config))
    hub.add_repo("me/quantised", {path.name: path.read_bytes() for path in folder.iterdir()})
    command = [sys.executable, "-m", "edgellm.cli", "export", "me/quantised", "--format", "onnx", "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "error: me/quantised is quantised already (awq): export the model that it was made from, which is quantised on "
        "the way (--quant)",
    )
    assert not list(private_folders.rglob("*.safetensors"))
    assert not list(private_folders.rglob("exporters/*"))


def test_a_graph_that_is_not_the_checkpoints_model_is_refused(request_of: RequestMaker) -> None:
    with pytest.raises(VerificationFailed, match=r"99\.0%.*--no-verify"):
        export_onnx(request_of(top1=0.99), quiet)
    assert export_onnx(request_of(top1=0.99, verify=False), quiet)


def test_what_a_drafter_learnt_is_in_the_checkpoint_that_its_graph_is_made_of(
    request_of: RequestMaker, tmp_path: Path
) -> None:
    """The target's is as it was, and the manifest names the adapter; types that round it away are told."""
    to_gguf(tmp_path / "tiny", tmp_path / "whole.gguf")
    engine_jobs.quantise(tmp_path / "whole.gguf", base := tmp_path / "base.gguf", "Q4_1")
    adapter = AdapterFile.read(write_adapter(tmp_path / "learnt.adapter", base, 0.2))
    act = f"shutil.copy(job['source'] + '/model.safetensors', {str(tmp_path)!r} + '/' + job['quant'] + '.safetensors')"
    events: list[Any] = []
    made = export_onnx(request_of(act=act, adapted=AdaptedDraft(adapter, base), verify=False), events.append)
    name = "model.layers.0.mlp.down_proj.weight"
    target, draft = (read_weights(tmp_path / f"{quant}.safetensors")[name] for quant in ("fp32", "int4"))
    AdaptedDraft(adapter, base).write(merged := tmp_path / "merged.gguf")
    header = read_header(merged)
    info = next(tensor for tensor in header.tensors if tensor.name == "blk.0.ffn_down.weight")
    assert draft.read() == quantised_matrix(header, info).dense().tobytes()
    assert target.read() == read_weights(tmp_path / "tiny" / "model.safetensors")[name].read()
    assert made.document["draft"]["adapter"]["sha256"] == adapter.sha256
    assert "adapter" not in made.document["target"]
    assert [event["text"] for event in events if event["event"] == "remark"] == made.document["draft"]["remarks"]
    assert "int4 rounds away" in made.document["draft"]["remarks"][0]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_gguf_file_is_no_source_of_onnx(request_of: RequestMaker, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExportError, match="checkpoint"):
        export_onnx(request_of(target=ModelSource("x", tmp_path / "x.gguf")), quiet)


def test_an_exporter_is_installed_only_if_the_answer_is_yes() -> None:
    asked: list[str] = []
    with pytest.raises(ExporterError, match="--yes"):
        environment("optimum", ask=lambda question: bool(asked.append(question)))
    assert "GiB" in asked[0]


def test_exporters_pin_every_package() -> None:
    for exporter in ("builder", "optimum"):
        lines = requirements_of(exporter).read_text().splitlines()  # type: ignore[arg-type]
        assert all("==" in line for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", ["a/../../b", "../b", "/b", "a/b/c", "a//b", "a/..", ""])
def test_manifests_name_nothing_outside_their_folder(name: str) -> None:
    files = [{"path": name, "n_bytes": 1, "sha256": "0"}]
    with pytest.raises(ManifestError, match="outside"):
        manifest.check({"format": manifest.FORMAT, "options": {}, "files": files}, "here")


def greedy(folder: Path, prompt: list[int], n: int) -> list[int]:
    backend = OnnxBackend(OnnxModel(folder), ContextSettings(128, n_threads=1), pad_single=False)
    row, ids = backend.forward(prompt, n_outputs=1)[0], list[int]()
    for _ in range(n):
        ids.append(int(row.argmax()))
        row = backend.forward(ids[-1:], n_outputs=1)[0]
    return ids


@pytest.mark.parametrize("ort", [False, True], ids=["onnx", "ort"])
def test_a_bundle_runs_in_a_python_host(request_of: RequestMaker, tmp_path: Path, ort: bool) -> None:
    export_onnx(request_of(), quiet)
    bundle = tmp_path / "bundle"
    packed = pack(request_of().output, bundle, ort=ort)
    assert {Path(entry["path"]).suffix for entry in packed.files() if entry["role"] == "draft"} >= {
        ".ort" if ort else ".onnx"
    }
    assert bool(list(bundle.glob("*/*.data"))) != ort
    done = subprocess.run(
        [sys.executable, bundle / "host.py", "the heat", "8"], capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["ids"] == greedy(request_of().output / "tiny-fp32", answer["prompt"], 8)
    operators = (bundle / "required_operators.config").read_text()
    assert "com.microsoft;1;GroupQueryAttention" in operators
    assert manifest.verify(bundle)


def test_a_bundle_in_a_tar_holds_what_its_manifest_says(request_of: RequestMaker, tmp_path: Path) -> None:
    export_onnx(request_of(), quiet)
    packed = pack(request_of().output, tmp_path / "bundle.tar")
    with tarfile.open(tmp_path / "bundle.tar") as tar:
        assert tar.getnames() == [manifest.NAME, *(entry["path"] for entry in packed.files())]


@pytest.mark.slow
def test_a_bundle_runs_in_a_javascript_host(request_of: RequestMaker, tmp_path: Path) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    export_onnx(request_of(), quiet)
    bundle = tmp_path / "bundle"
    pack(request_of().output, bundle)
    packages = ["onnxruntime-node@1.30.0", "@huggingface/tokenizers@0.2.0"]
    subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", *packages], cwd=bundle, check=True)
    done = subprocess.run(["node", "host.mjs", "the heat", "8"], cwd=bundle, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["ids"] == greedy(request_of().output / "tiny-fp32", answer["prompt"], 8)


# ---- what is done to an exporter's graph -----------------------------------------------------------------------------


def test_a_graph_gets_a_choice_of_rows_and_keeps_its_meaning(tmp_path: Path) -> None:
    folder = write_tiny_onnx(tmp_path / "tiny")
    before = OnnxBackend(OnnxModel(folder), ContextSettings(64, n_outputs=3)).forward(list(range(20)), 3).copy()
    model = onnx.load(folder / "model.onnx")
    cut = next(node for node in model.graph.node if node.op_type == "Slice")
    for node in model.graph.node:
        node.input[:] = [cut.input[0] if name == cut.output[0] else name for name in node.input]
    model.graph.node.remove(cut)
    kept = [value for value in model.graph.input if value.name != "logits_start"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name == "logits_start"]:
        model.graph.initializer.remove(tensor)
    assert onnx_job._slice_rows(model) == "logits_start"
    onnx.save_model(model, folder / "model.onnx")
    assert "logits_start" in read_graph(folder / "model.onnx").optional
    after = OnnxBackend(OnnxModel(folder), ContextSettings(64, n_outputs=3)).forward(list(range(20)), 3)
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_an_embedding_of_its_own_is_quantised_to_eight_bits(tmp_path: Path) -> None:
    folder = write_tiny_onnx(tmp_path / "tiny")
    before = OnnxBackend(OnnxModel(folder), ContextSettings(64, n_outputs=8)).forward(list(range(8)), 8).copy()
    n_bytes = read_graph(folder / "model.onnx").weight_bytes
    model = onnx.load(folder / "model.onnx")
    found = [node for node in model.graph.node if onnx_job._is_plain_embedding(model, node)]
    assert len(found) == 1
    onnx_job._quantise_embedding(model, found[0])
    onnx.save_model(model, folder / "model.onnx")
    assert read_graph(folder / "model.onnx").weight_bytes < n_bytes
    after = OnnxBackend(OnnxModel(folder), ContextSettings(64, n_outputs=8)).forward(list(range(8)), 8)
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert 0 < error < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["builder", "optimum"])
def test_real_exporters_agree_with_their_checkpoint(tmp_path: Path, exporter: str) -> None:
    """In the user's own environment of the exporter, which is made if it is not there."""
    checkpoint = tiny_model(tmp_path / "tiny", "llama")
    config = json.loads((checkpoint / "config.json").read_text()) | {"model_type": "llama"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    command = [
        sys.executable,
        "-m",
        "edgellm.cli",
        "export",
        str(checkpoint),
        "--format",
        "onnx",
        "--quant",
        "fp32,int4",
    ]
    command += ["--exporter", exporter, "--yes", "--verify", "--json", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, env=USER_ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    checked = json.loads(done.stdout)["target"]["verification"]
    assert checked["fp32"]["top1"] >= 0.999
    assert checked["int4"]["top1"] > 0.5
    assert read_graph(tmp_path / "out" / "tiny-int4" / "model.onnx").quantisation == "int4"
    assert len(greedy(tmp_path / "out" / "tiny-int4", [1, 2, 3], 8)) == 8
