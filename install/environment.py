"""Set up an environment: the small packages, then llama.cpp, compiled while the default models come, then edgellm.

    python install/environment.py VENV [--fetch] [--locked] [--wheels FOLDER_OR_URL]

One line on stderr says how far it is. `--wheels`: where packages that are compiled already lie; what is there is not
compiled. Standard library alone, for it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINE = "llama-cpp-python"
# Of what llama-cpp-python compiles, nothing here uses pictures (mtmd) or the tools' common library: half of the time.
CMAKE_ARGS = f"-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE={(ROOT / 'install/llama_cpp.cmake').as_posix()}"
# Its wheel would hold each library six times: twice, for llama.cpp installs them too, under the three names of a link.
WHEEL_EXCLUDE = "/lib/;/include/;/bin/;/llama_cpp/lib/*.so.*.*;/llama_cpp/lib/*.*.*.dylib"
EVERY_S = 15.0  # between lines where stderr is no terminal


class Failed(Exception):
    """A command ended with an error; its last lines."""


class Line:
    """What is going on, one line that is written over on a terminal."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self._lock, self._last_s, self._shown = threading.Lock(), -EVERY_S, ""

    def show(self, what: str, how_far: str) -> None:
        with self._lock:
            self.parts[what] = how_far
            text = ", ".join(f"{key}: {value}" if value else key for key, value in sorted(self.parts.items()))
            now_s = time.monotonic()
            if sys.stderr.isatty():
                n_columns = shutil.get_terminal_size().columns  # a line that wraps could not be written over
                sys.stderr.write(f"\r\x1b[K{text[: n_columns - 1]}")
            elif now_s - self._last_s >= EVERY_S and text != self._shown:
                sys.stderr.write(f"{text}\n")
                self._last_s, self._shown = now_s, text
            sys.stderr.flush()

    def end(self, what: str) -> None:
        with self._lock:
            self.parts.pop(what, None)

    def clear(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")


def run(command: list[str | Path], environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Its lines as they come, both streams.

    Raises:
        Failed: it ended with an error.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=ROOT,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines = [*lines[-40:], line]
            yield line
    finally:
        if process.poll() is None and sys.exc_info()[0] is not None:
            process.terminate()
        code = process.wait()
    if code != 0:
        raise Failed(f"{' '.join(map(str, command))}\n{''.join(lines)}")


def dependencies() -> tuple[list[str], str]:
    """Of pyproject.toml: the small ones, and the engine."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    engine = next(each for each in wanted if each.startswith(ENGINE))
    return [each for each in wanted if each != engine], engine


class Environment:
    """A virtual environment and where its packages come from."""

    def __init__(self, folder: Path, wheels: str | None, line: Line) -> None:
        self.line = line
        self.python = folder.absolute() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        if not self.python.exists():
            line.show("making the environment", "")
            try:
                venv.create(folder, with_pip=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise Failed(
                    f"{folder} does not become an environment ({error}); Debian has python3-venv for it"
                ) from None
            line.end("making the environment")
        self._wheels = ["--find-links", wheels] if wheels else []

    def pip(self, what: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
        """Install; the line shows what is compiled, file by file, where that is told.

        Raises:
            Failed: pip did.
        """
        self.line.show(what, "")
        command = [self.python, "-m", "pip", "install", "--disable-pip-version-check", *self._wheels, *arguments]
        for text in run(command, environment):
            if step := re.search(r"\[ *(\d+)/(\d+)\]", text):
                self.line.show(what, f"{step[1]} of {step[2]} files")
        self.line.end(what)

    def fetch(self) -> None:
        """Bring the default pair, without the engine; what fails here is tried again, and said, by the chat."""
        what = "fetching models"
        self.line.show(what, "")
        with suppress(Failed):
            for text in run([self.python, ROOT / "install/fetch.py"], {"PYTHONPATH": str(ROOT / ".typing")}):
                self.line.show(what, text.strip())
        self.line.end(what)


@contextmanager
def beside(work: threading.Thread | None) -> Iterator[None]:
    """Begin it, and wait for its end behind the block."""
    if work is not None:
        work.start()
    yield
    if work is not None:
        work.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--fetch", action="store_true", help="the default models too, while llama.cpp is compiled")
    parser.add_argument("--locked", action="store_true", help="the versions of requirements.lock")
    parser.add_argument("--wheels", help="a folder or a page with compiled packages")
    arguments = parser.parse_args()
    line = Line()
    small, engine = dependencies()
    locked = ["--require-hashes", "--requirement", ROOT / "requirements.lock"]
    try:
        environment = Environment(arguments.venv, arguments.wheels, line)
        if not arguments.locked:
            environment.pip("fetching packages", "--no-compile", *small)
        fetch = arguments.fetch and not arguments.locked
        with beside(threading.Thread(target=environment.fetch, daemon=True) if fetch else None):
            settings = {
                "CMAKE_ARGS": f"{CMAKE_ARGS} {os.environ.get('CMAKE_ARGS', '')}".strip(),
                "SKBUILD_WHEEL_EXCLUDE": WHEEL_EXCLUDE,
            }
            wanted = locked if arguments.locked else [engine]
            environment.pip("compiling llama.cpp", "--verbose", *wanted, environment=settings)
            environment.pip("compiling the kernels", "--no-deps", "--editable", ".")
    except Failed as error:
        line.clear()
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        line.clear()
        return 130
    line.clear()
    return 0


if __name__ == "__main__":
    sys.exit(main())
