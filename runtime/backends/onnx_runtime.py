"""ONNX models on onnxruntime: the cache preallocated and bound in place, rolled back by its length.

Graphs whose attention is GroupQueryAttention write new keys and values behind the old ones in one buffer a tensor,
bound as input and output alike: taking tokens back is setting a number, and stale rows are overwritten. Other graphs
return grown copies of their cache; of these the first rows are kept, copied only when tokens have been taken back.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgellm.memory.context import ContextSettings
from edgellm.memory.onnx_graph import OnnxError, OnnxGraph, read_graph
from edgellm.memory.onnx_plan import batch
from edgellm.runtime.backends.base import (
    ContextFull,
    EngineError,
    Interrupted,
    LoadError,
    Logits,
    OutOfMemory,
    StopSignal,
    checked,
)
from edgellm.runtime.backends.hub_tokenizer import HubFolder
from edgellm.runtime.backends.onnx_cache import NUMPY_TYPES, Cache, GrowingCache, SharedCache
from edgellm.runtime.backends.onnx_provider import CPU, PROVIDER_VARIABLE, choose_provider
from edgellm.runtime.text.vocabulary import Vocabulary

MODEL = "model.onnx"
_KNOWN_INPUTS = {"input_ids", "attention_mask", "position_ids", "logits_start"}


class OnnxModel:
    """The graph, the weights' whereabouts and the vocabulary of one ONNX model.

    Raises:
        LoadError: no ONNX model, a damaged one, weights that are missing or cut off, inputs that a decoder lacks or
            that are not known, or the tokenizer of another model.
    """

    is_recurrent = is_hybrid = False
    lost_layers, has_failed = "", False  # all of it is here

    def __init__(self, path: Path, *, cpu_only: bool = False) -> None:
        """`path`: the model's folder, or a graph in it."""
        self.path = path
        graph_path = path / MODEL if path.is_dir() else path
        files = HubFolder(graph_path.parent)
        if not files.config and not (graph_path.parent / "tokenizer.json").exists():
            files = HubFolder(graph_path.parent.parent)  # graphs that lie in a folder of their own, beside the rest
        try:
            self.graph = read_graph(graph_path, head_dim=files.head_dim)
            self.graph.check_data()
            self.kv = self.graph.kv
        except OnnxError as error:
            raise LoadError(str(error)) from error
        except OSError as error:
            raise LoadError(f"{graph_path} cannot be read: {error.strerror}") from error
        _check_inputs(self.graph)
        self.vocabulary = Vocabulary(files.tokenizer(_n_vocab(self.graph, files)))
        self.chat_template = files.chat_template()
        self.n_ctx_train = files.n_ctx_train
        self.provider = choose_provider(
            onnxruntime.get_available_providers(), cpu_only=cpu_only, wanted=os.environ.get(PROVIDER_VARIABLE)
        )
        cache = "in one buffer" if self.graph.shares_buffer else "copied from pass to pass"
        self.notes = [
            f"{path.name} runs on onnxruntime: {self.provider.reason}",
            f"{path.name} keeps its cache as {self.kv[0].type}, {cache}, as it was exported",
        ]

    @property
    def architecture(self) -> str:
        return "onnx"

    @property
    def n_params(self) -> int:
        return sum(
            int(np.prod(tensor.shape)) * (8 // self.graph.weight_bits if tensor.type == "uint8" else 1)
            for tensor in self.graph.tensors
        )

    def close(self) -> None:
        """Nothing is held but the vocabulary; sessions belong to backends."""


class OnnxBackend:
    """One sequence on onnxruntime. See `Backend` for the contract.

    Raises:
        LoadError: onnxruntime refuses the graph.
        OutOfMemory: the cache's memory could not be had.
    """

    can_shift = False

    def __init__(
        self,
        model: OnnxModel,
        settings: ContextSettings,
        *,
        pad_single: bool = True,
        stop_asked: StopSignal | None = None,
    ) -> None:
        """
        Args:
            settings: the cache's type and snapshots of states are passed over: they are part of the graph.
            pad_single: run single tokens as two. onnxruntime's products of two rows and more agree in every bit, those
                of one row differ in the last ones; where activations are rounded to 8 bits that becomes visible.
            stop_asked: once set, reading text ends with `Interrupted` behind the piece that is being read.
        """
        graph = model.graph
        self.model, self.settings = model, settings
        self.n_vocab = model.vocabulary.n_tokens
        self.n_ctx = settings.n_ctx
        self._pad_single = pad_single
        self.max_outputs = max(settings.n_outputs, 2 if self._pad_single else 1)
        self.engine_s = 0.0
        self.n_threads = settings.n_threads
        self.tokens: list[int] = []
        self._stop_asked: StopSignal = stop_asked or threading.Event()
        self._n_batch = max(batch(settings, shares_buffer=graph.shares_buffer), self.max_outputs)
        self._picks_rows = "logits_start" in graph.inputs
        self._session: Any = _session(model, self.n_threads)
        self._binding: Any = self._session.io_binding()
        # A padded token needs room behind the last one.
        capacity = self.n_ctx + self._pad_single
        self._ids = np.zeros((1, self._n_batch), np.int64)
        self._positions = np.arange(capacity, dtype=np.int64)[None]
        self._mask = np.ones((1, capacity), np.int64)
        self._start = np.zeros(1, np.int64)
        self._logits_type = NUMPY_TYPES[graph.outputs["logits"].type]
        n_rows = self.max_outputs if self._picks_rows else self._n_batch
        self._cache: Cache
        try:
            self._rows = np.zeros((n_rows, self.n_vocab), self._logits_type)
            if graph.shares_buffer:
                self._cache = SharedCache(model.kv, model.provider.device, self._binding, capacity)
            else:
                self._cache = GrowingCache(model.kv, list(graph.outputs), self._binding)
        except (MemoryError, RuntimeError) as error:
            raise OutOfMemory(
                f"{model.path.name}: no cache of {self.n_ctx:,} tokens could be made; try a smaller --ctx"
            ) from error

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        if self._session is None:
            raise EngineError(f"{self.model.path.name} is closed")
        if n_outputs > self.max_outputs or n_outputs > len(tokens):
            raise EngineError(
                f"{n_outputs} rows of logits asked for, {min(self.max_outputs, len(tokens))} are to be had"
            )
        n_body = len(tokens) - n_outputs
        for start in range(0, n_body, self._n_batch):
            if self._stop_asked.is_set():
                raise Interrupted("stopped while reading")
            self._run(tokens[start : min(start + self._n_batch, n_body)], 0)
        if not n_outputs:
            return np.empty((0, self.n_vocab), np.float32)
        return self._run(tokens[n_body:], n_outputs)

    def _run(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        """One pass over at most n_batch tokens; logits of the last `n_outputs`."""
        n, n_held = len(tokens), len(self.tokens)
        if n_held + n > self.n_ctx:
            raise ContextFull(f"the context of {self.n_ctx:,} tokens is full: raise --ctx or /clear the conversation")
        padded = n == 1 and self._pad_single
        n_run = n + padded
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.n_vocab:
            raise EngineError(f"a token is outside the vocabulary of {self.n_vocab:,}")
        self._ids[0, :n] = tokens
        self._ids[0, n:n_run] = tokens[-1]
        # onnxruntime's products take any number of rows but none.
        n_rows = max(n_outputs + padded, 1) if self._picks_rows else n_run
        self._start[0] = n_run - n_rows
        binding = self._binding
        self._bind("input_ids", self._ids, n_run)
        self._bind("attention_mask", self._mask, n_held + n_run)
        self._bind("position_ids", self._positions[:, n_held:], n_run)
        if self._picks_rows:
            binding.bind_input("logits_start", "cpu", 0, np.int64, [1], self._start.ctypes.data)
        shape = [1, n_rows, self.n_vocab]
        binding.bind_output("logits", "cpu", 0, self._logits_type, shape, self._rows.ctypes.data)
        self._cache.bind(n_held)
        started = time.perf_counter()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's own classes share no base below it
            self._cache.reset()
            self.tokens.clear()
            raise EngineError(f"{self.model.path.name}: onnxruntime failed: {_first_line(error)}") from error
        self._cache.ran(n_held + n_run)
        self.engine_s += time.perf_counter() - started
        self.tokens.extend(tokens)
        # A padded token counts for nothing: the next pass overwrites it.
        rows = self._rows[n_rows - padded - n_outputs : n_rows - padded].astype(np.float32, copy=False)
        return checked(rows, self.model.path.name) if n_outputs else rows

    def _bind(self, name: str, array: NDArray[np.int64], n: int) -> None:
        if name in self.model.graph.inputs:
            self._binding.bind_input(name, "cpu", 0, np.int64, [1, n], array.ctypes.data)

    def forget_oldest(self, n: int) -> None:
        raise EngineError("keys in a graph's cache cannot be turned to other positions")

    def truncate(self, length: int) -> None:
        del self.tokens[max(0, length) :]

    def warm_up(self) -> None:
        """One pass over two tokens, so that the first answer does not pay for paging the weights in."""
        token = self.model.vocabulary.bos or 0
        self.forward([token, token], n_outputs=1)
        self.truncate(0)
        self.engine_s = 0.0

    def close(self) -> None:
        self._cache.free()
        self._binding = self._session = None
        self.tokens.clear()


def _session(model: OnnxModel, n_threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # The arena grows by doubling and keeps what one long prompt needed; the system's allocator gives it back.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Threads that go on spinning behind a pass take the cores from a drafter on another engine.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not _is_utf8(model.graph.path):
        raise LoadError(f"{model.graph.path}: onnxruntime takes no names that are not UTF-8: rename the folder")
    names = [model.provider.name] + ([CPU] if model.provider.name != CPU else [])
    try:
        return onnxruntime.InferenceSession(str(model.graph.path), options, providers=names)
    except Exception as error:  # onnxruntime's own classes share no base below it
        raise LoadError(f"{model.graph.path} could not be loaded: {_first_line(error)}") from error


def _is_utf8(path: Path) -> bool:
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def _check_inputs(graph: OnnxGraph) -> None:
    cache = {name for pair in graph.kv for name in pair.past}
    missing = [name for name in ("input_ids", "attention_mask") if name not in graph.inputs]
    missing += [] if cache else ["past_key_values.0.key"]
    if missing:
        raise LoadError(
            f"{graph.path} has no input {' and no input '.join(missing)}: it is no decoder with a cache, "
            "export it with `edgellm export MODEL --format onnx`"
        )
    unknown = sorted(graph.inputs.keys() - cache - _KNOWN_INPUTS - graph.optional)
    if unknown:
        raise LoadError(f"{graph.path} wants inputs that are not known here ({', '.join(unknown)}): export it again")
    if "logits" not in graph.outputs:
        raise LoadError(f"{graph.path} has no output logits: it is no language model with its head")
    for pair in graph.kv:
        if pair.type not in NUMPY_TYPES:
            raise LoadError(f"{graph.path} keeps its cache as {pair.type}, which is not supported: export it again")
    if graph.outputs["logits"].type not in NUMPY_TYPES:
        raise LoadError(f"{graph.path} gives logits of type {graph.outputs['logits'].type}: export it again")


def _n_vocab(graph: OnnxGraph, files: HubFolder) -> int:
    n_vocab = graph.n_vocab or int(files.config.get("vocab_size") or files.genai.get("vocab_size") or 0)
    if n_vocab < 1:
        raise LoadError(f"{graph.path} does not say how many tokens it knows: put the model's config.json beside it")
    return n_vocab


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__
