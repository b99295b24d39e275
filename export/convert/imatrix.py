"""Importance matrices: made of a model and a text, and judged before they are used.

An importance matrix holds, for each input column of each matrix of a model, how strongly texts use it; quantising then
keeps exact what matters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.export.convert import engine_jobs
from edgellm.export.convert.imatrix_file import BadImatrix, collected, read
from edgellm.export.staging import ExportError, exclusive
from edgellm.memory.files import behind_links, beside, settle
from edgellm.memory.gguf import GgufArray, GgufHeader
from edgellm.memory.split import joined, read_parts

# Types whose few bits llama.cpp does not choose without one.
NEEDY = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
MAX_TEXT_BYTES = 32 * 2**20  # some 8 million tokens; a hundred thousand do well
SAVE_S = 10.0  # seconds between the states that an interrupted run goes on from

# What llama.cpp leaves as it is in any type.
_NOT_QUANTISED = re.compile(r"norm\.weight$|ffn_gate_inp|altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv")


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
    parts = read_parts(model)
    header = joined(parts)
    _refuse_encoders(header)
    output = behind_links(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(output):
        if output.exists():
            raise ExportError(f"{output} exists: remove it, or choose another --output")
        fingerprint = fingerprint_of(*parts)
        facts = {"model": name, "fingerprint": fingerprint, "datasets": list(datasets)}
        stamp = [
            fingerprint,
            header.file_bytes,
            max(part.path.stat().st_mtime_ns for part in parts),
            engine_jobs.version(),
        ]
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
        made, done = read(state), collected(state)
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


def fingerprint_of(*parts: GgufHeader) -> str | None:
    """What tells a model from another of its shape, whatever type it is in: its norms, which no type rounds.

    `parts`: the headers of its files.
    None where it has none. Fine-tuning that leaves norms alone (most adapters) leaves it alone too.
    """
    norms = [
        (header, tensor)
        for header in parts
        for tensor in header.tensors
        if tensor.name.endswith("norm.weight") and len(tensor.shape) == 1 and tensor.type == "F32"
    ]
    if not norms:
        return None
    digest = hashlib.sha256()
    with ExitStack() as stack:
        files = {header.path: stack.enter_context(header.path.open("rb")) for header in parts}
        for header, tensor in sorted(norms, key=lambda norm: norm[1].name):
            file = files[header.path]
            file.seek(header.data_offset + tensor.offset)
            digest.update(tensor.name.encode() + b"\0" + file.read(tensor.n_bytes))
    return digest.hexdigest()[:16]


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


def check(path: Path, header: GgufHeader, quants: Sequence[str]) -> list[str]:
    """Whether an importance matrix is of the model whose file has that header: what it lacks, in sentences.

    llama.cpp takes of it what it finds by name, and nothing where it finds nothing.

    Raises:
        ExportError: it is another model's, or lacks what one of `quants` needs.
        BadImatrix, GgufError: it is none.
    """
    matrix, file_name = read(path), header.path.name
    if matrix.fingerprint is not None and (own := fingerprint_of(header)) and own != matrix.fingerprint:
        raise ExportError(
            f"{path} was made of another model ({matrix.model or 'unnamed'}), whose norms {file_name} does not have: "
            "`edgellm imatrix MODEL --text FILE` makes one of this model"
        )
    sizes = {t.name: t.shape[0] * (t.shape[2] if len(t.shape) > 2 else 1) for t in header.tensors if len(t.shape) > 1}
    heads = {"output.weight", "token_embd.weight"} - sizes.keys()  # a head that serves as embedding goes by either name
    foreign = [name for name, values in matrix.means.items() if name not in heads and sizes.get(name) != values.size]
    if foreign:
        raise ExportError(
            f"{path} is of another model: {len(foreign)} of its {len(matrix.means)} matrices, {foreign[0]} among "
            f"them, are not in {file_name}, or are of another width"
        )
    quantised = [name for name in sizes if name.startswith("blk.") and name.endswith("weight")]
    quantised = [name for name in quantised if not _NOT_QUANTISED.search(name)]
    missing = [name for name in quantised if name not in matrix.means]
    if missing and (needy := [quant for quant in quants if quant in NEEDY]):
        raise ExportError(
            f"{path} has nothing on {_listed(missing)} of {file_name}, which {needy[0]} needs: make one that has, with "
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
