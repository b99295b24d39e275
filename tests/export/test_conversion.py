"""Who converts a checkpoint, and how a converter that is somebody else's program is kept in its place."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_model
from sentencepiece_file import sentencepiece_model, setting
from typer.testing import CliRunner
from vocabularies import tokenizer_folder

from edgellm.cli._errors import exit_code
from edgellm.cli.main import app
from edgellm.export import manifest
from edgellm.export.convert import conversion, llama_cpp_converter
from edgellm.export.convert.conversion import choose, known_classes
from edgellm.export.environments import packages_of
from edgellm.export.obtain.download import SourceError
from edgellm.export.read.facts import UnsupportedModel
from edgellm.export.read.tokenizer_facts import TokenizerError

PLAIN: dict[str, Any] = {"model_type": "anything", "max_position_embeddings": 4096, "num_hidden_layers": 4}


def folder_of(path: Path, name: str, **more: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(PLAIN | {"architectures": [name]} | more))
    return path


@pytest.mark.parametrize(
    "name",
    ["SmolLM3ForCausalLM", "Qwen3_5ForCausalLM", "Gemma3nForCausalLM", "Lfm2ForCausalLM", "GraniteForCausalLM",
     "GraniteMoeHybridForCausalLM", "Olmo2ForCausalLM", "Exaone4ForCausalLM", "GptOssForCausalLM", "Glm4ForCausalLM",
     "MixtralForCausalLM", "Qwen3MoeForCausalLM", "GPT2LMHeadModel", "ChatGLMModel"],
)  # fmt: skip
def test_families_that_are_not_known_here_are_left_to_llama_cpp(tmp_path: Path, name: str) -> None:
    assert choose(folder_of(tmp_path / "model", name), has_tokenizer=False).by == "llama.cpp"


def test_families_that_are_known_here_are_converted_here_unless_told_otherwise(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", "llama")
    assert choose(folder).by == "own"
    forced = choose(folder, "llama.cpp")
    assert forced.by == "llama.cpp"
    assert not forced.is_doubtful
    with pytest.raises(UnsupportedModel, match=r"SmolLM3ForCausalLM, which is not among .*--converter llama.cpp"):
        choose(folder_of(tmp_path / "other", "SmolLM3ForCausalLM"), "own")


def test_a_variant_that_is_refused_here_does_not_slip_through_the_other_converter(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_in_multiplier": 2.0}))
    with pytest.raises(UnsupportedModel, match=r"attention_in_multiplier 2\.0"):
        choose(folder)
    forced = choose(folder, "llama.cpp")
    assert forced.is_doubtful
    assert "would refuse it (the model has attention_in_multiplier 2.0" in forced.remarks[-1]


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("LlamaModel", {}, "an embedding model: it has no head that writes text"),
        ("Gemma3TextModel", {}, "an embedding model"),
        ("BertModel", {}, "an embedding model"),
        ("BertForSequenceClassification", {}, "an embedding model|a classifier"),
        ("LlamaForSequenceClassification", {}, "a classifier"),
        ("BertForMaskedLM", {}, "an embedding model|fills gaps"),
        ("LlamaForCausalLMEagle3", {}, "a draft head"),
        ("MedusaModel", {}, "a draft head"),
        ("DFlashDraftModel", {}, "a draft head"),
        ("Gemma4AssistantForCausalLM", {}, "a draft head"),
        ("DreamModel", {}, "a diffusion model"),
        ("LLaDAModelLM", {}, "a diffusion model"),
        ("Qwen3TTSForConditionalGeneration", {}, "a model of speech"),
        ("WhisperForConditionalGeneration", {}, "a model that hears"),
        ("CLIPModel", {}, "a model that sees"),
        ("ViTForImageClassification", {}, "a classifier"),
        ("BrandNewForCausalLM", {}, "neither edgellm nor the llama.cpp that it runs knows"),
        ("MiniCPMForCausalLM", {"auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"}},
         r"Python code of its own \(auto_map\) that is not run"),
        ("SmolLM3ForCausalLM", {"quantization_config": {"quant_method": "awq", "bits": 4}}, r"already \(awq\)"),
        ("SmolLM3ForCausalLM", {"quantization_config": {"quant_method": "gptq", "bits": 3}}, r"already \(gptq\)"),
        ("SmolLM3ForCausalLM", {"quantization": {"group_size": 64, "bits": 4}}, r"quantised already \(MLX\)"),
        ("LlamaForCausalLM", {"quantization_config": {"group_size": 64, "bits": 4}}, r"quantised already \(MLX\)"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "bitsandbytes"}}, r"\(bitsandbytes\)"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "mxfp4"}}, r"\(mxfp4\)"),
        ("MixtralForCausalLM", {"sliding_window": 64}, "looks back 64 tokens"),
    ],
)  # fmt: skip
def test_what_nobody_converts_is_told_as_what_it_is_from_the_configuration_alone(
    tmp_path: Path, name: str, more: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UnsupportedModel, match=sentence):
        choose(folder_of(tmp_path / "model", name, **more), has_tokenizer=False)


@pytest.mark.parametrize(
    "damage",
    [{"architectures": 7}, {"architectures": [7]}, {"architectures": []}, {"text_config": 7}, {"text_config": []},
     {"quantization_config": 7}, {"quantization_config": "x"}, {"layer_types": 3, "sliding_window": "x"},
     {"architectures": ["SmolLM3ForCausalLM"], "sliding_window": 9999, "max_position_embeddings": "x"},
     {"text_config": {"architectures": 3}}, {"auto_map": 3}],
)  # fmt: skip
def test_a_damaged_configuration_is_a_sentence(tmp_path: Path, damage: dict[str, Any]) -> None:
    folder = folder_of(tmp_path / "model", "SmolLM3ForCausalLM", **damage)
    with contextlib.suppress(UnsupportedModel):
        choose(folder, has_tokenizer=False)


def test_pieces_that_llama_cpp_cuts_by_otherwise_are_refused_whoever_converts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "OlmoForCausalLM")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    for kind, is_right in ((setting(3, 2), True), (setting(3, 1), False)):
        data = sentencepiece_model(tokenizer_folder("llama2"), trainer=kind)
        (folder / "tokenizer.model").write_bytes(data)
        if is_right:
            assert choose(folder).by == "llama.cpp"
        else:
            with pytest.raises(TokenizerError, match=r"another kind than BPE .* whoever makes it"):
                choose(folder)


def test_what_a_file_beside_it_says_of_quantised_weights_counts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "LlamaForCausalLM")
    told = {"producer": {"name": "ModelOpt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(told))
    assert choose(folder, has_tokenizer=False).by == "llama.cpp"
    with pytest.raises(UnsupportedModel, match=r"quantised already \(modelopt\)"):
        choose(folder, "own", has_tokenizer=False)


@pytest.mark.parametrize(
    ("quantised", "name"),
    [({"quant_method": "fp8", "weight_block_size": [128, 128]}, "LlamaForCausalLM"),
     ({"quant_method": "gptq", "bits": 4}, "Qwen2ForCausalLM"),
     ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {}}},
      "LlamaForCausalLM"),
     ({"quant_method": "mxfp4"}, "GptOssForCausalLM")],
)  # fmt: skip
def test_quantised_weights_that_the_converter_undoes_go_to_it(
    tmp_path: Path, quantised: dict[str, Any], name: str
) -> None:
    found = choose(folder_of(tmp_path / "model", name, quantization_config=quantised), has_tokenizer=False)
    assert found.by == "llama.cpp"
    assert any("were quantised by" in remark for remark in found.remarks)


def test_a_model_that_sees_is_said_to_leave_its_eyes_behind(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path / "model", "Qwen3_5ForConditionalGeneration", vision_config={"depth": 2}, text_config={"a": 1}
    )
    assert "its text model alone is exported" in choose(folder, has_tokenizer=False).remarks[0]


def test_a_window_that_llama_cpp_does_not_compute_bounds_the_context(tmp_path: Path) -> None:
    found = choose(folder_of(tmp_path / "model", "Starcoder2ForCausalLM", sliding_window=1024), has_tokenizer=False)
    assert found.window == 1024
    assert any("1024 tokens" in remark for remark in found.remarks)
    assert (
        choose(folder_of(tmp_path / "o", "GptOssForCausalLM", sliding_window=128), has_tokenizer=False).window is None
    )


def test_the_engine_runs_every_architecture_that_is_let_through() -> None:
    import llama_cpp

    library = next(Path(llama_cpp.__file__).parent.glob("lib/*llama.*")).read_bytes()
    writers = {known.arch for known in known_classes().values()} - conversion._OTHER_ARCHS.keys()
    # Short names are built into the code and not among its texts.
    assert {arch for arch in writers if len(arch) > 5 and arch.encode() + b"\0" not in library} == set()


def test_the_converter_is_of_the_release_that_the_engine_is_built_from() -> None:
    from importlib.metadata import version

    assert ("llama-cpp-python", version("llama-cpp-python")) == llama_cpp_converter.PACKAGE
    assert packages_of("llama_cpp")["transformers"]


def archive_of(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    """A source distribution; a text instead of bytes is where a link leads."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


ROOT = llama_cpp_converter._ROOT


def test_nothing_but_the_converter_is_unpacked(tmp_path: Path) -> None:
    archive = archive_of(
        tmp_path / "a.tar.gz",
        [(ROOT + "convert_hf_to_gguf.py", b"pass"), (ROOT + "conversion/base.py", b"1"), (ROOT + "LICENSE", b"MIT"),
         (ROOT + "gguf-py/gguf/x.py", b"2"), (ROOT + "conversion/../../../evil.py", b"3"),
         (ROOT + "conversion/link.py", "/etc/passwd"), ("/etc/evil.py", b"4"), (ROOT + "src/llama.cpp", b"5"),
         (ROOT + "conversion/data.bin", b"6")],
    )  # fmt: skip
    llama_cpp_converter._unpack(archive, tmp_path / "out")
    found = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("out/**/*") if path.is_file()
    )
    assert found == ["LICENSE", "conversion/base.py", "convert_hf_to_gguf.py", "gguf-py/gguf/x.py"]
    assert not (tmp_path / "evil.py").exists()


def test_a_truncated_source_distribution_is_deleted_and_said(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", [(ROOT + "convert_hf_to_gguf.py", os.urandom(20_000))])
    archive.write_bytes(archive.read_bytes()[:10_000])
    with pytest.raises(SourceError, match="is damaged"):
        llama_cpp_converter._unpack(archive, tmp_path / "out")
    assert not archive.exists()


# A script of the user's own: it writes what it was asked for, and shows what it was given.
SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
source, out = Path(sys.argv[1]), sys.argv[sys.argv.index("--outfile") + 1]
print(json.dumps({"files": sorted(os.listdir(source)), "name": source.name}))
%s
"""


def script_of(path: Path, body: str) -> Path:
    path.write_text(SCRIPT % body)
    return path


def run(*arguments: str | Path) -> tuple[int, str]:
    """The exit code, and all that was said."""
    done = CliRunner().invoke(app, ["export", *map(str, arguments), "--exporter-python", sys.executable])
    code = (
        exit_code(done.exception) if done.exception and not isinstance(done.exception, SystemExit) else done.exit_code
    )
    assert code is not None, done.exception
    return code, f"{done.output} {done.exception}"


def test_a_script_converts_and_the_manifest_says_so(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama")
    code, said = run(model, "-o", tmp_path / "own", "--quant", "F16", "--no-verify")
    assert code == 0, said
    script = script_of(tmp_path / "convert.py", f"shutil.copyfile({str(tmp_path / 'own/model-F16.gguf')!r}, out)")
    code, said = run(model, "-o", tmp_path / "out", "--quant", "F16", "--no-verify", "--converter", script)
    assert code == 0, said
    document = manifest.verify(tmp_path / "out").document
    assert document["target"]["converter"]["by"] == "script"
    assert document["target"]["converter"]["sha256"] == document["options"]["converter"]
    assert not list(tmp_path.glob(".out*"))
    code, said = run(model, "-o", tmp_path / "out", "--locked")
    assert code == 1, said
    assert "give the same one with --converter PATH" in said
    code, said = run(model, "-o", tmp_path / "out", "--locked", "--converter", script)
    assert code == 0, said


@pytest.mark.parametrize(
    ("body", "sentence"),
    [("raise ValueError('no such layer: 7')", "no such layer: 7"),
     ("import logging; logging.getLogger('x').error('Model X is not supported'); sys.exit(1)", "X is not supported"),
     ("pass", "it left no file"),
     ("Path(out).write_bytes(b'half'); os._exit(9)", "failed"),
     ("Path(out).write_bytes(b'half'); os.kill(os.getpid(), 9)", "SIGKILL"),
     ("exec(compile('x = 1', str(source / 'config.json'), 'exec'))", "Python code of its own, which is not run"),
     ("import pickle; pickle.loads(pickle.dumps(Path('x')))", "pickled objects, which are programs"),
     ("import socket; socket.create_connection(('127.0.0.1', 9))", "asks for the network"),
     ("os.system('true')", "asks to start a program")],
)  # fmt: skip
def test_a_script_that_fails_is_told_in_its_own_words_and_leaves_nothing(
    tmp_path: Path, body: str, sentence: str
) -> None:
    model = tiny_model(tmp_path / "model", "llama")
    script = script_of(tmp_path / "convert.py", body)
    code, said = run(model, "-o", tmp_path / "out", "--quant", "F16", "--no-verify", "--converter", script)
    assert code == 1, said
    assert sentence in said
    assert not (tmp_path / "out").exists()
    assert not [path for work in tmp_path.glob(".out*") for path in work.iterdir()]


def test_the_script_sees_the_model_and_nothing_that_lies_beside_it(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama")
    for name in ("tokenizer.py", "modeling_x.py", "README.md", "consolidated.safetensors", "model.fp32.safetensors"):
        (model / name).write_text("raise SystemExit('was run')")
    script = script_of(
        tmp_path / "convert.py",
        "assert not [n for n in os.listdir(source) if n.endswith(('.py', '.md')) or 'fp32' in n], os.listdir(source)\n"
        "raise ValueError('saw ' + source.name)",
    )
    _, said = run(model, "-o", tmp_path / "out", "--quant", "F16", "--no-verify", "--converter", script)
    assert "saw model" in said


def test_a_converter_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    code, said = run(tmp_path, "--converter", tmp_path / "nowhere.py")
    assert code == 2, said


def test_what_is_refused_costs_no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_converter, "converter_source", lambda progress: pytest.fail("fetched"))
    code, said = run(folder_of(tmp_path / "model", "BertModel"), "-o", tmp_path / "out")
    assert code == 1, said
    assert "an embedding model" in said
