"""What is exported: a Hub folder on this disk, a repository's checkpoint brought here, or a GGUF file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgellm.export.obtain import hub, naming, store
from edgellm.export.obtain.catalogue import HfSource, find
from edgellm.export.obtain.download import Progress
from edgellm.export.read.checkpoint import chosen_weights, shards_of
from edgellm.memory.files import sha256_of
from edgellm.memory.split import model_name, parts_of

TOKENIZER_FILES = {
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "config.json", "generation_config.json", "spiece.model",
    "hf_quant_config.json",
}  # fmt: skip
_OLD_TOKENIZER_FILES = {"vocab.json", "merges.txt"}  # of repositories that have no other
ADAPTER = "adapter_config.json"


class Check(Protocol):
    """Who looks at a folder before its weights are there, and raises a ValueError that says what is wrong with it."""

    def __call__(self, folder: Path, *, has_tokenizer: bool) -> object: ...


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to export and where it is from."""

    name: str
    path: Path  # a Hub folder or a GGUF file, the first of a model in several
    repo: str | None = None
    revision: str | None = None  # commit
    licence: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()

    def files(self) -> list[Path]:
        """The files that the export depends on, in order."""
        if self.is_gguf:
            return parts_of(self.path)
        there = {path.name for path in self.path.iterdir() if path.is_file()}
        return sorted(self.path / name for name in {*_small_files(there), *_weights(self.path, there)})

    def digests(self) -> dict[str, str]:
        """sha256 of each of `files`."""
        return {path.name: sha256_of(path) for path in self.files()}


def resolve(
    reference: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
    check: Check | None = None,
) -> ModelSource:
    """What a reference names, brought to this machine: a folder, a GGUF file, a catalogue name, or user/repo.

    Args:
        revision: commit, branch or tag of the repository. None: what the catalogue says, or main.
        check: called with the folder once its configuration is in it, again with its tokenizer, and before any weights
            are; what it raises is raised.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing.
        SourceError: the Hub is out of reach or refuses.
    """
    folder = Path(reference).expanduser()
    if (folder / "config.json").is_file() or (check is not None and (folder / ADAPTER).is_file()):
        if check is not None:
            check(folder, has_tokenizer=True)
        return ModelSource(folder.resolve().name, folder)
    parsed = naming.parse(reference)
    if parsed.path is not None or parsed.quant:
        model = store.locate(reference) if parsed.path is not None else None
        model = model or store.pull(reference, token=token)
        return ModelSource(model_name(model.path), model.path, model.repo, model.revision, model.licence)
    if parsed.repo is not None:
        return _fetch(parsed.repo.rpartition("/")[2], parsed.repo, revision or "main", None, token, progress, check)
    assert parsed.name is not None
    entry = find(parsed.name)
    return _fetch(entry.name, entry.repo, revision or entry.revision, entry.licence, token, progress, check)


def _fetch(
    name: str,
    repo: str,
    revision: str,
    licence: str | None,
    token: str | None,
    progress: Progress | None,
    check: Check | None,
) -> ModelSource:
    """A repository's checkpoint, file by file, through the Hub's cache: what is there is not fetched again."""
    import huggingface_hub

    from edgellm.export.obtain.download import Unwatched

    with hub.plain_errors(repo):
        api = huggingface_hub.HfApi(endpoint=hub.endpoint(), token=token)
        info = api.model_info(repo, revision=revision, files_metadata=True)
    licence = licence or (info.card_data.get("license") if info.card_data else None)
    commit = str(info.sha)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}

    def pull(filename: str) -> Path:
        source = HfSource(repo, filename, commit)
        return hub.pull(source, progress or Unwatched(), n_bytes=sizes[filename], sha256=None, token=token)

    weights = chosen_weights(sizes)
    is_adapter = weights is None and ADAPTER in sizes
    if weights is None and not is_adapter:
        raise naming.BadReference(_without_weights(repo, list(sizes)))
    first = ADAPTER if is_adapter else "config.json"
    if first not in sizes:
        raise naming.BadReference(f"{repo} has weights and no config.json: is it a model's repository?")
    folder = pull(first).parent
    _look(check, folder, repo, has_tokenizer=False)
    if weights is None:
        raise naming.BadReference(f"{repo} is an adapter and holds no model of its own: name its base model")
    for filename in sorted(_small_files(sizes)):
        pull(filename)
    _look(check, folder, repo, has_tokenizer=True)
    if weights.endswith(".index.json"):
        for shard in shards_of(pull(weights)):
            if shard not in sizes:
                raise naming.BadReference(f"{repo} lacks {shard}, which {weights} names: its upload is incomplete")
            pull(shard)
    else:
        pull(weights)
    return ModelSource(name, folder, repo, commit, licence)


def _small_files(names: Collection[str]) -> set[str]:
    """Of a repository's files, those that say how a model computes and how it reads text."""
    small = TOKENIZER_FILES & set(names)
    return small if small & {"tokenizer.json", "tokenizer.model"} else small | (_OLD_TOKENIZER_FILES & set(names))


def _look(check: Check | None, folder: Path, repo: str, *, has_tokenizer: bool) -> None:
    """Let `check` look at a folder of the cache, and call it by its repository's name."""
    try:
        if check is not None:
            check(folder, has_tokenizer=has_tokenizer)
    except ValueError as error:
        raise type(error)(str(error).replace(str(folder), repo)) from error


def _without_weights(repo: str, names: Sequence[str]) -> str:
    if any(name.endswith(".gguf") for name in names):
        return f"{repo} holds GGUF files and no checkpoint: name the type of one, as in {repo}:Q8_0"
    if any(name.endswith((".safetensors", ".pth", ".bin")) for name in names):
        return (
            f"{repo} holds weights in its authors' own layout alone; transformers' is exported (model.safetensors or "
            "pytorch_model.bin, whole or in shards with their index): look for a repository that has it"
        )
    return f"{repo} holds no checkpoint (safetensors or .bin)"


def _weights(folder: Path, names: Collection[str]) -> set[str]:
    """The weights' files that are read, of those in a folder, and their index."""
    chosen = chosen_weights(names)
    if chosen is None:
        return set()
    return {chosen, *(set(shards_of(folder / chosen)) & set(names) if chosen.endswith(".index.json") else ())}


def fingerprint(value: Any) -> str:
    """Short and stable, of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
