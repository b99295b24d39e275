"""Importance matrices: made, read, and judged before they are used.

An importance matrix holds, for each input column of each matrix of a model, how strongly texts use it; quantising then
keeps exact what matters. Files are llama.cpp's own: GGUF, or its older `.dat`, which is read and no longer written.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.export.convert import engine_jobs
from edgellm.export.convert.gguf_writer import PlannedTensor, f64, string, strings, u32, write_gguf
from edgellm.export.staging import ExportError, exclusive
from edgellm.memory.files import behind_links, beside, settle
from edgellm.memory.gguf import MAGIC, GgufArray, GgufError, GgufHeader, TensorInfo, read_header

# Types whose few bits llama.cpp does not choose without one.
NEEDY = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
MAX_TEXT_BYTES = 32 * 2**20  # some 8 million tokens; a hundred thousand do well
SAVE_S = 10.0  # seconds between the states that an interrupted run goes on from

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MODEL, _FINGERPRINT, _KEY = "edgellm.imatrix.model", "edgellm.imatrix.fingerprint", "edgellm.imatrix.key"
_NLL, _SCORED = "edgellm.imatrix.nll", "edgellm.imatrix.n_scored"
_MAX_LEGACY_NAME = 256
# What llama.cpp leaves as it is in any type.
_NOT_QUANTISED = re.compile(r"norm\.weight$|ffn_gate_inp|altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv")


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


@dataclass(frozen=True, slots=True)
class Made:
    """A new importance matrix and how it came about."""

    path: Path
    model: str
    fingerprint: str | None
    n_matrices: int
    n_chunks: int
    chunk_size: int  # tokens
    perplexity: float | None
    resumed: int  # chunks that an earlier run had done
    unseen: dict[str, int] = field(default_factory=dict)


def make(
    model: Path,
    name: str,
    text: str,
    output: Path,
    *,
    datasets: Sequence[str],
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    on_chunk: Callable[[Mapping[str, Any]], None] = lambda event: None,
    save_s: float = SAVE_S,
) -> Made:
    """Run `text` through a model, chunk by chunk, and write its importance matrix; whole or not at all.

    An interrupted run leaves its state beside `output`, from which the same call goes on; the result has the same bits.

    Args:
        datasets: names of the texts, for the record.
        n_ctx: tokens of a chunk, each of which is read by itself.
        chunks: the most that are read; None: all of the text.
        n_threads: None: the physical cores.
        on_chunk: called with {"chunk", "n_chunks", "saved", "perplexity"} after each, and at first with "resumed".

    Raises:
        ExportError: `output` is there.
        BadImatrix: the model is none that statistics are collected of.
        EngineJobError: the text is too short, or the engine's refusal.
        OSError: this machine's disk.
    """
    header = read_header(model)
    _refuse_encoders(header)
    output = behind_links(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(output):
        if output.exists():
            raise ExportError(f"{output} exists: remove it, or choose another --output")
        fingerprint = fingerprint_of(header)
        facts = {"model": name, "fingerprint": fingerprint, "datasets": list(datasets)}
        stamp = [fingerprint, header.file_bytes, model.stat().st_mtime_ns, engine_jobs.version()]
        state = beside(output, "partial")
        job = {
            "job": "imatrix", "path": str(model), "text": text, "n_ctx": n_ctx, "chunks": chunks, "state": str(state),
            "stamp": repr(stamp), "facts": facts, "save_s": save_s,
            "n_vocab": _n_vocab(header), "n_threads": n_threads,
        }  # fmt: skip
        resumed = 0
        for event in engine_jobs.events(job, model.name, module="edgellm.export.convert.activations"):
            if "errno" in event:
                raise OSError(event["errno"], event["strerror"], str(output))
            resumed = event.get("resumed", resumed)
            on_chunk(event)
        made, done = read(state), _collected(state)
        settle(state, output)
    return Made(
        output,
        name,
        fingerprint,
        len(made.means),
        done.n_chunks,
        done.n_ctx,
        float(np.exp(min(done.nll / done.n_scored, 700.0))) if done.n_scored else None,
        resumed,
        made.unseen,
    )


def _refuse_encoders(header: GgufHeader) -> None:
    if header.metadata.get("general.type") == "imatrix":
        raise BadImatrix(f"{header.path} is an importance matrix itself: name the model's file")
    if header.hparam("attention.causal", True) is False or header.architecture.startswith(("t5", "bert")):
        raise BadImatrix(
            f"{header.path.name} ({header.architecture}) has an encoder: importances are collected of decoder-only "
            "models"
        )
    if not header.tensors:
        raise BadImatrix(f"{header.path.name} holds a vocabulary only: there are no weights in it to run")


def _n_vocab(header: GgufHeader) -> int:
    """Logits of a token."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return tokens.n_items if isinstance(tokens, GgufArray) else 2**18


def fingerprint_of(header: GgufHeader) -> str | None:
    """What tells a model from another of its shape, whatever type it is in: its norms, which no type rounds.

    None where it has none. Fine-tuning that leaves norms alone (most adapters) leaves it alone too.
    """
    norms = [t for t in header.tensors if t.name.endswith("norm.weight") and len(t.shape) == 1 and t.type == "F32"]
    if not norms:
        return None
    digest = hashlib.sha256()
    with header.path.open("rb") as file:
        for tensor in sorted(norms, key=lambda tensor: tensor.name):
            file.seek(header.data_offset + tensor.offset)
            digest.update(tensor.name.encode() + b"\0" + file.read(tensor.n_bytes))
    return digest.hexdigest()[:16]


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
        done = _collected(state)
    except (OSError, BadImatrix, GgufError):
        return None
    return done if done.n_chunks <= n_chunks and key_of(done.n_chunks) == done.key else None


def _collected(state: Path) -> Collected:
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


def refuse_without(quants: Sequence[str], draft_quants: Sequence[str], *, has_matrix: bool) -> None:
    """Refuse types that llama.cpp does not make without an importance matrix, before anything is fetched or made.

    Args:
        draft_quants: of a drafter, which goes without one; empty where there is none.

    Raises:
        ExportError: one of them is such a type.
    """
    if needy := [quant for quant in quants if quant in NEEDY and not has_matrix]:
        raise ExportError(
            f"{needy[0]} needs an importance matrix: `edgellm imatrix MODEL --text FILE` makes one, and --imatrix "
            "gives it"
        )
    if needy := [quant for quant in draft_quants if quant in NEEDY]:
        raise ExportError(
            f"{needy[0]} needs an importance matrix, and --imatrix is the target's: choose another --draft-quant "
            "(Q4_0, say)"
        )


def check(path: Path, base: Path, quants: Sequence[str]) -> list[str]:
    """Whether an importance matrix is of the model `base`: what it lacks, in sentences.

    llama.cpp takes of it what it finds by name, and nothing where it finds nothing.

    Raises:
        ExportError: it is another model's, or lacks what one of `quants` needs.
        BadImatrix, GgufError: it is none.
    """
    matrix, header = read(path), read_header(base)
    if matrix.fingerprint is not None and (own := fingerprint_of(header)) and own != matrix.fingerprint:
        raise ExportError(
            f"{path} was made of another model ({matrix.model or 'unnamed'}), whose norms {base.name} does not have: "
            "`edgellm imatrix MODEL --text FILE` makes one of this model"
        )
    sizes = {t.name: t.shape[0] * (t.shape[2] if len(t.shape) > 2 else 1) for t in header.tensors if len(t.shape) > 1}
    heads = {"output.weight", "token_embd.weight"} - sizes.keys()  # a head that serves as embedding goes by either name
    foreign = [name for name, values in matrix.means.items() if name not in heads and sizes.get(name) != values.size]
    if foreign:
        raise ExportError(
            f"{path} is of another model: {len(foreign)} of its {len(matrix.means)} matrices, {foreign[0]} among "
            f"them, are not in {base.name}, or are of another width"
        )
    quantised = [name for name in sizes if name.startswith("blk.") and name.endswith("weight")]
    quantised = [name for name in quantised if not _NOT_QUANTISED.search(name)]
    missing = [name for name in quantised if name not in matrix.means]
    if missing and (needy := [quant for quant in quants if quant in NEEDY]):
        raise ExportError(
            f"{path} has nothing on {_listed(missing)} of {base.name}, which {needy[0]} needs: make one that has, with "
            "`edgellm imatrix`, or choose a larger type"
        )
    remarks = []
    if missing:
        remarks.append(
            f"the importance matrix has nothing on {len(missing)} of {len(quantised)} matrices ({_listed(missing)}): "
            "they are quantised without"
        )
    if matrix.unseen:
        n_unseen = sum(matrix.unseen.values())
        remarks.append(
            f"the importance matrix has never seen {n_unseen} experts of {_listed(list(matrix.unseen))}: their columns "
            "count alike; more text would help"
        )
    return remarks


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
