"""What a reference stands for before it is known whether it is here: files, and what they must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgellm.export.obtain import hub, naming
from edgellm.export.obtain.catalogue import FileEntry, HfSource, ModelEntry, Part
from edgellm.export.obtain.download import digest
from edgellm.export.obtain.naming import BadReference
from edgellm.memory.folders import home


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that a reference stands for, before it is known whether it is here."""

    name: str
    licence: str | None
    file: FileEntry

    @property
    def key(self) -> str:
        return f"{self.name}/{self.file.filename}"

    @property
    def home_path(self) -> Path:
        return home() / "models" / self.name / self.file.filename


def wanted_of(entry: ModelEntry, quant: str | None) -> Wanted:
    if not entry.files:
        raise BadReference(
            f"{entry.name} is known as the checkpoint {entry.repo} alone: "
            f"`edgellm export {entry.name}` makes a GGUF of it"
        )
    if quant is None:
        return Wanted(entry.name, entry.licence, entry.files[0])
    for file in entry.files:
        if quant.casefold() in (file.quant.casefold(), file.filename.casefold()):
            return Wanted(entry.name, entry.licence, file)
    raise BadReference(
        f"{entry.name} has no {quant}; it has {', '.join(file.quant for file in entry.files)}, and "
        f"`edgellm export {entry.name} --quant TYPE` makes others"
    )


def of_cache(repo: str, filename: str) -> Wanted:
    sizes = dict.fromkeys(naming.files_of(filename))
    return Wanted(repo, None, FileEntry.of(naming.quant_of(filename) or "", sizes, HfSource(repo, filename)))


def expected_parts(file: FileEntry, known: Mapping[str, Any]) -> list[Part]:
    """The parts, their checksums those of the catalogue or of the first download."""
    digests = [part["sha256"] for part in known.get("parts") or ()] or [known.get("sha256")] * len(file.parts)
    if len(digests) != len(file.parts):
        return list(file.parts)
    return [
        part if part.sha256 else replace(part, sha256=digest) for part, digest in zip(file.parts, digests, strict=True)
    ]


def named_at(source: HfSource, parts: Sequence[Part]) -> list[Part]:
    """Parts by the names that they have in a repository."""
    names = [source.part(number).filename.rpartition("/")[2] for number in range(1, len(parts) + 1)]
    return [replace(part, filename=name) for part, name in zip(parts, names, strict=True)]


def cached_parts(wanted: Wanted) -> list[Path]:
    """Files of a model that lie in the Hub's cache, all of them or some."""
    found: list[Path] = []
    for source in wanted.file.sources:
        if isinstance(source, HfSource):
            numbers = range(1, len(wanted.file.parts) + 1)
            found += filter(None, (hub.cached(source.part(number)) for number in numbers))
    return found


def are_right(paths: Sequence[Path], parts: Sequence[Part]) -> bool:
    """Whether files are the parts that are expected: there, of their lengths, and of their checksums."""
    return (
        len(paths) == len(parts)
        and all(
            path.is_file() and part.n_bytes in (None, path.stat().st_size)
            for path, part in zip(paths, parts, strict=True)
        )
        and all(
            wanted is None or digest(path) == wanted
            for path, part in zip(paths, parts, strict=True)
            if (wanted := part.sha256 or hub.sha256_of_name(path)) is not None
        )
    )
