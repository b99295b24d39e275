"""llama.cpp's own converter, of the release that the engine is built from.

It travels in the source distribution of llama-cpp-python, beside the engine's own sources. That is fetched as pip finds
it, checked, and of it the converter's files alone are unpacked; nothing of it is installed or built.
"""

from __future__ import annotations

import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import filelock

from edgellm.export.obtain import pypi
from edgellm.export.obtain.download import Progress, SourceError, Unwatched, check, fetch
from edgellm.memory.files import making
from edgellm.memory.folders import home

PACKAGE = ("llama-cpp-python", "0.3.36")
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
N_BYTES = 76_589_250

CONVERTER = "convert_hf_to_gguf.py"
_ROOT = f"llama_cpp_python-{PACKAGE[1]}/vendor/llama.cpp/"
_FOLDERS = ("conversion/", "gguf-py/gguf/")
_MAX_BYTES = 16_000_000  # of all that is unpacked: 1.9 MB in 0.3.36


def converter_source(progress: Progress | None = None) -> Path:
    """The folder with llama.cpp's `convert_hf_to_gguf.py`, fetched the first time.

    Raises:
        SourceError: pip's indexes do not have the source distribution, or have another one under its name.
        OSError: this machine's disk.
    """
    folder = home() / "converters" / f"llama.cpp-{PACKAGE[1]}-{SHA256[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():  # nobody else was first
            _make(folder, progress or Unwatched())
    return folder


def is_there() -> bool:
    """Whether `converter_source` has nothing to fetch."""
    return (home() / "converters" / f"llama.cpp-{PACKAGE[1]}-{SHA256[:12]}").is_dir()


def _make(folder: Path, progress: Progress) -> None:
    archive = folder.with_name(f".{folder.name}.tar.gz")
    _bring(archive, progress)
    with making(folder) as aside:
        _unpack(archive, aside)
    archive.unlink()


def _bring(archive: Path, progress: Progress) -> None:
    if archive.exists():  # the last run was ended while it unpacked
        check(archive, n_bytes=N_BYTES, sha256=SHA256)
        return
    (found,) = pypi.resolve([PACKAGE], of_sources=True)
    name = "==".join(PACKAGE)
    if found.url is None:
        raise SourceError(f"pip does not tell where the source distribution of {name} is: bring pip up to date")
    progress.start(N_BYTES, f"llama.cpp's converter ({name})")
    try:
        fetch(found.url, archive, progress, partial=archive.with_suffix(".part"), n_bytes=N_BYTES, sha256=SHA256)
    except SourceError as error:
        raise SourceError(
            f"llama.cpp's converter ({name}, source distribution): {error}", status=error.status
        ) from error
    finally:
        progress.done()


def _unpack(archive: Path, folder: Path) -> None:
    """The converter's files, by name and kind: a member that is anything else is passed over."""
    n_bytes = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = _wanted(member)
                if name is None:
                    continue
                n_bytes += member.size
                if n_bytes > _MAX_BYTES:
                    raise SourceError(f"{archive.name} unpacks to more than a converter")
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                reader = tar.extractfile(member)
                assert reader is not None
                with path.open("wb") as file:
                    shutil.copyfileobj(reader, file)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        archive.unlink()
        raise SourceError(f"{archive.name} is damaged ({error}): run the same command again") from error
    if not (folder / CONVERTER).is_file():
        raise SourceError(f"{archive.name} has no {CONVERTER}")


def _wanted(member: tarfile.TarInfo) -> PurePosixPath | None:
    """The path within the converter's folder, None for a member that is not of the converter."""
    if not member.isfile() or not member.name.startswith(_ROOT):
        return None
    name = PurePosixPath(member.name.removeprefix(_ROOT))
    if any(part in {"", ".", ".."} or "\\" in part or ":" in part for part in name.parts) or name.is_absolute():
        return None
    if str(name) in {CONVERTER, "LICENSE", "gguf-py/LICENSE"}:
        return name
    is_module = name.suffix == ".py" and any(str(name).startswith(folder) for folder in _FOLDERS)
    return name if is_module else None
