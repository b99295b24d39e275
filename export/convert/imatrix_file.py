"""Importance matrices as files: every number of one from outside checked, and the state of a run written and read.

Files are llama.cpp's own: GGUF, or its older `.dat`, which is read and no longer written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.export.convert.gguf_writer import PlannedTensor, f64, string, strings, u32, write_gguf
from edgellm.export.staging import ExportError
from edgellm.memory.gguf import MAGIC, GgufError, GgufHeader, TensorInfo, read_header

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MODEL, _FINGERPRINT, _KEY = "edgellm.imatrix.model", "edgellm.imatrix.fingerprint", "edgellm.imatrix.key"
_NLL, _SCORED = "edgellm.imatrix.nll", "edgellm.imatrix.n_scored"
_MAX_LEGACY_NAME = 256


class BadImatrix(ExportError):
    """A file that is no importance matrix, or a damaged one; the message says why."""


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """What a file holds, every number checked: mean squares are of use as they are."""

    path: Path
    means: dict[str, NDArray[np.float32]]  # (n_counts, n_in); 1 where nothing was seen
    unseen: dict[str, int]  # how many experts of a matrix were never chosen, where some were not
    model: str | None = None  # that it was made of, where the file says so
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Collected:
    """Statistics over the first chunks of a text."""

    sums: dict[str, NDArray[np.float32]]
    counts: dict[str, NDArray[np.int64]]
    n_ctx: int  # tokens of a chunk
    n_chunks: int
    nll: float  # of the tokens in the second halves
    n_scored: int
    key: str  # of all that they depend on


def write_state(path: Path, done: Collected, facts: Mapping[str, Any]) -> None:
    """The statistics as llama.cpp's tools read them, and from which a run can go on."""
    entries = {
        "general.type": string("imatrix"),
        "imatrix.datasets": strings(facts["datasets"]),
        "imatrix.chunk_count": u32(done.n_chunks),
        "imatrix.chunk_size": u32(done.n_ctx),
        _MODEL: string(facts["model"].encode("utf-8", "replace")),
        _KEY: string(done.key),
        _NLL: f64(done.nll),
        _SCORED: u32(done.n_scored),
    }
    if facts["fingerprint"]:
        entries[_FINGERPRINT] = string(facts["fingerprint"])
    tensors = []
    for name in sorted(done.sums):
        counts = done.counts[name]
        for suffix, values in ((_SUMS, done.sums[name]), (_COUNTS, counts)):
            shape = (values.size // len(counts), len(counts))[: 2 if len(counts) > 1 else 1]  # as llama.cpp writes it
            data = np.ascontiguousarray(values, "<f4").tobytes()
            tensors.append(PlannedTensor(name + suffix, shape, "F32", partial(_once, data)))
    write_gguf(path, entries, tensors)


def _once(data: bytes) -> list[bytes]:
    return [data]


def resumed(state: Path, key_of: Callable[[int], str], n_chunks: int) -> Collected | None:
    """What an earlier run left, if it is the beginning of this one; else None, and this one begins anew."""
    try:
        done = collected(state)
    except (OSError, BadImatrix, GgufError):
        return None
    return done if done.n_chunks <= n_chunks and key_of(done.n_chunks) == done.key else None


def collected(state: Path) -> Collected:
    """The state that a run left.

    Raises:
        BadImatrix, GgufError: it is none, or damaged.
    """
    header, sums, counts = _tables(state)
    facts = header.metadata
    names = ("imatrix.chunk_size", "imatrix.chunk_count", _NLL, _SCORED, _KEY)
    kinds = (int, int, float, int, str)
    if not all(isinstance(facts.get(name), kind) for name, kind in zip(names, kinds, strict=True)):
        raise BadImatrix(f"{state} is no state of a run")
    shaped = {name: values.reshape(len(counts[name]), -1) for name, values in sums.items()}
    widths = {name: values.astype(np.int64) for name, values in counts.items()}
    return Collected(shaped, widths, *(facts[name] for name in names))


def read(path: Path) -> ImportanceMatrix:
    """An importance matrix from outside, every length and number of it checked.

    Raises:
        BadImatrix, GgufError: it is none, or damaged.
    """
    with path.open("rb") as file:
        is_gguf = file.read(4) == MAGIC
    if not is_gguf:
        return _read_legacy(path)
    header, sums, counts = _tables(path)
    means, unseen = {}, {}
    for name, values in sums.items():
        seen = counts[name]
        rows = values.reshape(len(seen), -1)
        if not seen.any():
            raise BadImatrix(f"{path} has seen nothing of {name}: make it anew, with more text")
        means[name] = np.where(seen[:, None] > 0, rows / np.maximum(seen, 1)[:, None], 1).astype("<f4")
        if missing := int((seen == 0).sum()):
            unseen[name] = missing
    model, fingerprint = (header.metadata.get(key) for key in (_MODEL, _FINGERPRINT))
    return ImportanceMatrix(
        path,
        means,
        unseen,
        model if isinstance(model, str) else None,
        fingerprint if isinstance(fingerprint, str) else None,
    )


def _tables(path: Path) -> tuple[GgufHeader, dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Sums and counts by matrix, flat, of a GGUF file."""
    header = read_header(path)
    by_name = {tensor.name: tensor for tensor in header.tensors}
    names = sorted(name.removesuffix(_SUMS) for name in by_name if name.endswith(_SUMS))
    if not names:
        kind = header.metadata.get("general.type")
        what = "is an importance matrix of nothing" if kind == "imatrix" else "is no importance matrix"
        raise BadImatrix(f"{path} {what}: `edgellm imatrix MODEL --text FILE` makes one")
    sums, counts = {}, {}
    for name in names:
        pair = by_name[name + _SUMS], by_name.get(name + _COUNTS)
        if pair[1] is None or any(tensor is None or tensor.type != "F32" for tensor in pair):
            raise BadImatrix(
                f"{path} is damaged: the sums of {name} lack their counts, or are no float32: make it anew"
            )
        sums[name], counts[name] = (_values(path, header, tensor) for tensor in pair if tensor is not None)
        if not len(counts[name]) or len(sums[name]) % len(counts[name]):
            raise BadImatrix(f"{path} is damaged: sums and counts of {name} do not go together: make it anew")
        _check_numbers(path, name, sums[name], counts[name])
    return header, sums, counts


def _values(path: Path, header: GgufHeader, tensor: TensorInfo) -> NDArray[np.float32]:
    return np.fromfile(path, "<f4", tensor.n_bytes // 4, offset=header.data_offset + tensor.offset)


def _check_numbers(path: Path, name: str, *tables: NDArray[np.float32]) -> None:
    for values in tables:
        if not np.isfinite(values).all() or (values < 0).any():
            raise BadImatrix(f"{path} has sums of squares of {name} that are negative, infinite or NaN: make it anew")


def _read_legacy(path: Path) -> ImportanceMatrix:
    """llama.cpp's older format: entries of name, number of chunks, and sums that are means times that number."""
    n_bytes = path.stat().st_size
    means = {}
    with path.open("rb") as file:

        def number() -> int:
            data = file.read(4)
            return int(struct.unpack("<i", data)[0]) if len(data) == 4 else -1

        n_entries = number()
        for _ in range(n_entries if 0 < n_entries <= n_bytes // 12 else 0):
            n_name = number()
            name = file.read(n_name).decode("utf-8", "replace") if 0 < n_name <= _MAX_LEGACY_NAME else ""
            n_calls, n_values = number(), number()
            if not name.isprintable() or not name or not 0 < n_values <= (n_bytes - file.tell()) // 4:
                raise BadImatrix(_NO_MATRIX.format(path=path))
            values = np.frombuffer(file.read(4 * n_values), "<f4")
            _check_numbers(path, name, values)
            means[name] = (values / max(n_calls, 1)).astype("<f4").reshape(1, -1)
    if not means:
        raise BadImatrix(_NO_MATRIX.format(path=path))
    return ImportanceMatrix(path, means, {})


_NO_MATRIX = (
    "{path} is no importance matrix, neither GGUF nor llama.cpp's older format: `edgellm imatrix MODEL --text FILE` "
    "makes one"
)
