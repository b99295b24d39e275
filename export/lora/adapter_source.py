"""Where an adapter and its base come from: configurations first, so that what is refused costs no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgellm.export.lora.adapters import WEIGHTS, weights_of
from edgellm.export.lora.lora_facts import read_facts
from edgellm.export.obtain import hub, naming, store
from edgellm.export.obtain.catalogue import HfSource, UnknownModel, find
from edgellm.export.obtain.download import Progress, SourceError, Unwatched
from edgellm.export.obtain.source import ADAPTER
from edgellm.export.read.facts import UnsupportedModel
from edgellm.memory.files import sha256_of
from edgellm.memory.split import model_name


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter to export, its configuration here and its weights as soon as they are asked for."""

    name: str
    path: Path
    repo: str | None = None
    revision: str | None = None
    licence: str | None = None
    pull: Callable[[str], Path] | None = None  # brings a further file of the repository
    names: frozenset[str] = frozenset()

    def complete(self) -> AdapterSource:
        """The same with its weights in the folder.

        Raises:
            UnsupportedModel, SourceError: it has none, or they cannot be had.
        """
        if self.pull is not None:
            name = next((name for name in WEIGHTS if name in self.names), None)
            if name is None:
                raise UnsupportedModel(f"{self.repo} has no {WEIGHTS[0]}: its upload is incomplete")
            self.pull(name)
        return self

    def digests(self) -> dict[str, str]:
        """sha256 of the files that an export depends on."""
        return {path.name: sha256_of(path) for path in (self.path / ADAPTER, weights_of(self.path))}

    def described(self) -> dict[str, object]:
        return {
            "repo": self.repo,
            "revision": self.revision,
            "licence": self.licence,
            "files": self.digests(),
        }


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A base whose configuration, or GGUF file, is here."""

    name: str
    path: Path
    repo: str | None = None
    revision: str | None = None

    def described(self) -> dict[str, object]:
        """As a manifest tells of it: by hash where its configuration is all that counts."""
        config = self.path / "config.json"
        file = {"config.json": sha256_of(config)} if config.is_file() else {self.path.name: self.path.stat().st_size}
        return {"name": self.name, "repo": self.repo, "revision": self.revision, "files": file}


@contextmanager
def called_by_name(*sources: AdapterSource | BaseSource) -> Iterator[None]:
    """A sentence about a folder of the Hub's cache names the repository instead."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        for source in sources:
            text = text.replace(str(source.path), source.repo or str(source.path))
        if text == str(error):
            raise
        raise type(error)(text) from error


def is_adapter(reference: str) -> bool:
    """Whether a reference is the folder of an adapter on this disk."""
    folder = Path(reference).expanduser()
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def resolve_adapter(
    reference: str, *, revision: str | None = None, token: str | None = None, progress: Progress | None = None
) -> AdapterSource:
    """What a reference names, with its adapter_config.json on this machine and no more.

    Raises:
        BadReference: it is no adapter.
        SourceError: the Hub is out of reach or refuses.
    """
    folder = Path(reference).expanduser()
    if (folder / ADAPTER).is_file():
        return AdapterSource(folder.resolve().name, folder)
    if folder.is_dir():
        raise naming.BadReference(f"{reference} holds no {ADAPTER}: it is no adapter's folder")
    parsed = naming.parse(reference)
    if parsed.repo is None:
        raise naming.BadReference(f"{reference} is no adapter: name a PEFT folder or a user/repo that holds {ADAPTER}")
    repo = _repository(parsed.repo, revision or "main", token, progress)
    if ADAPTER not in repo.names:
        raise naming.BadReference(f"{parsed.repo} holds no {ADAPTER}: it is no adapter")
    assert repo.pull is not None
    return replace(repo, path=repo.pull(ADAPTER).parent)


def resolve_base(
    reference: str, *, revision: str | None = None, token: str | None = None, progress: Progress | None = None
) -> BaseSource:
    """A base's configuration: a folder's, a GGUF file, or config.json of a repository, which alone is fetched.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing.
        SourceError: the Hub is out of reach or refuses.
    """
    folder = Path(reference).expanduser()
    if (folder / "config.json").is_file():
        return BaseSource(folder.resolve().name, folder)
    parsed = naming.parse(reference)
    if parsed.path is not None or parsed.quant:
        model = store.locate(reference) or store.pull(reference, token=token)
        return BaseSource(model_name(model.path), model.path, model.repo, model.revision)
    if parsed.repo is None:
        entry = find(parsed.name or "")
        name, repo_name, at = entry.name, entry.repo, revision or entry.revision
    else:
        name, repo_name, at = parsed.repo.rpartition("/")[2], parsed.repo, revision or "main"
    repo = _repository(repo_name, at, token, progress)
    if "config.json" not in repo.names or repo.pull is None:
        raise naming.BadReference(f"{repo_name} has no config.json: name the base model's repository with --base")
    return BaseSource(name, repo.pull("config.json").parent, repo_name, repo.revision)


def named_base(source: AdapterSource) -> str:
    """What an adapter says that it was trained on.

    Raises:
        BadReference: it does not say.
    """
    told = read_facts(source.path).base
    if told is None:
        raise naming.BadReference(f"{source.name} does not say what it was trained on: name its base with --base")
    return told


def told_base(
    source: AdapterSource, *, revision: str | None, token: str | None, progress: Progress | None
) -> BaseSource:
    """The base that an adapter's own configuration names.

    Raises:
        BadReference: it cannot be had by that name.
    """
    reference = named_base(source)
    revision = revision or read_facts(source.path).base_revision
    try:
        return resolve_base(reference, revision=revision, token=token, progress=progress)
    except (naming.BadReference, UnknownModel, SourceError, store.PullError) as error:
        raise naming.BadReference(
            f"{source.name} was trained on {reference}, which cannot be had by that name ({error}): name its base with "
            "--base"
        ) from error


def _repository(repo: str, revision: str, token: str | None, progress: Progress | None) -> AdapterSource:
    import huggingface_hub

    with hub.plain_errors(repo):
        api = huggingface_hub.HfApi(endpoint=hub.endpoint(), token=token)
        info = api.model_info(repo, revision=revision, files_metadata=True)
    licence = info.card_data.get("license") if info.card_data else None
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    commit = str(info.sha)

    def pull(filename: str) -> Path:
        source = HfSource(repo, filename, commit)
        return hub.pull(source, progress or Unwatched(), n_bytes=sizes[filename], sha256=None, token=token)

    return AdapterSource(repo.rpartition("/")[2], Path(), repo, commit, licence, pull, frozenset(sizes))
