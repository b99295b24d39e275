"""What is exported: a Hub folder on this disk, a repository's checkpoint brought here, or a GGUF file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.export import hub, naming, store
from edgellm.export.catalogue import HfSource, find
from edgellm.export.download import Progress

TOKENIZER_FILES = {
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "config.json", "generation_config.json",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to export and where it is from."""

    name: str
    path: Path  # a Hub folder or a GGUF file
    repo: str | None = None
    revision: str | None = None  # commit
    licence: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()

    def files(self) -> list[Path]:
        """The files that the export depends on, in order."""
        if self.is_gguf:
            return [self.path]
        return sorted(path for path in self.path.iterdir() if path.is_file() and _belongs(path.name))

    def digests(self) -> dict[str, str]:
        """sha256 of each of `files`."""
        return {path.name: sha256_of(path) for path in self.files()}


def resolve(
    reference: str, *, revision: str | None = None, token: str | None = None, progress: Progress | None = None
) -> ModelSource:
    """What a reference names, brought to this machine: a folder, a GGUF file, a catalogue name, or user/repo.

    Args:
        revision: commit, branch or tag of the repository. None: what the catalogue says, or main.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing.
        SourceError: the Hub is out of reach or refuses.
    """
    folder = Path(reference).expanduser()
    if (folder / "config.json").is_file():
        return ModelSource(folder.resolve().name, folder)
    parsed = naming.parse(reference)
    if parsed.path is not None or parsed.quant:
        model = store.locate(reference) if parsed.path is not None else None
        model = model or store.pull(reference, token=token)
        return ModelSource(model.path.stem, model.path, model.repo, model.revision, model.licence)
    if parsed.repo is not None:
        return _fetch(parsed.repo.rpartition("/")[2], parsed.repo, revision or "main", None, token, progress)
    assert parsed.name is not None
    entry = find(parsed.name)
    return _fetch(entry.name, entry.repo, revision or entry.revision, entry.licence, token, progress)


def _fetch(
    name: str, repo: str, revision: str, licence: str | None, token: str | None, progress: Progress | None
) -> ModelSource:
    """A repository's checkpoint, file by file, through the Hub's cache: what is there is not fetched again."""
    import huggingface_hub

    from edgellm.export.download import Unwatched

    with hub.plain_errors(repo):
        api = huggingface_hub.HfApi(endpoint=hub.endpoint(), token=token)
        info = api.model_info(repo, revision=revision, files_metadata=True)
    licence = licence or (info.card_data.get("license") if info.card_data else None)
    commit = str(info.sha)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    folder = None
    for filename in _chosen(list(sizes)):
        path = hub.pull(
            HfSource(repo, filename, commit), progress or Unwatched(), n_bytes=sizes[filename], sha256=None, token=token
        )
        folder = path.parent
    if folder is None:
        raise naming.BadReference(
            f"{repo} holds no checkpoint (safetensors or .bin); "
            f"to take a GGUF file of it, name its type, as in {repo}:Q8_0"
        )
    return ModelSource(name, folder, repo, commit, licence)


def _chosen(names: Sequence[str]) -> list[str]:
    """Tokenizer, configuration, and the weights in one form of the two."""
    weights = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    weights = weights or [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]
    if not weights:
        return []
    indices = [f"{weights[0].partition('-')[0].partition('.')[0]}{Path(weights[0]).suffix}.index.json"]
    return sorted(name for name in names if name in TOKENIZER_FILES or name in weights or name in indices)


def _belongs(name: str) -> bool:
    return name in TOKENIZER_FILES or name.endswith((".safetensors", ".bin", ".index.json"))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Short and stable, of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
