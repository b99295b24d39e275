"""llama.cpp's converter on tiny checkpoints that transformers makes: the same logits, all types, in one folder.

Run with `-m converter`, before a release and whenever the converter's release or its packages change.
EDGELLM_TEST_TRANSFORMERS names a Python that has torch, transformers and sentencepiece; otherwise the converter's own
environment is created.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgellm.export import manifest
from edgellm.export.convert import engine_jobs, llama_cpp_converter
from edgellm.export.convert.conversion import known_classes
from edgellm.export.environments import ExporterError, environment, packages_of, run_job
from edgellm.memory.gguf import read_header

pytestmark = pytest.mark.converter

MAKER = Path(__file__).with_name("foreign_checkpoints.py")
FAMILIES = (
    "smollm3", "qwen3.5", "gemma4", "lfm2", "granite4-dense", "granite4-hybrid", "phi4-mini", "olmo2", "exaone4",
    "gpt-oss", "mixtral", "t5",
)  # fmt: skip
# Read here: tests see none of the user's own settings.
NAMED = os.environ.get("EDGELLM_TEST_TRANSFORMERS")
KEPT = Path(os.environ.get("EDGELLM_TEST_HOME") or Path(tempfile.gettempdir()) / "edgellm-tests")


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python with the converter's packages; it and the script are kept between runs."""
    monkeypatch.setenv("EDGELLM_HOME", str(KEPT))
    return Path(NAMED) if NAMED else environment("llama_cpp", ask=lambda _: True)


def edgellm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgellm.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_llama_cpps_converter_computes_what_transformers_does(
    family: str, python: Path, tmp_path: Path
) -> None:
    subprocess.run([python, "-I", MAKER, tmp_path, family], check=True, capture_output=True)
    types = "F16,Q8_0,Q4_K_M"
    done = edgellm("export", tmp_path / family, "-o", tmp_path / "out", "--quant", types, "--exporter-python", python)
    assert done.returncode == 0, done.stderr
    document = manifest.verify(tmp_path / "out").document["target"]
    logits, by = document["verification"]["logits"], document["converter"]["by"]
    assert by == ("own" if family in ("phi4-mini", "t5") else "llama.cpp")
    assert document["verification"]["tokens"]["different"] == 0
    assert logits["same_choice"] >= 0.9 * logits["n_tokens"]
    done = edgellm("bundle", tmp_path / "out", "-o", tmp_path / "bundle", "--quant", "Q4_K_M")
    assert done.returncode == 0, done.stderr
    packed = next((tmp_path / "bundle").glob("*.gguf"))
    assert engine_jobs.generate(packed, "The ferry left", 4)
    error, same = logits["max_relative_error"], f"{logits['same_choice']} of {logits['n_tokens']}"
    print(f"\n{family} | {by} | {error:.2g} | {same} | {read_header(packed).quantisation} | bundled")


def test_the_table_is_what_the_pinned_script_says(python: Path, tmp_path: Path) -> None:
    folder = llama_cpp_converter.converter_source()
    job = {"job": "registry", "source": str(folder)}
    told = run_job(python, job, "the registry", log=tmp_path / "log", program="convert/converter_job.py")["classes"]
    assert {name: tuple(row) for name, row in told.items()} == {
        name: (known.arch, known.in_transformers, known.has_senses) for name, known in known_classes().items()
    }


def test_the_environment_is_the_one_that_is_pinned(python: Path) -> None:
    asked = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    pins = packages_of("llama_cpp")
    told = subprocess.run([python, "-I", "-c", asked, *pins], capture_output=True, text=True, check=True).stdout
    assert {name: version.partition("+")[0] for name, version in json.loads(told).items()} == pins


EVIL = "from pathlib import Path\nPath({mark!r}).touch()\nclass Evil: ...\n"


@pytest.mark.parametrize("where", ["tokenizer", "config", "model"])
def test_code_that_comes_with_a_model_is_not_run(where: str, python: Path, tmp_path: Path) -> None:
    subprocess.run([python, "-I", MAKER, tmp_path, "smollm3"], check=True, capture_output=True)
    folder, mark = tmp_path / "smollm3", tmp_path / "was-run"
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    name, auto = {
        "tokenizer": ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
        "config": ("config.json", {"AutoConfig": "evil.Evil"}),
        "model": ("config.json", {"AutoModelForCausalLM": "evil.Evil"}),
    }[where]
    document = json.loads((folder / name).read_text()) | {"auto_map": auto}
    if where == "tokenizer":
        document["tokenizer_class"] = "Evil"
    if where == "config":
        document["model_type"] = "evil"
    (folder / name).write_text(json.dumps(document))
    script = llama_cpp_converter.converter_source() / llama_cpp_converter.CONVERTER
    ends = {"ids": [], "known": [], "turns": []}
    job = {
        "job": "convert", "script": str(script), "source": str(folder), "output": str(tmp_path / "x.gguf"),
        "type": "f16", "name": "x", "pre_tokenizer": "llama-bpe", "window": None, "ends": ends,
    }  # fmt: skip
    logits = {"job": "logits", "source": str(folder), "tokens": [1, 2], "output": str(tmp_path / "l"), "n_threads": 1}
    for what in (job, logits):
        try:
            run_job(python, what, what["job"], log=tmp_path / "log", program="convert/converter_job.py")
        except ExporterError as error:
            print(f"\n{where}, {what['job']}: {error}")
    assert not mark.exists()
    done = edgellm("export", folder, "-o", tmp_path / "out", "--quant", "F16", "--exporter-python", python)
    print(f"{where}: exit {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    assert "Traceback" not in done.stderr
    assert not mark.exists()


def test_pickled_weights_are_not_unpickled(python: Path, tmp_path: Path) -> None:
    subprocess.run([python, "-I", MAKER, tmp_path, "smollm3"], check=True, capture_output=True)
    folder, mark = tmp_path / "smollm3", tmp_path / "was-run"
    (folder / "model.safetensors").unlink()
    evil = (
        "import pathlib, sys, torch\n"
        "class E:\n"
        "    def __reduce__(self): return (pathlib.Path.touch, (pathlib.Path(sys.argv[2]),))\n"
        "torch.save({'model.embed_tokens.weight': E()}, sys.argv[1])\n"
    )
    subprocess.run([python, "-I", "-c", evil, folder / "pytorch_model.bin", mark], check=True)
    done = edgellm("export", folder, "-o", tmp_path / "out", "--quant", "F16", "--exporter-python", python)
    assert done.returncode == 1
    print(done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert not mark.exists()
