"""python check_dist.py DIST: looks into the sdist and the wheel that lie there, then installs the wheel and runs it.

The wheel holds every file of the packages and nothing else; the sdist that and what builds it. The installation is a
fresh environment outside the checkout, which needs a package index.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES, KERNELS = "runtime/kernels/src/", "runtime/kernels/_kernels.*"
BUILDS = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}


def folder_of(package: str) -> Path:
    """edgellm is the root, edgellm.memory is ./memory."""
    return ROOT.joinpath(*package.split(".")[1:])


def package_files() -> Iterator[str]:
    """Paths, relative to the root, of what the packages hold: modules, and data beside them or in folders."""
    yield from PROJECT["tool"]["setuptools"]["package-data"]["edgellm"]
    yield from (path.name for path in ROOT.glob("*.py") if path.name != "setup.py")
    rooms = {package.split(".")[1] for package in PROJECT["tool"]["setuptools"]["packages"] if "." in package}
    for path in (path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()):
        name = path.relative_to(ROOT).as_posix()
        if "__pycache__" not in name and not name.startswith(SOURCES) and not fnmatch(name, KERNELS):
            yield name


def differences(found: set[str], expected: set[str]) -> list[str]:
    return [f"lacks {name}" for name in sorted(expected - found)] + [f"has {name}" for name in sorted(found - expected)]


def wheel_problems(wheel: Path) -> list[str]:
    names = set(zipfile.ZipFile(wheel).namelist())
    held = {name.removeprefix("edgellm/") for name in names if not re.match(r"edgellm-[^/]+\.dist-info/", name)}
    kernels = {name for name in held if fnmatch(name, KERNELS)}
    platform = wheel.stem.rpartition("-")[2]
    problems = differences(held - kernels, set(package_files()))
    if f"-py3-none-{platform}" not in wheel.name:
        problems.append("is not for every Python 3")
    if bool(kernels) != (platform != "any"):
        problems.append(f"is for {platform}, and has {'kernels' if kernels else 'no kernels'}")
    return [f"{wheel.name} {problem}" for problem in problems]


def sdist_problems(sdist: Path) -> list[str]:
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / SOURCES).iterdir()}
    held = {name for name in names if not name.startswith("edgellm.egg-info/")}
    return [f"{sdist.name} {problem}" for problem in differences(held, set(package_files()) | sources | BUILDS)]


def run_installed(wheel: Path) -> None:
    """Install the wheel in an environment of its own and run it there; raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        programs = Path(folder) / "venv" / ("Scripts" if os.name == "nt" else "bin")
        python, edgellm = programs / "python", programs / "edgellm"
        without = ["--without-kernels"] if wheel.stem.endswith("-any") else []
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["EDGELLM_HOME"] = str(Path(folder) / "home")
        for command in (
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel.resolve()],
            [edgellm, "--version"],
            [edgellm, "devices"],
            [python, Path(__file__).resolve().with_name("installed.py"), *without],
        ):
            print("$", *command, flush=True)
            subprocess.run([str(part) for part in command], cwd=folder, env=environment, check=True)


def main(folder: Path) -> int:
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    problems = [problem for wheel in wheels for problem in wheel_problems(wheel)]
    problems += [problem for sdist in sdists for problem in sdist_problems(sdist)]
    if len(wheels) != 1 or len(sdists) != 1:
        problems.append(f"{folder} holds {len(wheels)} wheels and {len(sdists)} sdists; one of each is looked for")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    run_installed(wheels[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
