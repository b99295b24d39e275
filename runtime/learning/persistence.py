"""Persistence of what drafting learns of a target and its drafter: a folder of sealed files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.memory import files
from edgellm.memory.drafting_budgets import NGRAM_BYTES, STORE_TOKENS
from edgellm.memory.errors import EdgellmError
from edgellm.runtime.distillation.packed_lessons import newest, records_of, unpack
from edgellm.runtime.learning.files import (
    MAX_BYTES,
    MAX_HEADER_BYTES,
    Damaged,
    SealedFile,
    unseal,
)
from edgellm.runtime.learning.ngram_index import GAP, NgramIndex
from edgellm.runtime.learning.ngrams import NgramCache, entries_of

VERSION = 1
KINDS = ("store", "lessons", "ngrams", "knowledge", "costs")
_NAME = re.compile(rf"({'|'.join(KINDS)})-([0-9a-f]{{16}})\.bin")
_ANY_VOCABULARY = 2**31  # tokens of one that is not known here
Warn = Callable[[str], None]


class BadArchive(EdgellmError, ValueError):
    """An archive that cannot be imported; the message says why."""


def sealed(folder: Path, kind: str, key: str, warn: Warn) -> SealedFile:
    """The file of a kind for what `key` names."""
    import hashlib

    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    return SealedFile(folder / f"{kind}-{digest}.bin", kind, VERSION, key, warn)


class SavedStore:
    """A datastore (REST, arXiv:2311.08252): answers that outlive the process, with their index.

    Two processes add to it without losing each other's.
    """

    def __init__(self, file: SealedFile | None, n_vocab: int, capacity: int = STORE_TOKENS) -> None:
        """`file` None: it lives as long as the process."""
        self.index = NgramIndex(capacity)
        self._file, self._n_vocab = file, n_vocab
        if file is not None and (payload := file.read()) is not None:
            self.index.fill(self._tokens(payload))
        self._n_saved = self.index.n

    def _tokens(self, payload: bytes | None) -> NDArray[np.int32]:
        """The tokens of a payload; none where it makes no sense."""
        if payload is None:
            return np.empty(0, np.int32)
        tokens = np.frombuffer(payload[: len(payload) // 4 * 4], "<i4").astype(np.int32)
        if tokens.size and (tokens.min() < GAP or tokens.max() >= self._n_vocab):
            assert self._file is not None
            self._file.set_aside("holds tokens that the vocabulary lacks")
            return np.empty(0, np.int32)
        return tokens

    def save(self) -> None:
        """Add what is new to the file. Raises OSError."""
        index = self.index
        n_new = min(index.n - self._n_saved, index.n - index.oldest)
        if self._file is None or n_new <= 0:
            return
        new = index.tokens()[-n_new:]

        def change(payload: bytes | None) -> bytes:
            joined = np.concatenate([self._tokens(payload), new])[-(index.capacity - 1) :]
            return joined.astype("<i4").tobytes()

        self._file.update(change)
        self._n_saved = index.n


class SavedNgrams:
    """A pair's n-gram cache that outlives the process."""

    def __init__(self, file: SealedFile | None, n_draft: int, n_target: int, budget_bytes: int = NGRAM_BYTES) -> None:
        self.cache = NgramCache(budget_bytes)
        self._file, self._sizes = file, (n_draft, n_target)
        self._saved = (0, 0)
        self._merge(file.read() if file is not None else None)
        self._saved = self._state()

    def _state(self) -> tuple[int, int]:
        return self.cache.n_entries, self.cache.n_learnt

    def _merge(self, payload: bytes | None) -> None:
        if payload is None:
            return
        try:
            self.cache.merge(entries_of(payload, *self._sizes))
        except ValueError as error:
            assert self._file is not None
            self._file.set_aside(f"cannot be used: {error}")

    def save(self) -> None:
        """Merge with the file. Raises OSError."""
        if self._file is None or self._state() == self._saved:
            return

        def change(payload: bytes | None) -> bytes:
            self._merge(payload)
            return self.cache.to_bytes()

        self._file.update(change)
        self._saved = self._state()


def read_json(file: SealedFile | None) -> Any:
    """A payload of plain values, None where there is none."""
    payload = file.read() if file is not None else None
    if payload is None:
        return None
    try:
        return json.loads(payload)
    except ValueError:
        assert file is not None
        file.set_aside("holds no JSON")
        return None


def write_json(file: SealedFile, value: Any) -> None:
    """Replace the payload. Raises OSError."""
    file.update(lambda _: json.dumps(value).encode())


@dataclass(frozen=True, slots=True)
class SavedFile:
    """One file of the folder, as `edgellm cache show` lists it."""

    path: Path
    kind: str
    key: str
    n_bytes: int
    n_entries: int  # tokens of a store, lessons, entries of a cache; 1 otherwise


def listing(folder: Path) -> list[SavedFile]:
    """What is kept; files that are damaged are left out."""
    found = []
    for path in sorted(folder.glob("*.bin")):
        with contextlib.suppress(Damaged, OSError):
            found.append(_described(path))
    return found


def _described(path: Path) -> SavedFile:
    named = _NAME.fullmatch(path.name)
    if named is None:
        raise Damaged("has a name that is none of ours")
    data = path.read_bytes()
    payload = unseal(data, named[1], VERSION, None)
    key = str(json.loads(data[:MAX_HEADER_BYTES].partition(b"\n")[0])["key"])
    n_entries = 1
    if named[1] == "store":
        n_entries = len(payload) // 4
    elif named[1] == "lessons":
        with contextlib.suppress(ValueError):
            n_entries = len(records_of(payload))
    elif named[1] == "ngrams":
        with contextlib.suppress(ValueError):
            n_entries = len(entries_of(payload, 2**21, _ANY_VOCABULARY))
    return SavedFile(path, named[1], key, len(data), n_entries)


def clear(folder: Path) -> int:
    """Delete everything that was learnt; how many files that were."""
    paths = [path for pattern in ("*.bin", "*.damaged", "*.lock", ".*.part") for path in folder.glob(pattern)]
    for path in paths:
        path.unlink(missing_ok=True)
    return sum(path.suffix == ".bin" for path in paths)


def export_to(folder: Path, archive: Path) -> int:
    """Write all files that are whole into one zip archive, for their owner alone; how many. Raises OSError."""
    import io

    kept = listing(folder)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in kept:
            packed.writestr(file.path.name, file.path.read_bytes())
    files.write(archive, buffer.getvalue(), private=True)
    return len(kept)


def import_from(folder: Path, archive: Path, warn: Warn) -> int:
    """Add what an archive holds to what is here; how many files.

    Raises:
        BadArchive: it is none, or a member is not what it says.
        OSError: it cannot be read, or the folder not written.
    """
    n = 0
    for name, kind, key, payload in list(_members(archive)):
        file = sealed(folder, kind, key, warn)
        if file.path.name != name:
            raise BadArchive(f"{archive}: {name} is not the file that its header names")

        def change(old: bytes | None, kind: str = kind, payload: bytes = payload) -> bytes:
            return _joined(kind, old, payload)

        try:
            file.update(change)
        except ValueError as error:
            raise BadArchive(f"{archive}: {name} cannot be used: {error}") from error
        n += 1
    return n


def _joined(kind: str, old: bytes | None, new: bytes) -> bytes:
    if kind == "store":
        if len(new) % 4:
            raise ValueError("not a whole number of tokens")
        return ((old or b"") + new)[-4 * (STORE_TOKENS - 1) :]
    if kind == "lessons":
        for record in records_of(new):
            unpack(record, _ANY_VOCABULARY)
        with contextlib.suppress(ValueError):  # what is damaged here is not the archive's fault
            return b"".join(newest([*records_of(old or b""), *records_of(new)]))
        return new
    if kind == "ngrams":
        cache = NgramCache(NGRAM_BYTES)
        for payload in (old, new):
            if payload is not None:
                cache.merge(entries_of(payload, 2**21, _ANY_VOCABULARY))
        return cache.to_bytes()
    return old if old is not None else new  # what was measured here holds here


def _members(archive: Path) -> Iterator[tuple[str, str, str, bytes]]:
    try:
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                named = _NAME.fullmatch(info.filename)
                if named is None:
                    raise BadArchive(f"{archive}: {info.filename!r} is no file of a cache")
                if info.file_size > MAX_BYTES:
                    raise BadArchive(f"{archive}: {info.filename} is too large for a cache")
                data = packed.read(info)
                payload = unseal(data, named[1], VERSION, None)
                yield info.filename, named[1], str(json.loads(data.partition(b"\n")[0])["key"]), payload
    except (zipfile.BadZipFile, Damaged, ValueError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, BadArchive):
            raise
        raise BadArchive(f"{archive} is no archive of `edgellm cache export`: {error}") from error
