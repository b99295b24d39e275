"""Whether the llama.cpp that is installed fits its Python bindings and this processor: asked before it computes.

A library from elsewhere, a wheel of another release or one compiled for another machine, would read structures that are
laid out otherwise, or end the process with SIGILL in the middle of a pass.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any

from edgellm.memory.cpu import cpu_flags
from edgellm.memory.ggml import Ggml

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
# Instruction sets that llama.cpp may have been compiled for, as Linux names them. AMX is tried (`extra_buffers`).
_INSTRUCTIONS = {
    "sse3": "pni",
    "avx": "avx",
    "avx2": "avx2",
    "f16c": "f16c",
    "fma": "fma",
    "bmi2": "bmi2",
    "avx_vnni": "avx_vnni",
    "avx512": "avx512f",
    "avx512_vbmi": "avx512vbmi",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "dotprod": "asimddp",
    "matmul_int8": "i8mm",
    "sve": "sve",
}
REMEDY = "`pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python==0.3.36` compiles it here"


def unfit(api: Any) -> str | None:
    """One sentence on what does not fit, with the remedy; None where all does."""
    found = misfits(api)
    return f"the installed llama.cpp cannot be used: {'; '.join(found)}. {REMEDY}" if found else None


def misfits(api: Any) -> list[str]:
    """All that does not fit, a sentence each."""
    return structures(api) + missing_instructions(api)


def missing_instructions(api: Any, flags: str | None = None) -> list[str]:
    """What the library was compiled for and this processor does not have; nothing where the system lists none.

    Args:
        flags: as Linux lists them; None for those of this machine.
    """
    here = set((cpu_flags() if flags is None else flags).split())
    wanted = [
        name
        for name, flag in _INSTRUCTIONS.items()
        if here and flag not in here and (asked := getattr(api._lib, f"ggml_cpu_has_{name}", None)) and asked()
    ]
    return [f"it was compiled for processors with {', '.join(wanted)}, which this one has not"] if wanted else []


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
