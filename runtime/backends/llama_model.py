"""Weights and vocabulary of a GGUF file, through llama-cpp-python's low-level API.

The library is pinned to the release whose structs and semantics were checked. Its own `Llama` class is not used: it
keeps n_ctx x n_vocab logits and ignores failed truncations.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as api

from edgellm.memory.adapter import Lora
from edgellm.memory.draft_heads import foreign_head, is_head_alone
from edgellm.runtime.backends.base import EngineError, Interrupted, LayersLost, LoadError, stops_loading
from edgellm.runtime.backends.llama_devices import guarded_pass, links_of, place
from edgellm.runtime.backends.llama_devices import key as device_key
from edgellm.runtime.backends.llama_files import check_adapters, check_encoder, checked_header, has_both_halves
from edgellm.runtime.backends.llama_process import failure, has_extra_buffers, kernels, listen, reason
from edgellm.runtime.backends.llama_tokenizer import LlamaTokenizer
from edgellm.runtime.text.full_vocabulary import full_vocabulary_of
from edgellm.runtime.text.vocabulary import Vocabulary

_PADDING = "tokenizer.ggml.padding_token_id"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How weights are loaded. `repack` lets the engine keep a second, faster layout of some types."""

    placed: tuple[tuple[str, int], ...] = ()  # (device, layers on it); none: all on the processor
    head_stays: bool = False  # the output head is the processor's in any case
    mmap: bool = True
    repack: bool = True
    vocabulary_only: bool = False
    head: bool = False  # with the draft head that the file has inside
    loras: tuple[Lora, ...] = ()
    processor_only: bool = False  # of an ONNX model, whose engine places it itself


class LlamaModel:
    """Weights and vocabulary of one GGUF file.

    Raises:
        LoadError: the file is no GGUF, damaged, truncated, of an unknown architecture, or too large for the memory.
        Interrupted: `stops_loading` was set.
    """

    def __init__(self, path: Path, options: ModelOptions = ModelOptions()) -> None:
        self.path = path
        self.header = checked_header(path)
        self.has_encoder = has_both_halves(self.header)  # and a decoder that attends to what it makes of a prompt
        if self.has_encoder:
            check_encoder(self.header, options.loras)
        check_adapters(self.header, options.loras)
        if not self.header.tensors and not options.vocabulary_only:
            raise LoadError(f"{path} holds a vocabulary only: there are no weights in it to run")
        if (useless := foreign_head(self.header)) is not None:
            raise LoadError(useless)
        kernels()
        self.options = options = replace(options, repack=options.repack and has_extra_buffers())
        params = api.llama_model_default_params()
        self._pointed_to = place(api, params, options.placed, head_stays=options.head_stays)
        self._links = links_of(options.placed)
        self._failed = ""  # what a device said when it did
        params.load_mode = api.LLAMA_LOAD_MODE_MMAP if options.mmap else api.LLAMA_LOAD_MODE_NONE
        params.use_extra_bufts = options.repack
        params.vocab_only = options.vocabulary_only
        params.load_mtp = options.head or is_head_alone(self.header)
        if (stop := stops_loading.get()) is not None:
            params.progress_callback = api.llama_progress_callback(lambda progress, data: not stop.is_set())
        listen()
        self._model = api.llama_model_load_from_file(os.fsencode(path), params)
        if lost := self.lost_layers:
            if self._model:
                api.llama_model_free(self._model)
            raise LayersLost(lost)
        if not self._model and stop is not None and stop.is_set():
            raise Interrupted(f"{path} was not loaded: it was stopped")
        if not self._model:
            raise failure(f"{path} could not be loaded: {reason()}")
        self._check_it_goes_on_with_text()
        self._adapters = [self._adapter(lora) for lora in options.loras]
        self.full_vocabulary = full_vocabulary_of(path, self.header)  # that a trimmed model reads with
        self._reader = self._load_reader(params)
        if not self._reader:
            self.full_vocabulary = None
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
        # Relative positions have no end: what such a model was trained for is taken unasked, and bounds nothing.
        self.n_ctx_train = 0 if self.has_encoder else int(api.llama_model_n_ctx_train(self._model))
        self.is_hybrid = bool(api.llama_model_is_hybrid(self._model))  # its state can be rolled back a little way
        self.notes: list[str] = []  # what was chosen for it and why, a sentence each
        self.is_recurrent = bool(api.llama_model_is_recurrent(self._model))  # nothing but state: it cannot

    @property
    def same_bits(self) -> bool:
        """Passes of every width agree bit for bit: all of its layers are multiplied by our kernels."""
        workers = [link.survey.facts for link in self._links]
        ours = len(workers) == len(self.options.placed) and all(facts.kernels for facts in workers)
        return kernels().active and ours

    @property
    def lost_layers(self) -> str:
        """A sentence once a worker or a device that holds layers is gone, and nothing is computed; "" before."""
        if self._failed:
            names = ", ".join(name for name, _ in self.options.placed)
            return (
                f"{names} failed in the middle of a pass ({self._failed}), and layers of {self.path.name} with it: "
                "load it again, or leave it to the processor (--main-device cpu)"
            )
        lost = next((link for link in self._links if link.lost), None)
        return (
            f"the worker {lost.address} was lost ({lost.lost}), and layers of {self.path.name} with it" if lost else ""
        )

    @property
    def has_failed(self) -> bool:
        """Whether a device of this machine did, whose driver is not to be asked for anything again."""
        return bool(self._failed)

    @property
    def n_layers_here(self) -> int:
        """Layers on the processor, the output head counted as one."""
        n_layers = int(api.llama_model_n_layer(self.handle)) + 1
        return max(0, n_layers - sum(n for _, n in self.options.placed))

    def run(self, context: Any, batch: Any) -> int:
        """The engine's status of a pass, at its end: other devices are else only told what to compute.

        Raises:
            LayersLost: a device failed, now or before.
        """
        if not self.options.placed:
            return int(api.llama_decode(context, batch))
        if self._failed:
            raise LayersLost(self.lost_layers)
        status, self._failed = guarded_pass(api, context, batch)
        if self._failed:
            raise LayersLost(self.lost_layers)
        return status

    @property
    def placement_key(self) -> str:
        """What its bits and times depend on beside the processor; "" where it lies there alone."""
        return device_key(api, self.options.placed) if self.options.placed else ""

    @property
    def architecture(self) -> str:
        return self.header.architecture

    @property
    def is_head(self) -> bool:
        """Whether it can only draft for the model that it was made for, whose states it is given."""
        return is_head_alone(self.header)

    @property
    def n_params(self) -> int:
        return self.header.n_params

    @property
    def decoder_start(self) -> int | None:
        """The token before every answer of a model with an encoder; None for other models."""
        if not self.has_encoder:
            return None
        told, padding = int(api.llama_model_decoder_start_token(self.handle)), self.header.metadata.get(_PADDING, 0)
        start = told if told >= 0 else padding if isinstance(padding, int) else 0
        return start if start < self.vocabulary.n_tokens else 0

    @property
    def handle(self) -> Any:
        if self._model is None:
            raise EngineError(f"{self.path} is closed")
        return self._model

    def _load_reader(self, params: Any) -> Any:
        """The engine's tokenizer of the full vocabulary; None where there is none, or it is damaged."""
        if self.full_vocabulary is None:
            return None
        path = self.full_vocabulary.header.path
        with contextlib.suppress(LoadError):
            checked_header(path)
            params.vocab_only = True
            return api.llama_model_load_from_file(os.fsencode(path), params)
        return None

    def _adapter(self, lora: Lora) -> Any:
        listen()
        adapter = api.llama_adapter_lora_init(self._model, os.fsencode(lora.path))
        if not adapter:
            api.llama_model_free(self._model)
            raise failure(f"{lora.path} could not be applied to {self.path.name}: {reason()}")
        return adapter

    def adapt(self, context: Any) -> None:
        """Let a context of this model apply its adapters."""
        n = len(self._adapters)
        scales = (ctypes.c_float * n)(*(lora.scale for lora in self.options.loras))
        if n and api.llama_set_adapters_lora(
            context, (api.llama_adapter_lora_p_ctypes * n)(*self._adapters), n, scales
        ):
            raise LoadError(f"{self.path.name}: its adapters could not be applied: {reason()}")

    def vocabulary_key(self) -> str:
        """Of `vocabulary`, see `GgufHeader.vocabulary_key`."""
        return (self.full_vocabulary.header if self.full_vocabulary is not None else self.header).vocabulary_key()

    def _check_it_goes_on_with_text(self) -> None:
        """What the engine would otherwise end the process for when it is first asked."""
        if api.llama_vocab_type(api.llama_model_get_vocab(self._model)) == api.LLAMA_VOCAB_TYPE_NONE:
            why = "holds no vocabulary, so no text can be turned into its tokens; take a file with a tokenizer"
        elif not (self.options.vocabulary_only or self.has_encoder) and (
            api.llama_model_has_encoder(self._model) or not api.llama_model_has_decoder(self._model)
        ):
            why = f"({self.architecture}) has an encoder alone: it neither chats nor drafts here; take one that writes"
        else:
            return
        api.llama_model_free(self._model)
        raise LoadError(f"{self.path.name} {why}")

    def free(self, context: Any) -> None:
        """Give a context back, unless a device failed: its driver may end the process when it is asked for memory."""
        if not self._failed:
            api.llama_free(context)

    def close(self) -> None:
        if self._model:
            self._tokenizer.close()
            if not self._failed:
                api.llama_model_free(self._model)
            if self._reader:
                api.llama_model_free(self._reader)
        self._model = self._reader = None
