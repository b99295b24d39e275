"""The same bits on an emulated ARM CPU and by other compilers; no fault under the sanitizers. Tools may be missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[2] / "runtime" / "kernels" / "src"
COMMON = ["matmul.cpp", "experts.cpp", "pack.cpp", "cpu.cpp", "grids.cpp", "variant_generic.cpp"]
X86 = ["variant_avx512.cpp", "variant_avx2.cpp", "variant_avxvnni.cpp"]
PLUGIN = ["engine.cpp", "plugin.cpp", "sequences.cpp", "self_test.cpp", "lent.cpp", "exports.cpp"]
# gcc warns of more than there is in what the sanitizers add. No vptr: the engine's classes are known by layout alone.
SANITIZE = [
    "-O0",  # the optimiser takes four minutes a variant over what the sanitizers add
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=all",
    "-Wno-error",
]
# The kind with threads of the standard library, where a system has two.
MINGW = shutil.which("x86_64-w64-mingw32-g++-posix") or shutil.which("x86_64-w64-mingw32-g++")


def compile_all(compiler: str, sources: list[Path], options: list[str], folder: Path) -> list[Path]:
    """The object files, compiled side by side."""
    command = [
        compiler,
        "-std=c++17",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        f"-I{SOURCES}",
        *options,
        "-c",
    ]
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(
            lambda pair: subprocess.run([*command, pair[0], "-o", pair[1]]), zip(sources, objects, strict=True)
        ):
            assert done.returncode == 0, done.args
    return objects


def build(compiler: str, sources: list[str], options: list[str], program: Path) -> None:
    files = [*(SOURCES / name for name in sources), HERE / "check_variants.cpp"]
    objects = compile_all(compiler, files, options, program.parent)
    subprocess.run([compiler, *options, *objects, "-o", program, "-pthread"], check=True)


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="needs an ARM compiler and qemu",
)
def test_neon_gives_the_bits_of_the_definition(tmp_path: Path) -> None:
    sources = [*COMMON, "variant_neon.cpp", "variant_i8mm.cpp"]
    build("aarch64-linux-gnu-g++", sources, ["-O1", "-static"], tmp_path / "check")
    cpus = {
        "max": "neon-i8mm neon-dotprod generic",
        "neoverse-n1": "neon-i8mm (not here) neon-dotprod generic",
        "cortex-a72": "neon-i8mm (not here) neon-dotprod (not here) generic",
    }
    for cpu, variants in cpus.items():
        done = subprocess.run(["qemu-aarch64", "-cpu", cpu, tmp_path / "check"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert variants in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("clang++"), reason="needs clang")
def test_clang_gives_the_same_bits(tmp_path: Path) -> None:
    build("clang++", [*COMMON, *X86], ["-O2"], tmp_path / "check")
    done = subprocess.run([tmp_path / "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " 0 wrong" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(MINGW is None, reason="needs mingw-w64")
def test_the_library_builds_for_windows(tmp_path: Path) -> None:
    compiler = str(MINGW)
    objects = compile_all(compiler, sorted(SOURCES.glob("*.cpp")), ["-O1"], tmp_path)
    subprocess.run([compiler, "-shared", *objects, "-o", tmp_path / "_kernels.dll"], check=True)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library and the check of the variants, built for the sanitizers."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("sanitized")
    files = [SOURCES / name for name in [*COMMON, *X86]]
    objects = compile_all("g++", files, SANITIZE, folder)
    check = compile_all("g++", [HERE / "check_variants.cpp"], SANITIZE, folder)
    subprocess.run(["g++", *SANITIZE, *objects, *check, "-o", folder / "check", "-pthread"], check=True)
    rest = compile_all("g++", [SOURCES / name for name in PLUGIN], SANITIZE, folder)
    library = folder / "_kernels.so"
    subprocess.run(["g++", "-shared", *SANITIZE, *objects, *rest, "-o", library, "-pthread", "-ldl"], check=True)
    return folder


@pytest.mark.slow
def test_the_sanitizers_find_nothing(sanitized: Path) -> None:
    done = subprocess.run([sanitized / "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong" in done.stdout


TWO_AT_ONCE = """
import sys, threading
from pathlib import Path
from edgellm.runtime.kernels import load
load.__file__ = sys.argv[1]
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_sequences import LlamaSequences, Part
from edgellm.memory.context import ContextSettings
def run(model, out):
    backend = LlamaBackend(model, ContextSettings(n_ctx=256, n_outputs=17, n_threads=2))
    for n in (1, 17, 40):
        backend.truncate(0)
        out.append(backend.forward(list(range(100, 100 + n)), 1).tobytes())
    backend.close()
for _ in range(3):
    model, outs = LlamaModel(Path(sys.argv[2])), ([], [])
    threads = [threading.Thread(target=run, args=(model, out)) for out in outs]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(outs[0]) == 3 and outs[0] == outs[1]
    several = LlamaSequences(model, ContextSettings(n_ctx=64, n_ubatch=32, n_outputs=4, n_threads=2), 3)
    for n in range(1, 40):  # of each, with one taken back now and then
        for sequence in range(3): several.truncate(sequence, n - 1 - (n + sequence) % 2)
        parts = [Part(s, [100 + s] * (n - len(several.held[s])), 1) for s in range(3)]
        several.forward(parts)
        if n == 20: assert several.copy(0, 1, 10)
    several.close()
    model.close()
print(kernels().variant)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a library to be loaded before all others")
def test_the_sanitizers_find_nothing_in_two_contexts_at_once_nor_in_repeated_loads(
    sanitized: Path, smollm2_path: Path
) -> None:
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    environment = {**os.environ, "LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-c", TWO_AT_ONCE, sanitized / "load.py", smollm2_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-1] != "stock", done.stderr
