"""The Hub: which GGUF files a repository holds, and one of them brought into the Hub's own cache.

huggingface_hub answers what a file is (commit, checksum, size) and keeps the cache; the bytes themselves come through
`download.fetch`, because `hf_hub_download` throws a partial file away (2.4: a fresh temporary file for each call), and
a gigabyte on a bad line needs to be continued.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from edgellm.export.obtain import naming
from edgellm.export.obtain.catalogue import FileEntry, HfSource
from edgellm.export.obtain.download import CONNECT_S, READ_S, ChecksumError, Progress, SourceError, check, fetch
from edgellm.memory.errors import EdgellmError

IMPATIENT_S = 5.0  # for the first answer, where another source is left to try

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[\w-]{8,128}")  # it becomes a file name

T = TypeVar("T")


def find_file(repo: str, quant: str | None, *, token: str | None = None) -> tuple[str | None, FileEntry]:
    """The licence of a repository and the GGUF file of it that `quant` means.

    Raises:
        SourceError: the Hub is out of reach or refuses.
        BadReference: none or several files fit.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=endpoint(), token=token)
    with plain_errors(repo):
        info = _within(READ_S, lambda: api.model_info(repo, files_metadata=True, timeout=_timeout()))
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    filename = naming.choose([name for name in siblings if naming.is_model_file(name)], quant, where=repo)
    sizes = {name: siblings[name].size for name in naming.files_of(filename)}
    licence = info.card_data.get("license") if info.card_data else None
    return licence, FileEntry.of(naming.quant_of(filename) or "", sizes, HfSource(repo, filename))


def pull(
    source: HfSource,
    progress: Progress,
    *,
    n_bytes: int | None,
    sha256: str | None,
    token: str | None = None,
    is_last: bool = True,
) -> Path:
    """Bring a file into the Hub's cache and return its path there.

    Args:
        n_bytes, sha256: what it must be, where known.
        is_last: no other source is left, so that a slow answer is worth waiting for.

    Raises:
        SourceError: the Hub is out of reach, refuses, or has another file under that name.
        OSError: this machine's disk.
    """
    import huggingface_hub
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not re-exported

    url = huggingface_hub.hf_hub_url(source.repo, source.filename, revision=source.revision, endpoint=endpoint())
    with plain_errors(source.repo):
        there = _within(
            READ_S if is_last else IMPATIENT_S,
            lambda: huggingface_hub.get_hf_file_metadata(url, token=token, timeout=_timeout(), endpoint=endpoint()),
        )
    if not there.commit_hash or not there.etag or not _ETAG.fullmatch(there.etag):
        raise SourceError(f"{url} is not answered by a Hub: check HF_ENDPOINT and the proxy")
    if n_bytes is not None and there.size not in (None, n_bytes):
        raise ChecksumError(f"its file has {there.size:,} bytes where {n_bytes:,} were expected")
    if _SHA256.fullmatch(there.etag):
        if sha256 not in (None, there.etag):
            raise ChecksumError(f"its file has the sha256 {there.etag[:12]}… where {sha256[:12]}… was expected")
        sha256 = there.etag
    blob = _cache_folder(source.repo) / "blobs" / there.etag
    progress.start(there.size, source.filename)
    if blob.exists():
        with contextlib.suppress(SourceError):  # a damaged blob is deleted and fetched again
            check(blob, n_bytes=there.size, sha256=sha256)
    if not blob.exists():
        headers = build_hf_headers(token=token)
        partial = blob.with_name(f"{there.etag}.incomplete")
        fetch(url, blob, progress, partial=partial, n_bytes=there.size, sha256=sha256, headers=headers)
    with plain_errors(source.repo):  # the blob is there: this only gives it its names in the cache
        path = huggingface_hub.hf_hub_download(
            source.repo, source.filename, revision=source.revision, token=token, endpoint=endpoint()
        )
    return Path(path)


def cached(source: HfSource) -> Path | None:
    """The file in the Hub's cache, if an earlier download of anyone's left it there. Asks no network."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(source.repo, source.filename, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def cached_files(repo: str) -> list[str]:
    """The model files of a repository's main branch that lie in the Hub's cache, by their paths in it."""
    folder = _cache_folder(repo)
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        snapshot = folder / "snapshots" / commit
        names = [path.relative_to(snapshot).as_posix() for path in (*snapshot.glob("*"), *snapshot.glob("*/*.gguf"))]
    except OSError:
        return []
    return sorted(filter(naming.is_model_file, names))


def commit_of(path: Path, source: HfSource) -> str:
    """The commit of a file in the Hub's cache."""
    return path.parents[source.filename.count("/")].name


def unfinished(repo: str) -> list[Path]:
    """What interrupted downloads of a repository's files left in the Hub's cache."""
    blobs = _cache_folder(repo) / "blobs"
    return [path for path in blobs.glob("*.incomplete") if _SHA256.fullmatch(path.stem)]


def sha256_of_name(path: Path) -> str | None:
    """The checksum that the cache itself knows a file by, if it does."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def discard(path: Path) -> None:
    """Delete a file from the Hub's cache: its content, and every name of it in the repository's snapshots."""
    snapshot = next((one for one in path.parents[:2] if one.parent.name == "snapshots"), path.parent)
    if path.is_symlink():
        blob = path.parent / path.readlink()
        for name in snapshot.parent.glob(f"*/{path.relative_to(snapshot)}"):
            if name.is_symlink() and name.resolve() == blob.resolve():
                name.unlink()
        blob.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    for folder in dict.fromkeys((path.parent, snapshot)):
        with contextlib.suppress(OSError):  # other files are in it
            folder.rmdir()


def _cache_folder(repo: str) -> Path:
    return Path(_constants().HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def endpoint() -> str:
    return str(_constants().ENDPOINT)


def _constants() -> Any:
    try:
        from huggingface_hub import constants
    except ValueError as error:  # HF_ENDPOINT is parsed as the module is imported
        raise SourceError(f"HF_ENDPOINT is no address: {error}") from error
    return constants


def _timeout() -> Any:
    """The library says that it wants a float, and hands it to httpx2 as it is."""
    import httpx2

    return httpx2.Timeout(READ_S, connect=CONNECT_S)


@contextlib.contextmanager
def plain_errors(repo: str) -> Iterator[None]:
    """What the library raises, as one clause that says what to do."""
    import httpx2
    from huggingface_hub import errors

    host = httpx2.URL(endpoint()).host
    try:
        yield
    except errors.GatedRepoError as error:
        clause = f"{repo} is gated: accept its licence at {endpoint()}/{repo}, then set HF_TOKEN to your token"
        raise SourceError(clause) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(f"{host} has no repository {repo}, or it is private and HF_TOKEN is not set") from error
    except (errors.RemoteEntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise SourceError(f"{repo} does not have that file or revision") from error
    except errors.OfflineModeIsEnabled as error:
        raise SourceError("HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = ": the token is not accepted" if status in (401, 403) else ""
        raise SourceError(f"{host} answers {status}{hint}", status=status) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, errors.LocalEntryNotFoundError, TimeoutError) as error:
        reason = "" if isinstance(error, errors.LocalEntryNotFoundError) else f" ({error or type(error).__name__})"
        raise SourceError(f"{host} is out of reach{reason}") from error
    except errors.HFValidationError as error:
        raise SourceError(f"{repo} is not a repository's name") from error
    except EdgellmError:
        raise
    except ValueError as error:  # of a proxy's address
        raise SourceError(f"{host} cannot be asked: {error}; check HF_ENDPOINT and the proxy's variables") from error


def _within(limit_s: float, call: Callable[[], T]) -> T:
    """`call()`, given up after `limit_s`: a name server or a firewall that is silent holds a socket far longer."""
    outcome: list[T | BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not outcome:
        raise TimeoutError(f"no answer within {limit_s:.0f} s")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
