"""A context of llama.cpp: every allocation follows from a few numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llama_cpp import llama_cpp as api

from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import TYPE_IDS
from edgellm.runtime.backends.llama_process import failure, listen, reason


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


@contextmanager
def interruptible(context: Any, abort: Any) -> Iterator[None]:
    """Calls end with status 2 once `abort`, the engine's kind of callback, says so.

    It is asked between any two nodes of the graph, which would cost too much where a pass is one token.
    """
    api.llama_set_abort_callback(context, abort, None)
    try:
        yield
    finally:
        api.llama_set_abort_callback(context, api.ggml_abort_callback(), None)


def new_context(
    model: Any,
    settings: ContextSettings,
    n_outputs: int,
    *,
    name: str,
    rolls_back: bool,
    n_sequences: int = 1,
    pooled: bool = False,
    head_of: Any = None,
) -> Any:
    """The engine's context on its model.

    Args:
        n_outputs: rows of logits that a pass may return.
        name: the model's, for the sentence of a failure.
        rolls_back: keep copies of a hybrid model's state, so that tokens can be taken back.
        n_sequences: texts at once, each of `settings.n_ctx` tokens.
        pooled: their cells come from one pool, so that a pass may hold any mixture of them; without it each has a
            cache of its own, and the engine's attention does not go over the cells of the others.
        head_of: the context of a target, of which this is the draft head's: of the layer behind the target's, or of a
            file that reads the target's cache.

    Raises:
        LoadError: its memory could not be had.
    """
    params = api.llama_context_default_params()
    params.n_ctx = n_sequences * settings.n_ctx
    params.n_batch = params.n_ubatch = max(settings.n_ubatch, n_outputs)
    params.n_seq_max = n_sequences
    params.kv_unified = pooled
    params.n_outputs_max = n_outputs
    params.n_threads = params.n_threads_batch = settings.n_threads
    params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.type_k = params.type_v = TYPE_IDS[settings.kv.upper()]
    params.pooling_type = api.LLAMA_POOLING_TYPE_NONE  # a header's would take the place of each token's state
    params.no_perf = True
    # A sliding window keeps n_ubatch spare cells, more than one rejected draft ever needs.
    params.swa_full = False
    params.op_offload = False  # a layer is computed where it lies: else its weights are copied for every wide pass
    params.n_rs_seq = max(n_outputs, settings.n_rs_seq) if rolls_back else 0
    if head_of is not None:
        params.ctx_type, params.ctx_other = api.LLAMA_CONTEXT_TYPE_MTP, head_of
    listen()
    context = api.llama_init_from_model(model, params)
    if not context:
        size = f"{settings.n_ctx:,} tokens" if n_sequences == 1 else f"{n_sequences} x {settings.n_ctx:,} tokens"
        raise failure(f"{name}: no context of {size} could be made: {reason()}; try a smaller --ctx or --kv q8_0")
    return context
