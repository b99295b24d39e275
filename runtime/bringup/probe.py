"""Ask llama.cpp what a model would take, to the byte, without reading its weights.

A `no_alloc` load sizes every buffer and allocates none. It runs in a child process, since llama.cpp answers impossible
settings with an abort.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

from edgellm.memory.buffer_sizes import BufferSizes, DeviceSizes
from edgellm.memory.children import ChildFailed, Send, answers, serve
from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import TYPE_IDS
from edgellm.memory.placement import Accelerator
from edgellm.runtime.backends.base import LoadError

_MIB = 1024 * 1024
_MODULE = "edgellm.runtime.bringup.probe"


def probe(
    model: Path,
    settings: Sequence[ContextSettings],
    *,
    repack: bool = False,
    timeout_s: float = 120.0,
) -> list[BufferSizes]:
    """Sizes of `model` under each of `settings`, in order. About a second, most of it the vocabulary.

    Args:
        settings: they place the same layers on the same devices.

    Raises:
        LoadError: llama.cpp refuses the model or one of the settings; the message has its own words.
    """
    request = {
        "model": str(model),
        "settings": [asdict(item) for item in settings],
        "repack": repack,
    }
    try:
        found = [answer["probed"] for answer in answers(_MODULE, request, timeout_s=timeout_s)]
    except ChildFailed as error:
        raise LoadError(f"llama.cpp cannot size {model.name}: {error}") from error
    return [BufferSizes(**{**each, "devices": tuple(DeviceSizes(*it) for it in each["devices"])}) for each in found]


def accelerators(*, timeout_s: float = 30.0) -> list[Accelerator]:
    """The GPUs that the installed llama.cpp sees; none where it was built for the CPU alone.

    Raises:
        LoadError: looking for them failed.
    """
    try:
        return [Accelerator(**answer["accelerator"]) for answer in answers(_MODULE, {}, timeout_s=timeout_s)]
    except ChildFailed as error:
        raise LoadError(f"llama.cpp could not look for GPUs: {error}") from error


# ---- the child -------------------------------------------------------------------------------------------------------


class _MapHeader(ctypes.Structure):
    """libstdc++'s std::map: comparator, then the header node of a red-black tree, then the count."""

    _fields_ = (
        ("compare", ctypes.c_size_t),
        ("colour", ctypes.c_size_t),
        ("root", ctypes.c_void_p),
        ("leftmost", ctypes.c_void_p),
        ("rightmost", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
    )


class _MapNode(ctypes.Structure):
    """A node of it: links, then the buffer type and llama.cpp's three sizes."""

    _fields_ = (
        ("colour", ctypes.c_size_t),
        ("parent", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("buffer_type", ctypes.c_void_p),
        ("model", ctypes.c_size_t),
        ("context", ctypes.c_size_t),
        ("compute", ctypes.c_size_t),
    )


_LOGGED = {  # the same sizes as llama.cpp prints them, MiB with two decimals
    "kv": re.compile(r"size = +([\d.]+) MiB \( *\d+ cells"),
    "state": re.compile(r"size = +([\d.]+) MiB \( *\d+ cells, *\d+ layers, *\d+ seqs *\d+ rs_seq"),
    "compute": re.compile(r"compute buffer size = +([\d.]+) MiB"),
}


def _sizing(request: Mapping[str, Any], send: Send) -> None:
    """Buffer sizes of a model under several settings, or, without a model, the accelerators."""
    import llama_cpp.llama_cpp as lib

    from edgellm.runtime.backends import llama_devices, llama_log

    log: list[str] = []
    llama_log.start(lambda level, text: log.append(("error: " if level == llama_log.ERROR else "") + text))
    if "model" not in request:
        for accelerator in llama_devices.accelerators(lib):
            send({"accelerator": asdict(accelerator)})
        return
    parameters = lib.llama_model_default_params()
    parameters.no_alloc = True
    parameters.load_mode = 0  # LLAMA_LOAD_MODE_NONE: nothing is mapped or read
    parameters.use_extra_bufts = request["repack"]
    pointed_to = llama_devices.place(lib, parameters, ContextSettings(**request["settings"][0]).placed)
    model = lib.llama_model_load_from_file(os.fsencode(request["model"]), parameters)
    del pointed_to
    if not model:
        raise LoadError(_reason(log, "the model does not load"))
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    for item in request["settings"]:
        settings = ContextSettings(**item)
        if lib.llama_model_has_encoder(model):  # it reads all at once, and reserves a row of logits for each token
            settings = replace(settings, n_ubatch=settings.n_ctx, n_outputs=settings.n_ctx)
        del log[:]
        context = lib.llama_init_from_model(model, _context_parameters(lib, settings))
        if not context:
            raise LoadError(_reason(log, f"it refuses {settings}"))
        n_row = n_vocab + (2 * lib.llama_model_n_embd(model) if lib.llama_model_has_encoder(model) else 0)
        output_bytes = settings.n_outputs * n_row * 4
        sizes = _sizes(lib, context, log, lib.llama_model_size(model), output_bytes)
        send({"probed": {**asdict(sizes), "devices": [astuple(each) for each in sizes.devices]}})
        lib.llama_free(context)


def _context_parameters(lib: Any, settings: ContextSettings) -> Any:
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = settings.n_ctx * settings.n_sequences
    parameters.n_seq_max = settings.n_sequences
    parameters.kv_unified = settings.n_sequences > 1
    parameters.n_batch = parameters.n_ubatch = settings.n_ubatch
    parameters.n_outputs_max = settings.n_outputs
    parameters.n_rs_seq = settings.n_rs_seq
    parameters.n_threads = parameters.n_threads_batch = settings.n_threads
    parameters.flash_attn_type = 1
    parameters.swa_full = False
    parameters.op_offload = False
    parameters.type_k = parameters.type_v = TYPE_IDS[settings.kv.upper()]
    return parameters


def _sizes(lib: Any, context: Any, log: Sequence[str], model_bytes: int, output_bytes: int) -> BufferSizes:
    logged = {
        name: sum(float(match.group(1)) for line in log if (match := pattern.search(line))) * _MIB
        for name, pattern in _LOGGED.items()
    }
    state = int(logged["state"]) // (1 + lib.llama_n_rs_seq(context))
    parts = _breakdown(lib, context)
    if parts is not None:
        kv = sum(size for _, _, size, _ in parts)
        compute = sum(size for _, _, _, size in parts)
        # Both readings must tell the same story, else the layout is not what we take it for.
        if abs(kv - logged["kv"]) < 0.1 * _MIB and abs(compute - logged["compute"]) < 0.1 * _MIB:
            here = [part for part in parts if part[0].startswith("CPU") or part[0].endswith("_Host")]
            apart = tuple(DeviceSizes(*part) for part in parts if part not in here)
            weights, kv, compute = (sum(part[i] for _, *part in here) for i in range(3))
            repacked = sum(size for name, size, _, _ in parts if "REPACK" in name)
            return BufferSizes(weights, repacked, kv, compute, output_bytes, state, True, apart)
    return BufferSizes(model_bytes, 0, int(logged["kv"]), int(logged["compute"]), output_bytes, state, exact=False)


def _breakdown(lib: Any, context: Any) -> list[tuple[str, int, int, int]] | None:
    """(buffer type, weights, cache, compute) in bytes, from a C++ function that libllama exports; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = lib._lib._Z26llama_get_memory_breakdownPK13llama_context
        name_of = _ggml(lib, "ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)
    except AttributeError:
        return None
    function.restype, function.argtypes = _MapHeader, [ctypes.c_void_p]
    header = function(context)
    parts: list[tuple[str, int, int, int]] = []
    waiting = [header.root]
    while waiting:
        address = waiting.pop()
        if address is None:
            continue
        node = _MapNode.from_address(address)
        parts.append((name_of(node.buffer_type).decode(), node.model, node.context, node.compute))
        waiting += [node.left, node.right]
    return parts if len(parts) == header.count else None


def _ggml(lib: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml, whose libraries libllama has loaded."""
    function = getattr(lib._lib, name)  # dlsym looks in the dependencies too
    function.restype, function.argtypes = result, list(arguments)
    return function


def _reason(log: Sequence[str], otherwise: str) -> str:
    """llama.cpp's first complaint."""
    complaints = [line[len("error: ") :].strip() for line in log if line.startswith("error: ")]
    return complaints[0] if complaints else otherwise


if __name__ == "__main__":
    serve(_sizing, LoadError)
