"""The drafters that were adapted on this machine: which adapter a target and its drafter use, and which they gave up.

adopted-KEY.bin    sealed, for a target and a drafter's file; written last: it names what is whole by then
ID.adapter         an adapter that was learnt here; ID is the beginning of its sha256
ID/                the drafter with it, see `merged`
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from edgellm.memory import files
from edgellm.memory.adapter import Lora, fingerprint
from edgellm.memory.draft_adapter import AdapterFile, DraftAdapter, DraftAdapterError
from edgellm.memory.sealed import Damaged, unseal
from edgellm.memory.split import parts_of
from edgellm.runtime.distillation.merged import MergedDrafters, Warn, identifier
from edgellm.runtime.learning.files import SealedFile, alone, private_folder

KIND, VERSION = "adopted", 1
SUFFIX = ".adapter"
_Value = dict[str, Any]  # of a sealed file
HEAD_BYTES = 2**20  # of a target's file: what it says of itself, and most of its vocabulary
LOCK_TIMEOUT_S = 120.0  # that another process may take to adopt an adapter
SAMPLE_BYTES = 2**16  # of its last weights: all else may be that of another training run


@dataclass(frozen=True, slots=True)
class TakenBack:
    """An adapter that was used and is not offered again."""

    sha256: str
    why: str  # a sentence
    date: str  # ISO 8601


@dataclass(frozen=True, slots=True)
class AdoptedDraft:
    """What was learnt here for a target and its drafter."""

    target_key: str
    draft_sha256: str
    adapter: AdapterFile | None  # None: the plain drafter is used
    path: Path | None  # the drafter with it
    date: str  # of the adoption, ISO 8601
    target: str  # names, for people
    draft: str
    taken_back: tuple[TakenBack, ...] = ()


class Adopted:
    """The folder of all of them; two processes may use it at once."""

    def __init__(self, folder: Path, warn: Warn = lambda text: None) -> None:
        """`warn` is told in a sentence what was set aside."""
        self.folder, self._warn = folder, warn
        self.merged = MergedDrafters(folder, warn)

    def find(self, target_key: str, draft_sha256: str) -> AdoptedDraft | None:
        """What a target and a drafter's file use; None where that is the file as it is. Damage is set aside."""
        found = self._read(self._file(target_key, draft_sha256))
        return found if found is not None and found.adapter is not None else None

    def taken_back(self, target_key: str, draft_sha256: str) -> tuple[TakenBack, ...]:
        """Adapters, from wherever, that are not to be offered to these two again."""
        found = self._read(self._file(target_key, draft_sha256))
        return found.taken_back if found is not None else ()

    def adopt(self, target_key: str, adapter: DraftAdapter, base: Path) -> AdoptedDraft:
        """Use `adapter` with the drafter `base` for this target from now on; the one before it may be deleted.

        Raises:
            DraftAdapterError: it is for another file, does not fit, or was taken back before.
            OSError: the disk. What was used before is used on.
        """
        data = adapter.to_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        for given_up in self.taken_back(target_key, adapter.base):
            if given_up.sha256 == sha256:
                raise DraftAdapterError(f"this adapter was taken back on {given_up.date}: {given_up.why}")
        path = self.folder / f"{identifier(sha256)}{SUFFIX}"
        private_folder(self.folder)
        with alone(self.folder / KIND, LOCK_TIMEOUT_S):  # nobody sweeps in between
            files.write(path, data, private=True)
            kept = AdapterFile(path, sha256, adapter.base, adapter.record)
            merged = self.merged.make(kept, base)
            value = {
                "target": str(adapter.record.get("target", "")),
                "draft": str(adapter.record.get("drafter", base.name)),
                "draft_bytes": base.stat().st_size,
                "file": merged.name,
                "adapter": sha256,
                "merged": self.merged.sha256_of(merged),
                "date": date.today().isoformat(),
            }
            self._change(target_key, adapter.base, lambda old: {**old, **value})
            self._sweep()
        found = self.find(target_key, adapter.base)
        if found is None:  # somebody cleared the folder in this very moment
            raise DraftAdapterError(f"{self.folder} was cleared while an adapter was adopted: adapt again")
        return found

    def take_back(self, target_key: str, draft_sha256: str, why: str, *, adapter_sha256: str | None = None) -> None:
        """Use the drafter's file as it is again, and do not offer the adapter any more.

        Args:
            adapter_sha256: of an adapter that lies elsewhere; None for the one that was adopted.

        Raises:
            OSError: the disk, or another process.
        """

        def without(old: _Value) -> _Value:
            sha256 = adapter_sha256 or old.get("adapter")
            if sha256 is None:
                return old
            entry = {"sha256": sha256, "why": why, "date": date.today().isoformat()}
            rest = [other for other in old.get("taken_back", []) if other["sha256"] != sha256]
            kept = None if old.get("adapter") == sha256 else old.get("adapter")
            return {**old, "adapter": kept, "taken_back": [*rest, entry]}

        self._change(target_key, draft_sha256, without)

    def with_adapter(self, adapter: AdapterFile, base: Path) -> Path:
        """The file of a drafter with any adapter, made if it is not there; it stays for as long as it is used.

        Raises:
            DraftAdapterError: the adapter is for another file, or damaged.
            OSError: the disk; nothing half-made is left.
        """
        is_made = self.merged.path_of(adapter, base).exists()
        path = self.merged.make(adapter, base)
        if not is_made:
            with alone(self.folder / KIND, LOCK_TIMEOUT_S):
                self._sweep()
        return path

    def listing(self) -> list[AdoptedDraft]:
        """All pairs that something is known of; what is damaged is left out."""
        return list(self._all())

    def draft_sizes(self, target_key: str) -> set[int]:
        """Bytes of the drafters that something was learnt for, so that no other file has to be hashed."""
        sizes = set()
        for key, value in self._payloads():
            if key.startswith(f"{target_key} ") and isinstance(n_bytes := value.get("draft_bytes"), int):
                sizes.add(n_bytes)
        return sizes

    def clear(self) -> int:
        """Delete everything; how many adapters that were."""
        n = len([found for found in self._all() if found.adapter is not None])
        with contextlib.suppress(FileNotFoundError):
            for path in list(self.folder.iterdir()):
                files.discard(path)
        return n

    def _file(self, target_key: str, draft_sha256: str) -> SealedFile:
        key = f"{target_key} {draft_sha256}"
        digest = identifier(hashlib.sha256(key.encode()).hexdigest())
        return SealedFile(self.folder / f"{KIND}-{digest}.bin", KIND, VERSION, key, self._warn)

    def _read(self, file: SealedFile) -> AdoptedDraft | None:
        payload = file.read()
        if payload is None:
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            return self._described(file.key, json.loads(payload))
        with alone(file.path):  # what it named may be gone because another process adopted in this very moment
            payload = file.read()
            if payload is None:
                return None
            try:
                return self._described(file.key, json.loads(payload))
            except (ValueError, KeyError, TypeError, OSError) as error:
                file.set_aside(f"cannot be used ({error})")
        return None

    def _described(self, key: str, value: Mapping[str, Any]) -> AdoptedDraft:
        """Raises DraftAdapterError, ValueError, KeyError, TypeError, OSError: damage."""
        target_key, _, draft_sha256 = key.partition(" ")
        adapter, path = None, None
        if value.get("adapter") is not None:
            sha256 = str(value["adapter"])
            adapter = AdapterFile.read(self.folder / f"{identifier(sha256)}{SUFFIX}")
            if (adapter.sha256, adapter.base) != (sha256, draft_sha256):
                raise ValueError(f"{adapter.path.name} is not the adapter that was adopted")
            path = self.folder / identifier(sha256) / Path(str(value["file"])).name
        given_up = [[str(one[name]) for name in ("sha256", "why", "date")] for one in value.get("taken_back", ())]
        return AdoptedDraft(
            target_key,
            draft_sha256,
            adapter,
            path,
            date=str(value.get("date", "")),
            target=str(value.get("target", "")),
            draft=str(value.get("draft", "")),
            taken_back=tuple(TakenBack(*one) for one in given_up),
        )

    def _change(self, target_key: str, draft_sha256: str, change: Callable[[_Value], _Value]) -> None:
        def changed(payload: bytes | None) -> bytes:
            try:
                old = json.loads(payload) if payload is not None else {}
            except ValueError:
                old = {}
            return json.dumps(change(old if isinstance(old, dict) else {})).encode()

        self._file(target_key, draft_sha256).update(changed)

    def _payloads(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Key and value of every sealed file that is whole."""
        for path in sorted(self.folder.glob(f"{KIND}-*.bin")):
            with contextlib.suppress(OSError, Damaged, ValueError, KeyError, TypeError):
                data = path.read_bytes()
                value = json.loads(unseal(data, KIND, VERSION, None))
                if isinstance(value, dict):
                    yield str(json.loads(data.partition(b"\n")[0])["key"]), value

    def _all(self) -> Iterator[AdoptedDraft]:
        for key, value in self._payloads():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                yield self._described(key, value)

    def _sweep(self) -> None:
        """Take away what no record names any more, except the merged files that were used last."""
        named = {identifier(str(value["adapter"])) for _, value in self._payloads() if value.get("adapter")}
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path.stem not in named:
                files.discard(path)
        self.merged.sweep(named)


def target_key(path: Path, loras: Sequence[Lora] = ()) -> str:
    """By which a target is known again: beginnings and sizes of its files, samples of their weights, its adapters.

    A folder of ONNX goes by its graph, and by the names and sizes of its files. Raises OSError.
    """
    digest = hashlib.sha256(fingerprint(loras).encode())
    if path.is_dir():
        for part in sorted(part for part in path.iterdir() if part.is_file()):
            digest.update(f"{part.name} {part.stat().st_size}\n".encode())
        path = path / "model.onnx"
    for part in parts_of(path):
        with part.open("rb") as file:
            digest.update(file.read(HEAD_BYTES))
            n_bytes = file.seek(0, os.SEEK_END)
            digest.update(str(n_bytes).encode())
            file.seek(max(0, n_bytes - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]
