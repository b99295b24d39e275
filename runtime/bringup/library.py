"""What the installed llama.cpp is, told by a child that loads it: version, layout of its structures, kernels, buffers.

A library that is broken, or built for another processor, ends the child and not the command.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from edgellm.memory.children import Send, answers, serve
from edgellm.memory.ggml import Ggml

_MODULE = "edgellm.runtime.bringup.library"
# What the pinned release says by default; values that lie elsewhere show that a structure is laid out otherwise.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama_context_default_params": {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "flash_attn_type": -1,
        "yarn_orig_ctx": 0,
        "type_k": 1,
        "type_v": 1,
        "offload_kqv": True,
        "no_perf": True,
        "swa_full": True,
        "kv_unified": False,
    },
    "llama_model_default_params": {
        "n_gpu_layers": -1,
        "main_gpu": 0,
        "vocab_only": False,
        "use_extra_bufts": True,
        "no_alloc": False,
    },
    "llama_model_quantize_default_params": {},
}


def examine(*, timeout_s: float = 120.0) -> dict[str, Any]:
    """Facts of the library: `version`, `built` (its own words on instruction sets), `structures` (a sentence on each
    that is not as the bindings have it), `kernels`, `extra_buffers`, `offloads`.

    Raises:
        ChildFailed: it cannot be loaded; the message says how that ended.
    """
    facts: dict[str, Any] = {}
    for answer in answers(_MODULE, {}, timeout_s=timeout_s):
        facts |= answer
    return facts


# ---- the child -------------------------------------------------------------------------------------------------------


def _facts(_: Mapping[str, Any], send: Send) -> None:
    import llama_cpp
    from llama_cpp import llama_cpp as api

    send({"version": llama_cpp.__version__, "structures": structures(api)})
    from edgellm.runtime.backends import llama_process
    from edgellm.runtime.bringup import extra_buffers

    report = llama_process.kernels()
    send({"kernels": asdict(report), "extra_buffers": asdict(extra_buffers.verdict())})
    send({"built": api.llama_print_system_info().decode("utf-8", "replace"), "offloads": llama_process.offloads()})


def structures(api: Any) -> list[str]:
    """Where the bindings and the library disagree about a structure, a sentence each."""
    found = []
    for name, wanted in _DEFAULTS.items():
        values = getattr(api, name)()
        wrong = [key for key, value in wanted.items() if getattr(values, key, None) != value]
        if wrong:
            found.append(f"{type(values).__name__}: the library's own defaults read wrong at {', '.join(wrong)}")
        n_bytes, n_written = ctypes.sizeof(values), _written_bytes(api, name)
        # The end may be padding, which nobody writes.
        if n_written is not None and not n_bytes - 8 < n_written <= n_bytes:
            found.append(f"{type(values).__name__}: {n_bytes} bytes in the bindings, {n_written} in the library")
    if wrong_tensor := Ggml(api._lib).misread():
        found.append(wrong_tensor)
    return found


def _written_bytes(api: Any, name: str) -> int | None:
    """How many bytes a function that returns a structure writes; None where that cannot be watched.

    By the calling convention of x86-64 such a function is handed the place to write to as a first, hidden argument.
    """
    if sys.platform == "win32" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    room = 4096
    write = ctypes.CDLL(api._lib._name)[name]
    write.restype, write.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    seen = []
    for fill in (b"\x00", b"\xff"):
        place = ctypes.create_string_buffer(fill * room, room)
        write(place)
        seen.append(place.raw)
    return max((i + 1 for i in range(room) if seen[0][i] == seen[1][i]), default=0)


if __name__ == "__main__":
    serve(_facts, ImportError, OSError)
