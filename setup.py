"""The compiled part of the package: the kernels. Without a C++ compiler the package installs without them."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCES = Path("runtime/kernels/src")
# Nothing is compiled for the machine at hand: each file names its instruction set, and the CPU is asked at run time.
UNIX_FLAGS = ["-std=c++17", "-O3", "-fno-wrapv", "-ffp-contract=off", "-fvisibility=hidden", "-w", "-g0"]
MSVC_FLAGS = ["/std:c++17", "/O2", "/fp:precise", "/EHsc"]
ENDINGS = {"win32": "dll", "darwin": "dylib"}


class BuildPackages(build_py):
    """Leaves this file out, which lies beside the package's own modules."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


class BuildKernels(build_ext):
    """Builds a plain shared library: it is opened with ctypes and knows nothing of Python."""

    def build_extension(self, ext: Extension) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        ext.extra_compile_args = MSVC_FLAGS if msvc else UNIX_FLAGS
        ext.extra_link_args = [] if msvc else ["-pthread"]
        if sys.platform.startswith("linux"):
            ext.libraries = ["dl"]
        super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.{ENDINGS.get(sys.platform, 'so')}"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


setup(
    ext_modules=[
        Extension(
            "edgellm.runtime.kernels._kernels",
            sources=sorted(path.as_posix() for path in SOURCES.glob("*.cpp")),
            depends=sorted(path.as_posix() for path in SOURCES.glob("*.h")),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPackages},
)
