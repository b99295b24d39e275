"""The program that runs llama.cpp on files, a job a process: what `engine_jobs` asks for is done here.

`python -m edgellm.export.convert.engine_program` reads one job and answers as `memory.children` has it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.export.convert import imatrix_file
from edgellm.export.convert.engine_jobs import EngineJobError, Event
from edgellm.memory.children import Send, serve
from edgellm.memory.cpu import usable_cores

_QUANTISE_BUFFER_BYTES = 256 * 2**20  # rows kept at once; the library's own default is 8 GiB

Job = Callable[[Event, Any, Send], None]


def work(jobs: Mapping[str, Job], job: Event, send: Send) -> None:
    """Do the one of `jobs` that is asked for, with the engine started and listened to."""
    import ctypes

    import llama_cpp

    first_error = ""

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, _: object) -> None:
        nonlocal first_error
        line = text.decode(errors="replace")
        if done := re.match(r"\[ *(\d+)/ *(\d+)\]", line):
            send({"tensor": int(done[1]), "n_tensors": int(done[2])})
        elif level == 4 and not first_error:
            first_error = line.strip()

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    try:
        jobs[job["job"]](job, llama_cpp, send)
    except EngineJobError as error:
        raise EngineJobError(first_error or str(error)) from error


def _rewritten(job: Event, llama_cpp: Any, send: Send) -> None:
    import ctypes

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = usable_cores()
    params.max_buf_size = _QUANTISE_BUFFER_BYTES
    keep: list[Any] = []  # what the library reads through pointers
    if "dropped_layers" in job:
        params.only_copy = True
        keep.append((ctypes.c_int32 * (len(job["dropped_layers"]) + 1))(*job["dropped_layers"], -1))
        params.prune_layers = ctypes.cast(keep[0], ctypes.POINTER(ctypes.c_int32))
    else:
        params.ftype, params.allow_requantize = job["file_type"], job["requantise"]
    if job.get("head_type") is not None:
        params.output_tensor_type = params.token_embedding_type = job["head_type"]
    if job.get("imatrix"):
        params.imatrix = ctypes.cast(_imatrix(Path(job["imatrix"]), llama_cpp, keep), type(params.imatrix))
    if llama_cpp.llama_model_quantize(os.fsencode(job["source"]), os.fsencode(job["target"]), ctypes.byref(params)):
        raise EngineJobError("it was refused")


def _imatrix(path: Path, llama_cpp: Any, keep: list[Any]) -> Any:
    """llama.cpp's table of importances: mean squared activations by tensor name, ended by an empty name."""
    import ctypes

    means = imatrix_file.read(path).means
    table = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
    for row, (name, mean) in zip(table, means.items(), strict=False):
        keep += [mean, name.encode()]
        row.name, row.data, row.size = keep[-1], mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), mean.size
    return table


class Model:
    """A model in this process, for as long as the job lasts."""

    def __init__(
        self,
        path: str,
        llama_cpp: Any,
        *,
        n_ctx: int = 0,
        n_batch: int | None = None,
        watch: Any = None,
        n_threads: int | None = None,
    ) -> None:
        self._lib = llama_cpp
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = n_ctx == 0
        # Plain products of the file's own blocks: rearranged ones round otherwise, and do not run everywhere.
        params.use_extra_bufts = False
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise EngineJobError("the file does not load")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.has_encoder = bool(llama_cpp.llama_model_has_encoder(self._model))
        if n_ctx:
            # An encoder reads all in one piece.
            self.n_batch = n_batch or (n_ctx if self.has_encoder else min(n_ctx, 64))
            context = llama_cpp.llama_context_default_params()
            context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, self.n_batch, self.n_batch
            # Sums as exact as the library has them: what is judged here is the file.
            context.type_k = context.type_v = llama_cpp.GGML_TYPE_F32
            context.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            context.n_threads = context.n_threads_batch = n_threads or usable_cores()
            if watch is not None:
                context.cb_eval = watch
            self._context = llama_cpp.llama_init_from_model(self._model, context)
            if not self._context:
                raise EngineJobError("no context can be made")

    def apply(self, lora: str) -> None:
        import ctypes

        adapter = self._lib.llama_adapter_lora_init(self._model, os.fsencode(lora))
        if not adapter:
            raise EngineJobError("the adapter does not load")
        adapters = (self._lib.llama_adapter_lora_p_ctypes * 1)(adapter)
        self._lib.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0))

    def bos(self) -> int | None:
        """The token that every text begins with, where the model wants one."""
        wants = self._lib.llama_vocab_get_add_bos(self._vocab)
        return int(self._lib.llama_vocab_bos(self._vocab)) if wants else None

    def encode(self, text: str, *, add_special: bool, control: bool = True) -> list[int]:
        """Args:
        control: control tokens that the text spells become those.
        """
        data = text.encode()
        room = (self._lib.llama_token * (len(data) + 8))()
        n_tokens = self._lib.llama_tokenize(self._vocab, data, len(data), room, len(room), add_special, control)
        if n_tokens < 0:
            raise EngineJobError("a text does not tokenise")
        return list(room[:n_tokens])

    def forget(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def read(self, tokens: Sequence[int]) -> list[int]:
        """Let the encoder read `tokens`; what its decoder starts with."""
        self._run(self._lib.llama_encode, tokens, 0, [True] * len(tokens))
        start = int(self._lib.llama_model_decoder_start_token(self._model))
        return [max(start, 0)]

    def _run(self, run: Callable[..., int], tokens: Sequence[int], start: int, is_wanted: Sequence[bool]) -> None:
        batch = self._lib.llama_batch_init(len(tokens), 0, 1)
        for row, token in enumerate(tokens):
            batch.token[row], batch.pos[row] = token, start + row
            batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, 0, is_wanted[row]
        batch.n_tokens = len(tokens)
        status = run(self._context, batch)
        self._lib.llama_batch_free(batch)
        if status:
            raise EngineJobError(f"a forward pass failed with {status}")

    def forward(
        self, tokens: Sequence[int], start: int, wanted: Collection[int] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Append `tokens` at position `start`; their logits in pieces of shape (at most n_batch, n_vocab).

        Args:
            wanted: which of `tokens` logits are computed for. None: all of them.
        """
        for begin in range(0, len(tokens), self.n_batch):
            part = tokens[begin : begin + self.n_batch]
            is_wanted = [wanted is None or begin + row in wanted for row in range(len(part))]
            self._run(self._lib.llama_decode, part, start + begin, is_wanted)
            if not any(is_wanted):
                continue
            rows = np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), (sum(is_wanted), self.n_vocab))
            if not np.isfinite(rows.max()):
                raise EngineJobError("it computes NaN or infinite numbers: its weights are damaged, or too large")
            yield rows


def _tokenise(job: Event, llama_cpp: Any, send: Send) -> None:
    model = Model(job["path"], llama_cpp)
    for text in job["texts"]:
        send({"tokens": model.encode(text, add_special=job["add_special"])})


def _logits(job: Event, llama_cpp: Any, send: Send) -> None:
    tokens = job["tokens"]
    model = Model(job["path"], llama_cpp, n_ctx=max(len(tokens), 64))
    if job.get("lora"):
        model.apply(job["lora"])
    if model.has_encoder:
        tokens = [*model.read(tokens), *tokens[:-1]]
    np.save(job["out"], np.concatenate([rows.copy() for rows in model.forward(tokens, 0, set(job["rows"]))]))


def _perplexity(job: Event, llama_cpp: Any, send: Send) -> None:
    n_ctx = job["n_ctx"]
    model = Model(job["path"], llama_cpp, n_ctx=n_ctx)
    tokens = model.encode(job["text"], add_special=False)[: job["max_tokens"]]
    first = model.encode("", add_special=True)[:1]  # BOS where the model wants one
    n_window = n_ctx - len(first)
    total, n_scored = 0.0, 0
    for begin in range(0, len(tokens) - n_window // 2, n_window):
        window = [*first, *tokens[begin : begin + n_window]]
        model.forget()
        if model.has_encoder:  # it reads the first half, and writes the second
            half = n_ctx // 2
            window = [*model.read(window[:half]), *window[half:]]
        n_unscored = 1 if model.has_encoder else n_ctx // 2
        position = 0
        for rows in model.forward(window, 0):
            for row in rows:
                position += 1
                if n_unscored <= position < len(window):
                    total += surprise(row, window[position])
                    n_scored += 1
    if not n_scored:
        raise EngineJobError(f"the text is too short: {len(tokens)} tokens, {n_ctx} are needed")
    send({"perplexity": float(np.exp(total / n_scored)), "n_scored": n_scored})


def surprise(row: NDArray[np.float32], token: int) -> float:
    """The negative log-likelihood of a token by the logits before it."""
    top = float(row.max())
    return top + float(np.log(np.exp(row - top, dtype=np.float64).sum())) - float(row[token])


def _generate(job: Event, llama_cpp: Any, send: Send) -> None:
    model = Model(job["path"], llama_cpp, n_ctx=4096)
    tokens = model.encode(job["prompt"], add_special=True)
    if model.has_encoder:
        tokens = model.read(tokens)
    n_prompt, pending = len(tokens), tokens
    for _ in range(job["n_tokens"]):
        *_, rows = model.forward(pending, len(tokens) - len(pending))
        pending = [int(rows[-1].argmax())]
        tokens = [*tokens, *pending]
    send({"tokens": tokens[n_prompt:]})


_JOBS: dict[str, Job] = {
    "rewrite": _rewritten,
    "tokenise": _tokenise,
    "logits": _logits,
    "perplexity": _perplexity,
    "generate": _generate,
}

if __name__ == "__main__":
    serve(partial(work, _JOBS), EngineJobError)
