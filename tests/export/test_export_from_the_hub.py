"""`edgellm export` as people type it, against a Hub that serves real repositories' layouts with small random
weights.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import config_of, random_weights, write_torch
from loopback_hub import LoopbackHub, Repo
from sentencepiece_file import sentencepiece_model
from vocabularies import tokenizer_folder

from edgellm.export import manifest
from edgellm.memory.gguf import read_header


def vicuna(folder: Path) -> Path:
    """lmsys/vicuna-7b-v1.5: two `.bin` shards with an index, a SentencePiece model and no tokenizer.json."""
    folder.mkdir()
    config = config_of("llama", 32_000) | {"_name_or_path": "vicuna-7b-v1.5", "max_position_embeddings": 4096}
    weights = random_weights(config)
    weight_map: dict[str, str] = {}
    for shard in range(2):
        name = f"pytorch_model-{shard + 1:05}-of-00002.bin"
        part = dict(list(weights.items())[shard::2])
        write_torch(folder / name, part, root=f"pytorch_model-{shard + 1:05}-of-00002")
        weight_map |= dict.fromkeys(part, name)
    files: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "pytorch_model.bin.index.json": {"metadata": {"total_size": 1}, "weight_map": weight_map},
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": {"__type": "AddedToken", "content": "<s>"},
            "eos_token": {"__type": "AddedToken", "content": "</s>"},
            "tokenizer_class": "LlamaTokenizer",
        },
    }
    for name, document in files.items():
        (folder / name).write_text(json.dumps(document))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(tokenizer_folder("llama2")))
    (folder / "README.md").write_text("# not wanted")
    return folder


def llama_68m(folder: Path) -> Path:
    """JackFram/llama-68m: one `.bin`, both tokenizer files."""
    folder.mkdir()
    config = config_of("llama", 32_000)
    (folder / "config.json").write_text(json.dumps(config))
    write_torch(folder / "pytorch_model.bin", random_weights(config, seed=1), dtype="F32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_folder("llama2") / name).read_bytes())
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(tokenizer_folder("llama2")))
    return folder


def edgellm(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgellm.cli", *words], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with LoopbackHub() as hub:
        hub.add_folder("lmsys/vicuna-7b-v1.5", vicuna(tmp_path / "vicuna"), licence="llama2")
        hub.add_folder("JackFram/llama-68m", llama_68m(tmp_path / "llama-68m"), licence="apache-2.0")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
        yield hub


def test_the_first_command_of_the_card_works_as_typed(tmp_path: Path, hub: LoopbackHub) -> None:
    done = edgellm("export", "vicuna-7b", "--draft", "llama-68m", "--quant", "Q8_0,F16", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    folder = tmp_path / "vicuna-7b-export"
    assert manifest.verify(folder).document == made
    assert sorted(path.name for path in folder.glob("*.gguf")) == [
        "draft-llama-68m-F16.gguf",
        "draft-llama-68m-Q8_0.gguf",
        "vicuna-7b-F16.gguf",
        "vicuna-7b-Q8_0.gguf",
    ]
    source = made["target"]["source"]
    assert source["repo"] == "lmsys/vicuna-7b-v1.5"
    assert source["revision"] == hub.repos["lmsys/vicuna-7b-v1.5"].commit
    assert "pytorch_model-00002-of-00002.bin" in source["files"]
    assert "README.md" not in source["files"]
    assert made["target"]["verification"]["logits"]["max_relative_error"] < 0.01
    assert made["draft"]["verification"]["tokens"]["different"] == 0
    assert made["pair"]["exported"]["same_vocabulary"] is True
    assert made["pair"]["exported"]["n_tokens"] > 0
    header = read_header(folder / "vicuna-7b-F16.gguf")
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert edgellm("verify", str(folder), cwd=tmp_path).returncode == 0


def test_steps_come_as_lines_of_json_and_a_refusal_is_one_sentence(tmp_path: Path, hub: LoopbackHub) -> None:
    done = edgellm("export", "JackFram/llama-68m", "-o", "out", "--jsonl", "--no-verify", cwd=tmp_path)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "finished"
    assert {"start", "progress", "done"} <= {event["event"] for event in events}
    again = edgellm("export", "JackFram/llama-68m", "-o", "out", "--quant", "F16", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("error: out exists and is not this export")
    wrong = edgellm("export", "JackFram/llama-68m", "--quant", "Q9_9", cwd=tmp_path)
    assert wrong.returncode == 2
    locked = edgellm("export", "JackFram/llama-68m", "-o", "out", "--locked", cwd=tmp_path)
    assert (locked.returncode, locked.stderr.splitlines()[-1]) == (0, "identical to the bit")


def fetched(hub: LoopbackHub) -> set[str]:
    return {
        request.path.rpartition("/")[2]
        for request in hub.requests
        if request.method == "GET" and "/resolve/" in request.path
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["BrandNewForCausalLM"]}, "BrandNewForCausalLM, which neither edgellm nor the llama.cpp"),
        ({"architectures": ["LlamaModel"]}, "an embedding model: it has no head that writes text"),
        ({"hidden_act": "gelu"}, "computes"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised already (awq)"),
        ({"sliding_window": 8, "architectures": ["MistralForCausalLM"]}, "looks back 8 tokens"),
    ],
)
def test_a_refusal_costs_the_download_of_the_configuration_alone(
    tmp_path: Path, hub: LoopbackHub, changes: dict[str, Any], sentence: str
) -> None:
    repo = hub.repos["JackFram/llama-68m"]
    repo.files["config.json"] = json.dumps(json.loads(repo.files["config.json"]) | changes).encode()
    done = edgellm("export", "JackFram/llama-68m", "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr
    assert "JackFram/llama-68m" in done.stderr
    assert fetched(hub) == {"config.json"}


def test_a_tokenizer_is_refused_before_the_weights_are_fetched(tmp_path: Path, hub: LoopbackHub) -> None:
    repo = hub.repos["JackFram/llama-68m"]
    document = json.loads(repo.files["tokenizer.json"]) | {"normalizer": {"type": "NFKC"}}
    repo.files["tokenizer.json"] = json.dumps(document).encode()
    done = edgellm("export", "JackFram/llama-68m", "-o", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "JackFram/llama-68m: text is normalised by NFKC" in done.stderr
    assert "pytorch_model.bin" not in fetched(hub)


def test_only_the_weights_that_are_read_are_fetched(tmp_path: Path, hub: LoopbackHub) -> None:
    hub.repos["lmsys/vicuna-7b-v1.5"].files |= {
        "consolidated.safetensors": b"x", "adapter_model.safetensors": b"x", "adapter_config.json": b"{}",
        "pytorch_model-00003-of-00003.bin": b"x", "model.fp32.safetensors": b"x",
    }  # fmt: skip
    done = edgellm("export", "lmsys/vicuna-7b-v1.5", "-o", "out", "--quant", "F16", "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert fetched(hub) == {
        "config.json", "generation_config.json", "pytorch_model.bin.index.json", "special_tokens_map.json",
        "tokenizer_config.json", "tokenizer.model", "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "is an adapter"),
        ({"params.json": b"{}", "consolidated.safetensors": b"x"}, "in its authors' own layout alone"),
        ({"config.json": b"{}", "a-Q8_0.gguf": b"GGUF"}, "acme/thing:Q8_0"),
        ({"README.md": b"#"}, "holds no checkpoint"),
    ],
)
def test_a_repository_without_weights_of_a_model_is_named_as_what_it_is(
    tmp_path: Path, hub: LoopbackHub, files: dict[str, bytes], sentence: str
) -> None:
    hub.repos["acme/thing"] = Repo(files)
    done = edgellm("export", "acme/thing", "-o", "out", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert sentence in " ".join(done.stderr.split())
    assert fetched(hub) <= {"adapter_config.json"}


def test_mem_chooses_the_type_and_says_when_nothing_fits(tmp_path: Path, hub: LoopbackHub) -> None:
    config = tmp_path / "llama-68m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "llama"}))
    done = edgellm("export", "llama-68m", "--mem", "2GB", "-o", "roomy", "--json", "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["options"]["quants"] == ["Q8_0"]
    tight = edgellm("export", "llama-68m", "--mem", "100MiB", "-o", "tight", "--no-verify", cwd=tmp_path)
    assert tight.returncode == 3
    assert "even as Q3_K_M" in tight.stderr


def test_a_folder_and_a_gguf_file_are_exported_without_any_hub(tmp_path: Path, hub: LoopbackHub) -> None:
    hub.repos.clear()
    words = ("--no-verify", "--json")
    one = edgellm("export", str(tmp_path / "llama-68m"), "-o", "one", "--quant", "F16", *words, cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    made = edgellm("export", "one/llama-68m-F16.gguf", "-o", "two", "--quant", "Q8_0", *words, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["target"]["source"]["files"].keys() == {"llama-68m-F16.gguf"}
    assert struct.unpack("<4s", (tmp_path / "two" / "llama-68m-F16-Q8_0.gguf").read_bytes()[:4]) == (b"GGUF",)
