"""llama.cpp through llama-cpp-python's low-level API, pinned to the release whose structs and semantics were checked.

The library's own `Llama` class is not used: it keeps n_ctx x n_vocab logits and ignores failed truncations.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import __version__ as _version
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

from edgellm.memory.adapter import AdapterError, Lora, check_fits, read_adapter, refuse_adapter
from edgellm.memory.children import REPORT, without_folder
from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import TYPE_IDS, GgufError, GgufHeader
from edgellm.memory.hparams import MAX_LAYERS
from edgellm.memory.split import read_model
from edgellm.runtime.backends.base import (
    CannotTruncate,
    ContextFull,
    EngineError,
    Interrupted,
    LoadError,
    Logits,
    OutOfMemory,
    StopSignal,
    checked,
)
from edgellm.runtime.backends.llama_tokenizer import LlamaTokenizer
from edgellm.runtime.bringup import extra_buffers
from edgellm.runtime.kernels import KernelReport, install
from edgellm.runtime.text.full_vocabulary import FullHead, full_vocabulary_of
from edgellm.runtime.text.vocabulary import Vocabulary

_SHORT_OF_MEMORY = "not enough memory"
MAX_JOINED = 24  # tokens that are read in the pass of those whose logits are wanted

log = logging.getLogger("edgellm.llama_cpp")
_WHERE = re.compile(r"^(\w+: )?(error loading model( [a-z]+)?: )*")  # before the words that say why
_recent: deque[str] = deque(maxlen=20)  # errors, for the sentence that explains a failed load
_level = logging.DEBUG


@api.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: Any) -> None:
    global _level
    if level != 5:  # 5 continues the line before
        _level = {3: logging.WARNING, 4: logging.ERROR}.get(level, logging.DEBUG)
    line = text.decode("utf-8", "replace").rstrip("\n")
    if not line.strip("."):
        return
    if _level == logging.ERROR:
        _recent.append(line)
    log.debug(line)


_aborting = threading.Lock()


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # type: ignore[untyped-decorator]
def _on_abort(message: bytes) -> None:
    """The engine found a check of its own broken and ends the process when this returns: with a sentence instead."""
    if os.environ.get("EDGELLM_DEBUG"):
        return
    _aborting.acquire()  # never given back: other threads of the pass find the same, and one of them tells it
    sys.stderr.write(
        f"error: llama.cpp stopped at a check of its own ({without_folder(message.decode('utf-8', 'replace'))}): the "
        "file does not hold what its architecture promises, or this release cannot run it; try another file of the "
        f"model, and {REPORT}\n"
    )
    sys.stderr.flush()
    os._exit(1)


_initialised = False
_kernels: KernelReport | None = None


def kernels() -> KernelReport:
    """Which kernels multiply, and why; decided before the first model is loaded."""
    _initialise()
    assert _kernels is not None
    return _kernels


def has_extra_buffers() -> bool:
    """Whether weights may go to a buffer type that rearranges them: that of our kernels, or the engine's that work."""
    return kernels().active or extra_buffers.verdict().usable


def offloads() -> bool:
    """Whether this build can put layers on a GPU."""
    return bool(api.llama_supports_gpu_offload())


def _listen() -> None:
    """Hear what the engine says from here on, whoever else in this process has listened since."""
    api.llama_log_set(_on_log, ctypes.c_void_p(0))
    _recent.clear()


def _initialise() -> None:
    global _initialised, _kernels
    if not _initialised:
        # A log line behind the end of Python must not call into it.
        atexit.register(api.llama_log_set, api.llama_log_callback(), ctypes.c_void_p(0))
        _listen()
        api._lib.ggml_set_abort_callback(_on_abort)
        api.llama_backend_init()
        # They offer themselves to every model that is loaded from here on.
        _kernels = install(alone=not extra_buffers.verdict().usable)
        _initialised = True


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How weights are loaded. `repack` lets the engine keep a second, faster layout of some types."""

    n_gpu_layers: int = -1  # -1: all that the device takes
    main_gpu: int = 0
    mmap: bool = True
    repack: bool = True
    vocabulary_only: bool = False
    loras: tuple[Lora, ...] = ()


def engine_name() -> str:
    """Whose reading of a vocabulary this is."""
    return f"llama-cpp-python {_version}"


class LlamaModel:
    """Weights and vocabulary of one GGUF file.

    Raises:
        LoadError: the file is no GGUF, damaged, truncated, of an unknown architecture, or too large for the memory.
    """

    def __init__(self, path: Path, options: ModelOptions = ModelOptions()) -> None:
        self.path = path
        self.header = _checked_header(path)
        _check_adapters(self.header, options.loras)
        if not self.header.tensors and not options.vocabulary_only:
            raise LoadError(f"{path} holds a vocabulary only: there are no weights in it to run")
        _initialise()
        self.options = options = replace(options, repack=options.repack and has_extra_buffers())
        params = api.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers if offloads() else 0
        params.main_gpu = options.main_gpu
        params.load_mode = api.LLAMA_LOAD_MODE_MMAP if options.mmap else api.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = options.repack
        params.vocab_only = options.vocabulary_only
        _listen()
        self._model = api.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise _failure(f"{path} could not be loaded: {_reason()}")
        self._check_it_goes_on_with_text()
        self._adapters = [self._adapter(lora) for lora in options.loras]
        self.words = full_vocabulary_of(path, self.header)
        self._reader: Any = None  # the vocabulary that a trimmed model reads with
        if self.words is not None:
            with contextlib.suppress(LoadError):
                _checked_header(self.words.header.path)
                params.vocab_only = True
                self._reader = api.llama_model_load_from_file(os.fsencode(self.words.header.path), params)
            if not self._reader:
                self.words = None
        try:
            self._tokenizer = LlamaTokenizer(api.llama_model_get_vocab(self._reader or self._model))
        except LoadError as error:
            for model in filter(None, (self._model, self._reader)):
                api.llama_model_free(model)
            raise LoadError(f"{path}: {error}") from error
        self.vocabulary = Vocabulary(self._tokenizer)
        template = self.header.metadata.get("tokenizer.chat_template")
        self.chat_template = template if isinstance(template, str) and template else None
        self.n_window = int(api.llama_model_n_swa(self._model))  # tokens that a sliding window sees; 0 without one
        self.n_ctx_train = int(api.llama_model_n_ctx_train(self._model))
        self.is_hybrid = bool(api.llama_model_is_hybrid(self._model))  # its state can be rolled back a little way
        self.notes: list[str] = []  # what was chosen for it and why, a sentence each
        self.is_recurrent = bool(api.llama_model_is_recurrent(self._model))  # nothing but state: it cannot

    @property
    def architecture(self) -> str:
        return self.header.architecture

    @property
    def n_params(self) -> int:
        return self.header.n_params

    @property
    def handle(self) -> Any:
        if self._model is None:
            raise EngineError(f"{self.path} is closed")
        return self._model

    def _adapter(self, lora: Lora) -> Any:
        _listen()
        adapter = api.llama_adapter_lora_init(self._model, os.fsencode(lora.path))
        if not adapter:
            api.llama_model_free(self._model)
            raise _failure(f"{lora.path} could not be applied to {self.path.name}: {_reason()}")
        return adapter

    def adapt(self, context: Any) -> None:
        """Let a context of this model apply its adapters."""
        n = len(self._adapters)
        scales = (ctypes.c_float * n)(*(lora.scale for lora in self.options.loras))
        if n and api.llama_set_adapters_lora(
            context, (api.llama_adapter_lora_p_ctypes * n)(*self._adapters), n, scales
        ):
            raise LoadError(f"{self.path.name}: its adapters could not be applied: {_reason()}")

    def vocabulary_key(self) -> str:
        """Of `vocabulary`, see `GgufHeader.vocabulary_key`."""
        return (self.words.header if self.words is not None else self.header).vocabulary_key()

    def _check_it_goes_on_with_text(self) -> None:
        """What the engine would otherwise end the process for when it is first asked."""
        if api.llama_vocab_type(api.llama_model_get_vocab(self._model)) == api.LLAMA_VOCAB_TYPE_NONE:
            why = "holds no vocabulary, so no text can be turned into its tokens; take a file with a tokenizer"
        elif not self.options.vocabulary_only and (
            api.llama_model_has_encoder(self._model) or not api.llama_model_has_decoder(self._model)
        ):
            why = f"({self.architecture}) has an encoder: it neither chats nor drafts here; take a decoder-only model"
        else:
            return
        api.llama_model_free(self._model)
        raise LoadError(f"{self.path.name} {why}")

    def close(self) -> None:
        if self._model:
            self._tokenizer.close()
            api.llama_model_free(self._model)
            if self._reader:
                api.llama_model_free(self._reader)
        self._model = self._reader = None


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """What a context really takes, which may be less or more than was asked for. Sizes in tokens."""

    n_ctx: int
    n_batch: int  # of one call; more ends the process
    n_rs_seq: int  # that a recurrent state can be rolled back; 0 for most architectures, whatever was asked for

    @classmethod
    def of(cls, context: Any) -> ContextLimits:
        n_batch = min(int(api.llama_n_batch(context)), int(api.llama_n_ubatch(context)))
        return cls(int(api.llama_n_ctx_seq(context)), n_batch, int(api.llama_n_rs_seq(context)))


class LlamaBackend:
    """One sequence on llama.cpp. See `Backend` for the contract.

    Raises:
        LoadError: the context's memory could not be had.
    """

    def __init__(
        self,
        model: LlamaModel,
        settings: ContextSettings,
        *,
        pad_single: bool = False,
        stop_asked: StopSignal | None = None,
    ) -> None:
        """
        Args:
            settings: every allocation follows from these numbers.
            pad_single: run single tokens as two, which agree in every bit with wider passes on more kernels.
            stop_asked: once set, reading text ends with `Interrupted`.
        """
        self.model, self.settings = model, settings
        self.n_vocab = model.vocabulary.n_tokens
        self._pad_single = pad_single and model.words is None
        n_outputs = 1 if model.is_recurrent else max(settings.n_outputs, 2 if pad_single else 1)
        self.engine_s = 0.0
        self.n_threads = settings.n_threads
        self.tokens: list[int] = []
        self._ctx: Any = None
        params = api.llama_context_default_params()
        params.n_ctx = settings.n_ctx
        params.n_batch = params.n_ubatch = max(settings.n_ubatch, n_outputs)
        params.n_seq_max = 1
        params.n_outputs_max = n_outputs
        params.n_threads = params.n_threads_batch = self.n_threads
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = TYPE_IDS[settings.kv.upper()]
        params.no_perf = True
        # A sliding window keeps n_ubatch spare cells, more than one rejected draft ever needs.
        params.swa_full = False
        params.n_rs_seq = max(n_outputs, settings.n_rs_seq) if model.is_hybrid else 0
        _listen()
        self._ctx = api.llama_init_from_model(model.handle, params)
        if not self._ctx:
            raise _failure(
                f"{model.path.name}: no context of {settings.n_ctx:,} tokens could be made: {_reason()}; "
                "try a smaller --ctx or --kv q8_0"
            )
        model.adapt(self._ctx)
        self._stop_asked: StopSignal = stop_asked or threading.Event()
        self._abort = api.ggml_abort_callback(lambda _: self._stop_asked.is_set())
        self._memory = api.llama_get_memory(self._ctx)
        if not self._memory:
            api.llama_free(self._ctx)
            raise LoadError(
                f"{model.path.name} ({model.architecture}) keeps no cache of what it reads: it is made for embeddings "
                "or for filling in, and neither chats nor drafts here; take a decoder-only model"
            )
        limits = ContextLimits.of(self._ctx)
        # The engine rounds contexts up to whole blocks of cells; what a model was not trained for is not used.
        self.n_ctx = min(limits.n_ctx, max(settings.n_ctx, model.n_ctx_train))
        self._n_batch = limits.n_batch
        stateful = model.is_recurrent or model.is_hybrid
        # What cannot be taken back is not drafted, and not padded either.
        self.can_rewind = not stateful or limits.n_rs_seq > 0
        self.max_outputs = min(n_outputs, limits.n_batch) if self.can_rewind else 1
        self._pad_single = self._pad_single and self.max_outputs > 1
        self.can_shift = not (stateful or model.n_window) and bool(api.llama_memory_can_shift(self._memory))
        words = model.words
        self._head = FullHead(words, self.max_outputs) if words is not None else None
        self._batch = api.llama_batch_init(self._n_batch, words.n_embd if words is not None else 0, 1)
        if words is not None:
            shape = (self._n_batch, words.n_embd)
            self._embeddings: NDArray[np.float32] = np.ctypeslib.as_array(self._batch.embd, shape)
        else:
            self._tokens: NDArray[np.int32] = np.ctypeslib.as_array(self._batch.token, (self._n_batch,))
        self._positions: NDArray[np.int32] = np.ctypeslib.as_array(self._batch.pos, (self._n_batch,))
        self._wanted: NDArray[np.int8] = np.ctypeslib.as_array(self._batch.logits, (self._n_batch,))
        for i in range(self._n_batch):
            self._batch.n_seq_id[i] = 1
            self._batch.seq_id[i][0] = 0

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        if self._ctx is None:
            raise EngineError(f"{self.model.path.name} is closed")
        if n_outputs > self.max_outputs or n_outputs > len(tokens):
            raise EngineError(
                f"{n_outputs} rows of logits asked for, {min(self.max_outputs, len(tokens))} are to be had"
            )
        n_body = len(tokens) - n_outputs
        joins = not self._pad_single and self.model.words is None  # whose head wants all rows of a pass, or none
        if n_outputs and joins and n_body <= MAX_JOINED and len(tokens) <= self._n_batch:
            n_body = 0  # what a drafter missed of the last round is read in the pass that drafts
        if n_body:
            self._read(tokens[:n_body])
        if not n_outputs:
            return np.empty((0, self.n_vocab), np.float32)
        if n_outputs == 1 and self._pad_single:
            self._decode([tokens[-1], tokens[-1]], 1, first=True)
            self.truncate(len(self.tokens) - 1)
        else:
            self._decode(tokens[n_body:], n_outputs)
        words, head = self.model.words, self._head
        if words is None or head is None:
            return checked(_rows(api.llama_get_logits(self._ctx), n_outputs, self.n_vocab), self.model.path.name)
        rows = checked(_rows(api.llama_get_logits(self._ctx), n_outputs, len(words.kept)), self.model.path.name)
        hidden = _rows(api.llama_get_embeddings(self._ctx), n_outputs, words.n_embd)
        return head.logits(rows, hidden)

    def _read(self, tokens: Sequence[int]) -> None:
        """Append any number of tokens; this may take long, and may be interrupted."""
        # Asked between any two nodes of the graph, which would cost too much where a pass is one token.
        api.llama_set_abort_callback(self._ctx, self._abort, None)
        try:
            for start in range(0, len(tokens), self._n_batch):
                if self._stop_asked.is_set():
                    raise Interrupted("stopped while reading")
                self._decode(tokens[start : start + self._n_batch], 0)
        finally:
            api.llama_set_abort_callback(self._ctx, api.ggml_abort_callback(), None)

    def _decode(self, tokens: Sequence[int], n_rows: int, *, first: bool = False) -> None:
        """One engine call over at most n_batch tokens; logits of the last `n_rows`, or of the first."""
        n, n_held = len(tokens), len(self.tokens)
        if not n:
            return
        if n_held + n > self.n_ctx:
            raise ContextFull(f"the context of {self.n_ctx:,} tokens is full: raise --ctx or /clear the conversation")
        if self.model.words is not None and self._head is not None:
            self._embeddings[:n] = self.model.words.embed(tokens)
            self._head.see(tokens)
            # What the head is given is returned for all tokens of a pass or for none.
            api.llama_set_embeddings(self._ctx, n_rows == n)
        else:
            self._tokens[:n] = tokens
        self._positions[:n] = range(n_held, n_held + n)
        self._wanted[:n] = 0
        self._wanted[slice(n_rows) if first else slice(n - n_rows, n)] = 1
        self._batch.n_tokens = n
        started = time.perf_counter()
        status = api.llama_decode(self._ctx, self._batch)
        self.engine_s += time.perf_counter() - started
        if status == 0:
            self.tokens.extend(tokens)
        elif status == 1:
            raise ContextFull(f"no room for {n} more tokens in a context of {self.n_ctx:,}: raise --ctx")
        else:
            if not api.llama_memory_seq_rm(self._memory, 0, n_held, -1):  # a failed call may leave part of its tokens
                api.llama_memory_clear(self._memory, False)
                self.tokens.clear()
            if status == 2:
                raise Interrupted("stopped while reading")
            raise EngineError(f"{self.model.path.name}: the engine failed with status {status}: {_reason()}")

    def truncate(self, length: int) -> None:
        if length >= len(self.tokens):
            return
        if length <= 0:
            api.llama_memory_clear(self._memory, False)
        elif self._window_lost(length):
            raise CannotTruncate(
                f"{self.model.path.name} has let go of tokens before {length} that its sliding window needs again: "
                "it must read the text once more"
            )
        elif not api.llama_memory_seq_rm(self._memory, 0, length, -1):
            raise CannotTruncate(
                f"{self.model.path.name} ({self.model.header.architecture}) keeps recurrent state that cannot be cut "
                f"back from {len(self.tokens)} to {length} tokens: it must read the text once more"
            )
        del self.tokens[max(0, length) :]

    def forget_oldest(self, n: int) -> None:
        api.llama_memory_seq_rm(self._memory, 0, 0, n)
        api.llama_memory_seq_add(self._memory, 0, n, -1, -n)  # keys are turned to their new positions by the next pass
        del self.tokens[:n]

    def _window_lost(self, length: int) -> bool:
        """Whether layers with a sliding window have reused cells that token `length` would look at."""
        n_window = self.model.n_window
        if n_window and self.model.is_hybrid:  # its smallest position is the state's; n_batch cells are spare
            return len(self.tokens) - length > self._n_batch
        return n_window > 0 and api.llama_memory_seq_pos_min(self._memory, 0) > max(0, length - n_window)

    def warm_up(self) -> None:
        """One pass of the widest verification: weights are paged in and no row of logits is allocated later."""
        vocabulary = self.model.vocabulary
        token = vocabulary.bos if vocabulary.bos is not None else 0
        self.forward([token] * min(self.max_outputs, self.n_ctx), n_outputs=min(self.max_outputs, self.n_ctx))
        self.truncate(0)
        self.engine_s = 0.0

    def close(self) -> None:
        if self._ctx is not None:
            api.llama_batch_free(self._batch)
            api.llama_free(self._ctx)
        self._ctx = None
        self.tokens.clear()


def _rows(pointer: Any, n_rows: int, n_columns: int) -> NDArray[np.float32]:
    """The engine's own memory, (n_rows, n_columns); `as_array` builds new types for a pointer at every call."""
    values = (ctypes.c_float * (n_rows * n_columns)).from_address(ctypes.addressof(pointer.contents))
    return np.frombuffer(memoryview(values), np.float32).reshape(n_rows, n_columns)


def _checked_header(path: Path) -> GgufHeader:
    """The header, with what would make the engine end the process instead of refusing the file."""
    try:
        header = read_model(path)
        words = [word for word in header.array("tokenizer.ggml.tokens") if word]
    except GgufError as error:
        raise LoadError(str(error)) from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    if len(set(words)) < len(words):
        raise LoadError(f"{path} has the same token twice in its vocabulary: the file is damaged, pull it again")
    n_layers = header.hparam("block_count", 1)
    if not isinstance(n_layers, int) or not 0 < n_layers <= MAX_LAYERS:
        raise LoadError(f"{path} claims {n_layers} layers: the file is damaged, pull it again")
    return header


def _check_adapters(model: GgufHeader, loras: Sequence[Lora]) -> None:
    """By their headers: what the engine would refuse without a reason, leave out or end the process for."""
    try:
        refuse_adapter(model)
        for lora in loras:
            check_fits(read_adapter(lora.path), model)
    except (AdapterError, GgufError) as error:
        raise LoadError(str(error)) from error
    except OSError as error:
        raise LoadError(f"{error.filename} cannot be read: {error.strerror}") from error


def _failure(sentence: str) -> LoadError:
    return OutOfMemory(sentence) if _SHORT_OF_MEMORY in sentence else LoadError(sentence)


def _reason() -> str:
    """The engine's own words for its last failure, in one line."""
    lines = [_WHERE.sub("", line) for line in _recent]
    words = [line for line in lines if line and "failed to load model" not in line]
    if not words:
        return "the engine gave no reason (run with --verbose)"
    reason = words[0]
    if "unknown model architecture" in reason:
        reason += "; this engine does not know it, pull another model"
    elif "alloc" in reason.lower():
        reason += f"; {_SHORT_OF_MEMORY}"
    return reason
