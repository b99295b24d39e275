"""The compiled part of the package: the kernels. Without a C++ compiler the package installs without them."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCES = Path("runtime/kernels/src")
# Nothing is compiled for the machine at hand: each file names its instruction set, and the CPU is asked at run time.
UNIX_FLAGS = ["-std=c++17", "-O3", "-fno-wrapv", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-g0"]
MSVC_FLAGS = ["/std:c++17", "/O2", "/fp:precise", "/EHsc", "/W3"]
ENDINGS = {"win32": "dll", "darwin": "dylib"}
KERNELS = Extension(
    "edgellm.runtime.kernels._kernels",
    sources=sorted(path.as_posix() for path in SOURCES.glob("*.cpp")),
    depends=sorted(path.as_posix() for path in SOURCES.glob("*.h")),
    language="c++",
    optional=True,
)


class BuildKernels(build_ext):
    """Builds a plain shared library: it is opened with ctypes and knows nothing of Python."""

    def build_extension(self, ext: Extension) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        ext.extra_compile_args = MSVC_FLAGS if msvc else UNIX_FLAGS
        ext.extra_link_args = [] if msvc else ["-pthread"]
        if sys.platform.startswith("linux"):
            ext.libraries = ["dl"]
        if not msvc:
            self._compile_side_by_side()
        try:
            super().build_extension(ext)
        except Exception:  # setuptools goes on without it; what an earlier build left must not take its place
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            raise

    def _compile_side_by_side(self) -> None:
        """On all cores: setuptools takes the files of an extension one after the other, three minutes of them here."""
        compile_files = self.compiler.compile

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_files([source], **options), sources)
                return [path for paths in objects for path in paths]

        self.compiler.compile = compile_all

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.{ENDINGS.get(sys.platform, 'so')}"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class BuildModules(build_py):
    """The checkout is the package, and this file no part of it."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if Path(module[2]).resolve() != Path(__file__).resolve()]


class KernelsWheel(bdist_wheel):
    """`py3-none-PLATFORM`: one wheel for every Python; `py3-none-any` where the kernels did not compile."""

    def run(self) -> None:
        if not self.skip_build:
            self.run_command("build")
        if not Path(self.get_finalized_command("build_ext").get_ext_fullpath(KERNELS.name)).is_file():
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[KERNELS],
    cmdclass={"build_ext": BuildKernels, "build_py": BuildModules, "bdist_wheel": KernelsWheel},
)
