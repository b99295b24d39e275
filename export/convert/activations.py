"""How strongly the columns of each matrix are used: sums of the squares of what a model multiplies with them.

The statistics of llama.cpp's `llama-imatrix`, from the pinned library: of each product with a matrix of the layers, the
sum of x^2 over all rows x for each input column, and the number of rows; with experts for each of them.
Runs in a process of its own.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.export.convert import imatrix_file
from edgellm.export.convert.engine_jobs import EngineJobError, Event
from edgellm.export.convert.engine_program import Model, surprise, work
from edgellm.memory import ggml
from edgellm.memory.children import Send, serve
from edgellm.memory.ggml import Tensor

MIN_ROWS = 16  # of a product: fewer are a model's small change (states, gates), which llama.cpp leaves out too
MAX_LOGITS_BYTES = 128 * 2**20  # of the tokens that are read at once: the fewer stops, the faster


class Statistics:
    """What was seen so far, by matrix; fed by the engine between two of its operations."""

    def __init__(self, library: Any) -> None:
        self._ggml = ggml.Ggml(library)
        if wrong := self._ggml.misread():
            raise EngineJobError(f"this llama.cpp is not the one that its tensors are known of: {wrong}")
        self._dense, self._indirect = map(self._ggml.number_of, (ggml.MUL_MAT, ggml.MUL_MAT_ID))
        self.sums: dict[str, NDArray[np.float32]] = {}  # (n_matrices, n_in)
        self.counts: dict[str, NDArray[np.int64]] = {}  # (n_matrices,), or (1,) of several that see the same rows
        self.error: Exception | None = None

    def watch(self, address: int, asked: bool, _: object) -> bool:
        """The engine asks which results it should stop at, and shows these. Nothing may be raised through it."""
        try:
            node = Tensor.from_address(address)
            if node.op not in (self._dense, self._indirect):
                return False
            name = _name(Tensor.from_address(node.src[0]))
            if asked:
                return self._wants(node, name)
            self._take(node, name)
            return True
        except Exception as error:
            self.error = self.error or error
            return False

    def checked(self, parts: Iterable[NDArray[np.float32]], where: str) -> Iterator[NDArray[np.float32]]:
        """The logits of a pass, as long as nothing went wrong in `watch`, which comes before anything else."""
        try:
            for rows in parts:
                if self.error is not None:
                    break
                yield rows
        except EngineJobError:
            if self.error is None:
                raise
        if self.error is not None:
            raise EngineJobError(f"{self.error} ({where})") from self.error

    def _wants(self, node: Any, name: str) -> bool:
        rows = Tensor.from_address(node.src[1])
        if rows.type != ggml.F32:
            return False
        return node.op == self._indirect or (rows.ne[1] >= MIN_ROWS and name.startswith("blk."))

    def _take(self, node: Any, name: str) -> None:
        weight = Tensor.from_address(node.src[0])
        rows = self._ggml.values(node.src[1], "<f4")  # (_, n_matrices, n_rows, n_in)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for, and named
            if node.op == self._indirect:
                chosen = self._ggml.values(node.src[2], "<i4")[0, 0]  # (n_tokens, n_used)
                self._add_experts(name, weight.ne[2], rows[0], chosen)
            else:
                self._add(name, weight.ne[2], weight.ne[3], rows)
        if not np.isfinite(self.sums[name]).all():
            raise EngineJobError(f"what is multiplied with {name} is NaN or infinite: its weights are damaged")

    def _of(self, name: str, n_matrices: int, n_counts: int, n_in: int) -> tuple[NDArray[Any], NDArray[Any]]:
        if name not in self.sums:
            self.sums[name] = np.zeros((n_matrices, n_in), np.float32)
            self.counts[name] = np.zeros(n_counts, np.int64)
        if self.sums[name].shape != (n_matrices, n_in):
            raise EngineJobError(f"{name} is multiplied with rows of different widths")
        return self.sums[name], self.counts[name]

    def _add(self, name: str, n_inner: int, n_outer: int, rows: NDArray[np.float32]) -> None:
        sums, counts = self._of(name, n_inner * n_outer, 1, rows.shape[-1])
        for i, j in np.ndindex(rows.shape[:2]):
            sums[i % n_outer * n_inner + j % n_inner] += np.einsum("rc,rc->c", rows[i, j], rows[i, j])
        counts += math.prod(rows.shape[:3]) // len(sums)

    def _add_experts(self, name: str, n_experts: int, rows: NDArray[np.float32], chosen: NDArray[np.int32]) -> None:
        """`rows` is (n_tokens, n_used, n_in), or (n_tokens, 1, n_in) where all chosen experts see the same."""
        sums, counts = self._of(name, n_experts, n_experts, rows.shape[-1])
        if chosen.min() < 0 or chosen.max() >= n_experts:
            raise EngineJobError(f"an expert of {name} is chosen that it does not have")
        for expert in np.unique(chosen):
            tokens, slots = np.nonzero(chosen == expert)
            seen = rows[tokens, slots % rows.shape[1]]
            sums[expert] += np.einsum("rc,rc->c", seen, seen)
            counts[expert] += len(seen)


def _name(tensor: Any) -> str:
    """A weight's name; on its way between devices it is called "CUDA0#blk.0.attn_k.weight#0"."""
    parts: list[str] = tensor.name.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]


def _collect(job: Event, llama_cpp: Any, send: Send) -> None:
    n_ctx, state = int(job["n_ctx"]), Path(job["state"])
    statistics = Statistics(llama_cpp.llama_cpp._lib)
    most = max(2 * MIN_ROWS, min(n_ctx, MAX_LOGITS_BYTES // (4 * max(job["n_vocab"], 1))))
    n_batch = math.ceil(n_ctx / math.ceil(n_ctx / most))  # parts of one size: none is too small to count
    watch = llama_cpp.llama_cpp.ggml_backend_sched_eval_callback(statistics.watch)
    model = Model(job["path"], llama_cpp, n_ctx=n_ctx, n_batch=n_batch, watch=watch, n_threads=job["n_threads"])
    if model.has_encoder:
        raise EngineJobError("it has an encoder: importances are collected of decoder-only models")
    tokens = np.array(model.encode(job["text"], add_special=True, control=False), np.int32)
    n_chunks = len(tokens) // n_ctx
    if not n_chunks:
        raise EngineJobError(
            f"the text is too short: it has {len(tokens):,} tokens, and one chunk takes {n_ctx:,}: "
            "give more text (100 chunks do well), or a smaller --ctx"
        )
    n_chunks = min(n_chunks, job["chunks"] or n_chunks)
    bos = model.bos()
    done = imatrix_file.resumed(state, lambda n: _key(job, tokens[: n * n_ctx]), n_chunks)
    nll, n_scored = (done.nll, done.n_scored) if done else (0.0, 0)
    if done:
        statistics.sums, statistics.counts = dict(done.sums), dict(done.counts)
    n_done = done.n_chunks if done else 0
    send({"chunk": n_done, "n_chunks": n_chunks, "resumed": n_done, "n_tokens": len(tokens)})
    saved_s, n_saved = time.monotonic(), n_done
    for chunk in range(n_done, n_chunks):
        part = tokens[chunk * n_ctx : (chunk + 1) * n_ctx].tolist()
        window = part if bos is None else [bos, *part[1:]]
        model.forget()
        position = 0
        for rows in statistics.checked(model.forward(window, 0), f"chunk {chunk + 1}"):
            for row in rows:
                position += 1
                if n_ctx // 2 <= position < n_ctx:
                    nll += surprise(row, window[position])
                    n_scored += 1
        is_last = chunk + 1 == n_chunks
        if is_last or time.monotonic() - saved_s >= job["save_s"]:
            imatrix_file.write_state(
                state,
                imatrix_file.Collected(
                    statistics.sums, statistics.counts, n_ctx, chunk + 1, nll, n_scored,
                    _key(job, tokens[: (chunk + 1) * n_ctx]),
                ),
                job["facts"],
            )  # fmt: skip
            saved_s, n_saved = time.monotonic(), chunk + 1
        perplexity = math.exp(min(nll / max(n_scored, 1), 700.0))
        send({"chunk": chunk + 1, "n_chunks": n_chunks, "saved": n_saved, "perplexity": perplexity})


def _collected(job: Event, llama_cpp: Any, send: Send) -> None:
    try:
        _collect(job, llama_cpp, send)
    except OSError as error:  # the parent tells of the disk as it does everywhere
        send({"errno": error.errno, "strerror": error.strerror or str(error)})


def _key(job: Mapping[str, Any], tokens: NDArray[np.int32]) -> str:
    """What the statistics of these tokens depend on: a state that bears it is theirs."""
    stamp = f"{job['stamp']} {job['n_ctx']} ".encode()
    return hashlib.sha256(stamp + tokens.astype("<i4").tobytes()).hexdigest()


_JOBS = {"imatrix": _collected}

if __name__ == "__main__":
    serve(partial(work, _JOBS), EngineJobError)
