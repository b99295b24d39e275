"""`edgellm.json`: what lies in a folder of exported models, where it is from, and what it must hash to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.export.read.json_file import read_json
from edgellm.export.read.tokenizer_facts import TokenizerError
from edgellm.memory import files
from edgellm.memory.errors import EdgellmError
from edgellm.memory.files import sha256_of
from edgellm.memory.gguf import GgufError, read_header
from edgellm.memory.onnx_graph import OnnxError, read_graph

NAME = "edgellm.json"
FORMAT = 1

_OBJECT, _TEXT, _NUMBER = (dict, type(None)), (str, type(None)), (int, float)
# What readers rely on, where it is there at all; `*` is every key of an object.
_KINDS: dict[str, tuple[type, ...]] = {
    "key": (str,), "tools": (dict,), "tools.*": (str,), "plan": _OBJECT, "pair": _OBJECT, "pair.*": (dict,),
    "pair.*.shared_of_target": _NUMBER, "pair.*.acceptance": _NUMBER,
} | {
    f"{role}{rest}": kinds
    for role in ("target", "draft")
    for rest, kinds in {
        "": _OBJECT, ".source": _OBJECT, ".source.files": _OBJECT, ".source.files.*": (str,), ".source.repo": _TEXT,
        ".source.revision": _TEXT, ".source.licence": _TEXT, ".verification": _OBJECT, ".verification.*": (dict, str),
        ".verification.*.*": (*_NUMBER, *_OBJECT), ".verification.*.*.*": _NUMBER,
        ".verification.perplexity.*": _NUMBER,
    }.items()
}  # fmt: skip
_MAX_NAME_BYTES = 255  # of every file system there is


class ManifestError(EdgellmError, ValueError):
    """A folder whose manifest is missing or damaged, or whose files are not what it says."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The document, with the few fields that programs ask for."""

    document: dict[str, Any]

    def files(self) -> Iterator[dict[str, Any]]:
        """Each file's entry: path, n_bytes, sha256, and for models role and quant."""
        yield from self.document["files"]

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.document["options"])

    @property
    def converter(self) -> str | None:
        """Who was to convert: "own", "llama.cpp", or None. A script of the user's own is not told by its name."""
        told = self.options.get("converter")
        return told if told in ("own", "llama.cpp") else None

    def revision(self, role: str) -> str | None:
        """The commit that the target or the draft was made from, where it came from the Hub."""
        return self._source(role, "revision")

    def repo(self, role: str) -> str | None:
        """The repository likewise."""
        return self._source(role, "repo")

    def _source(self, role: str, key: str) -> str | None:
        value = ((self.document.get(role) or {}).get("source") or {}).get(key)
        return str(value) if value else None


def tools() -> dict[str, str]:
    """Versions of what the bytes depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("edgellm", "llama-cpp-python", "numpy")}


def file_entry(path: Path, **facts: Any) -> dict[str, Any]:
    return {"path": path.name, "n_bytes": path.stat().st_size, "sha256": sha256_of(path), **facts}


def write(folder: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps({"format": FORMAT, **document}, indent=2, ensure_ascii=False)
    files.write(folder / NAME, text.encode("utf-8", "backslashreplace") + b"\n")  # a name that is no UTF-8: an escape


def read(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        ManifestError: there is none, or it is not one of this format.
    """
    path = folder / NAME
    if not path.is_file():
        raise ManifestError(f"{folder} has no {NAME}: `edgellm export MODEL --output {folder}` makes such a folder")
    try:
        return check(read_json(path), str(path))
    except TokenizerError as error:
        raise ManifestError(str(error)) from error


def check(document: dict[str, Any], where: str) -> Manifest:
    """A manifest from outside, its file names kept inside their folder."""
    if document.get("format") != FORMAT:
        raise ManifestError(f"{where} is not a manifest of format {FORMAT}: export again, or with an older edgellm")
    files = document.get("files")
    if not isinstance(files, list) or not isinstance(document.get("options"), dict):
        raise ManifestError(f"{where} is damaged: export again")
    if not files:
        raise ManifestError(f"{where} names no files: export again")
    for entry in files:
        name = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _stays_inside(name):
            raise ManifestError(f"{where} names a file outside its folder ({name!r}): do not use it")
        if not isinstance(entry.get("n_bytes"), int) or not isinstance(entry.get("sha256"), str):
            raise ManifestError(f"{where} does not say what {name} must hash to: export again")
        if not isinstance(entry.get("role"), str) or not isinstance(entry.get("quant", ""), str):
            raise ManifestError(f"{where} does not say what {name} is: export again")
    for fact, kinds in _KINDS.items():
        if not all(isinstance(value, kinds) for value in _found(document, fact.split("."))):
            raise ManifestError(f"{where} is damaged at {fact}: export again")
    return Manifest(document)


def _found(value: Any, names: list[str]) -> Iterator[Any]:
    """Every value that a path of names leads to."""
    if not names:
        yield value
    elif isinstance(value, dict):
        for inner in value.values() if names[0] == "*" else [value[names[0]]] if names[0] in value else []:
            yield from _found(inner, names[1:])


def _stays_inside(name: str) -> bool:
    """A file of the folder, or of a folder in it."""
    parts = name.split("/")
    return len(parts) <= 2 and all(
        Path(part).name == part and part not in {"", ".", ".."} and "\0" not in part
        and len(part.encode("utf-8", "replace")) <= _MAX_NAME_BYTES
        for part in parts
    )  # fmt: skip


def verify(folder: Path) -> Manifest:
    """Check every file of a folder against its manifest.

    Raises:
        ManifestError: the first file that is missing, of another size, changed, or no model although it should be one.
    """
    manifest = read(folder)
    for entry in manifest.files():
        path = folder / entry["path"]
        if path.is_symlink() or not path.is_file():
            raise ManifestError(f"{path} is missing: export again, or copy it again")
        if path.stat().st_size != entry["n_bytes"]:
            raise ManifestError(
                f"{path} has {path.stat().st_size:,} bytes where the manifest says {entry['n_bytes']:,}: copy it again"
            )
        if sha256_of(path) != entry["sha256"]:
            raise ManifestError(f"{path} is not the file that was exported (its sha256 differs): copy it again")
        if path.suffix == ".gguf":
            try:
                read_header(path)
            except GgufError as error:
                raise ManifestError(str(error)) from error
        if path.suffix == ".onnx":
            try:
                read_graph(path).check_data()
            except OnnxError as error:
                raise ManifestError(str(error)) from error
    return manifest
