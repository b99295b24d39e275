"""A drafter's adapter: by how much each scale and minimum of its file moves, packed, and the file with it merged."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.memory import files
from edgellm.memory.errors import EdgellmError
from edgellm.memory.gguf import GgufHeader, TensorInfo, read_header
from edgellm.memory.quantised import FORMATS, Floats, QuantisedMatrix
from edgellm.memory.sealed import MAX_BYTES, Damaged, seal, unseal

KIND, VERSION = "draft-adapter", 1
MAX_RECORD_BYTES = 2**20
MAX_PACKED_BYTES = 512 * 2**20  # of the numbers, unpacked; a drafter of 3 billion weights has half of it
N_LEVELS = 127  # of a change, on either side of zero
MAX_STEP = 100.0  # no training moves a scale by ten thousand times itself
STEP_OF_RMS = 0.25  # adds a noise of 0.07 of what is typical, and deflates to about half a byte


class DraftAdapterError(EdgellmError, ValueError):
    """An adapter that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class DraftAdapter:
    """What training changed of one drafter's file.

    The record says `target` and `drafter` (names), `n_tokens` (trained on), `before` and `after` (judgements on answers
    held out, with `tokens_per_pass`) and `date`; whatever else it says is shown by `edgellm cache show --json`.
    """

    base: str  # sha256 of that file
    changes: Mapping[str, Floats]  # tensor -> theta, see `QuantisedMatrix`
    record: Mapping[str, Any] = field(default_factory=dict)  # plain values, see below

    def to_bytes(self) -> bytes:
        """Packed: a byte for each number, in steps of a quarter of what is typical of its field, then deflated."""
        tensors, packed = [], []
        for name, theta in self.changes.items():
            steps = [_step_of(field) for field in theta]
            tensors.append([name, list(theta.shape), steps])
            packed += [
                np.rint(field / step).astype(np.int8).tobytes() for field, step in zip(theta, steps, strict=True)
            ]
        head = json.dumps({"record": self.record, "tensors": tensors}).encode() + b"\n"
        return seal(head + zlib.compress(b"".join(packed), 9), KIND, VERSION, self.base)

    @classmethod
    def from_bytes(cls, data: bytes) -> DraftAdapter:
        """Raises DraftAdapterError: it is none, or damaged."""
        try:
            payload = unseal(data, KIND, VERSION, None)
            base = str(json.loads(data.partition(b"\n")[0])["key"])
            line, _, packed = payload.partition(b"\n")
            head = json.loads(line[: MAX_RECORD_BYTES + 1])
            numbers = zlib.decompressobj().decompress(packed, MAX_PACKED_BYTES)
            return cls(base, dict(_changes(head["tensors"], numbers)), dict(head["record"]))
        except (Damaged, ValueError, KeyError, TypeError, OverflowError, RecursionError, zlib.error) as error:
            raise DraftAdapterError(f"it is no draft adapter of edgellm: {error}") from None


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter that lies somewhere: what it is for and how well it did, without its numbers."""

    path: Path
    sha256: str
    base: str  # sha256 of the drafter's file
    record: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> AdapterFile:
        """Raises DraftAdapterError: it is no adapter, or damaged. OSError: it cannot be read."""
        data = _bytes_of(path)
        try:
            line = unseal(data, KIND, VERSION, None).partition(b"\n")[0]
            record = json.loads(line[: MAX_RECORD_BYTES + 1])["record"]
            base = str(json.loads(data.partition(b"\n")[0])["key"])
            return cls(path, hashlib.sha256(data).hexdigest(), base, dict(record))
        except (Damaged, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DraftAdapterError(f"{path} is no draft adapter of edgellm: {error}") from None

    @property
    def target(self) -> str | None:
        """The model that it was trained to agree with."""
        name = self.record.get("target")
        return name if isinstance(name, str) else None

    @property
    def n_tokens(self) -> int | None:
        """Tokens of the target's answers that it was trained on."""
        n = self.record.get("n_tokens")
        return n if isinstance(n, int) else None

    @property
    def tokens_per_pass(self) -> tuple[float, float] | None:
        """Of the target on answers that were held out, without the adapter and with it."""
        try:
            before, after = (float(self.record[side]["tokens_per_pass"]) for side in ("before", "after"))
        except (KeyError, TypeError, ValueError):
            return None
        return before, after


def _step_of(field: Floats) -> float:
    """Of one of a tensor's fields, [n_out, n_blocks]."""
    typical = float(np.sqrt(np.mean(np.square(field, dtype=np.float64))))
    return max(STEP_OF_RMS * typical, float(np.abs(field).max(initial=0.0)) / N_LEVELS) or MAX_STEP / 2


def _changes(tensors: Any, numbers: bytes) -> Any:
    start = 0
    for name, shape, steps in tensors:
        n_fields, n_out, n_blocks = map(int, shape)
        n = n_fields * n_out * n_blocks
        if min(n_fields, n_out, n_blocks) < 1 or start + n > len(numbers) or not _are_steps(steps, n_fields):
            raise ValueError(f"{str(name)[:80]!r} has a shape or a step that cannot be")
        theta = np.frombuffer(numbers, np.int8, n, start).astype(np.float32).reshape(n_fields, n_out, n_blocks)
        yield str(name), theta * np.array(steps, np.float32)[:, None, None]
        start += n
    if start != len(numbers):
        raise ValueError("it holds more numbers than its tensors have")


def _are_steps(steps: Any, n_fields: int) -> bool:
    return isinstance(steps, list) and len(steps) == n_fields and all(0 < float(step) < MAX_STEP for step in steps)


def read_draft_adapter(path: Path) -> DraftAdapter:
    """Raises DraftAdapterError: the file is no adapter, or damaged. OSError: it cannot be read."""
    try:
        return DraftAdapter.from_bytes(_bytes_of(path))
    except DraftAdapterError as error:
        raise DraftAdapterError(f"{path}: {error}") from None


def _bytes_of(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES + 2**16:
        raise DraftAdapterError(f"{path} is too large for a draft adapter")
    return path.read_bytes()


def merge(adapter: DraftAdapter, base: Path, merged: Path) -> None:
    """Write the drafter with its adapter: a file of the same types, size and speed; whole or not at all.

    Raises:
        DraftAdapterError: the adapter was made for another file, or does not fit its tensors.
        GgufError: `base` is no sound model. OSError: the disk.
    """
    if files.sha256_of(base) != adapter.base:
        raise DraftAdapterError(
            f"the adapter was made for another drafter than {base.name}: adapt this one, or use that one"
        )
    header = read_header(base)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    for name, theta in adapter.changes.items():
        _check(header, tensors.get(name), name, theta)
    with files.making(merged) as aside:
        files.copy(base, aside)
        with aside.open("r+b") as file:
            for name, theta in adapter.changes.items():
                matrix = quantised_matrix(header, tensors[name])
                file.seek(header.data_offset + tensors[name].offset)
                file.write(matrix.bytes_with(theta))


def quantised_matrix(header: GgufHeader, tensor: TensorInfo) -> QuantisedMatrix:
    """A matrix of a model's file."""
    with header.path.open("rb") as file:
        file.seek(header.data_offset + tensor.offset)
        raw = np.frombuffer(file.read(tensor.n_bytes), np.uint8)
    n_in, n_out = tensor.shape[0], tensor.shape[1]
    return QuantisedMatrix(raw, tensor.type, (n_out, n_in))


def _check(header: GgufHeader, tensor: TensorInfo | None, name: str, theta: Floats) -> None:
    if tensor is None or tensor.type not in FORMATS or len(tensor.shape) != 2:
        raise DraftAdapterError(f"{header.path.name} has no quantised matrix {name[:80]!r} that could change")
    form = FORMATS[tensor.type]
    wanted = (len(form.fields), tensor.shape[1], tensor.shape[0] // form.n_weights)
    if theta.shape != wanted or not np.isfinite(theta).all():
        raise DraftAdapterError(f"the adapter's {name} has the shape {theta.shape}, the drafter's {wanted}")
