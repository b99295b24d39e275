"""The same bits on an emulated ARM CPU, and no fault under the sanitizers. Both need tools that may be missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[2] / "runtime" / "kernels" / "src"
COMMON = ["matmul.cpp", "pack.cpp", "cpu.cpp", "variant_generic.cpp"]


def build(compiler: str, sources: list[str], options: list[str], program: Path) -> None:
    command = [compiler, "-std=c++17", "-ffp-contract=off", "-w", f"-I{SOURCES}", *options]
    command += [str(SOURCES / name) for name in sources] + [str(HERE / "check_variants.cpp"), "-o", str(program)]
    subprocess.run([*command, "-pthread"], check=True)


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="needs an ARM compiler and qemu",
)
def test_neon_gives_the_bits_of_the_definition(tmp_path: Path) -> None:
    build("aarch64-linux-gnu-g++", [*COMMON, "variant_neon.cpp"], ["-O1", "-static"], tmp_path / "check")
    done = subprocess.run(["qemu-aarch64", "-cpu", "max", tmp_path / "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "neon-dotprod generic" in done.stdout


@pytest.mark.model  # a minute of compilation
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    x86 = ["variant_avx512.cpp", "variant_avx2.cpp", "variant_avxvnni.cpp"]
    options = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    build("g++", [*COMMON, *x86], options, tmp_path / "check")
    done = subprocess.run([tmp_path / "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong" in done.stdout
