"""Finds the compiled kernels, asks the CPU, and puts them under llama.cpp: or says in one sentence why not."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_ENDINGS = {"win32": "dll", "darwin": "dylib"}
_PROBLEM_BYTES = 512


@dataclass(frozen=True, slots=True)
class KernelReport:
    """Which kernels multiply, and why."""

    variant: str  # "stock": llama.cpp's own
    reason: str
    active: bool


@cache
def install(*, alone: bool = False) -> KernelReport:
    """Put the kernels under llama.cpp; call before the first model is loaded. Never raises, and works once a process.

    `alone`: take the engine's own extra buffer types off its list, for machines where they do not work.

    `EDGELLM_KERNELS` may be `off`, `auto` (the default: the best variant for this CPU) or a variant's name. What cannot
    be used leaves llama.cpp as it is, with one warning unless it was switched off.
    """
    wanted = os.environ.get("EDGELLM_KERNELS", "").strip().lower() or "auto"
    if wanted in ("off", "stock"):
        return KernelReport("stock", "EDGELLM_KERNELS=off", False)
    try:
        variant, problem = _install(wanted, alone)
    except Exception as error:  # whatever a foreign library does, stock kernels still work
        variant, problem = wanted, f"{type(error).__name__}: {error}"
    if problem:
        warnings.warn(f"using llama.cpp's own kernels: {problem}", RuntimeWarning, stacklevel=2)
        return KernelReport("stock", problem, False)
    chosen = "the best for this CPU" if wanted == "auto" else f"EDGELLM_KERNELS={wanted}"
    return KernelReport(variant, chosen, True)


def _install(wanted: str, alone: bool) -> tuple[str, str]:
    """The variant, and what stands in its way ("" when nothing does)."""
    library = compiled()
    if library is None:
        return wanted, "the kernels were not compiled when edgellm was installed; reinstall it where a C++ compiler is"
    usable = variants()
    if wanted == "auto":
        wanted = next((name for name in usable if name != "generic"), "")
        if not wanted:
            return wanted, "this CPU has none of the instruction sets that the kernels are written for"
    if wanted not in usable:
        return wanted, f"EDGELLM_KERNELS={wanted} does not run here; choose one of off, auto, {', '.join(usable)}"
    base, cpu = engine_library("ggml-base"), engine_library("ggml-cpu")
    if base is None or cpu is None:
        return wanted, "llama.cpp's libraries were not found where llama-cpp-python keeps them"
    problem = ctypes.create_string_buffer(_PROBLEM_BYTES)
    library.edgellm_plug_in(wanted.encode(), os.fsencode(base), os.fsencode(cpu), alone, problem, _PROBLEM_BYTES)
    return wanted, problem.value.decode(errors="replace")


def lend_memory() -> bool:
    """Pack what other machines write into this one's memory as well; False where the kernels are not in place."""
    library = compiled()
    return library is not None and bool(library.edgellm_lend_memory())


@cache
def compiled() -> ctypes.CDLL | None:
    """The compiled kernels, None when the package was installed without a compiler."""
    path = Path(__file__).with_name(f"_kernels.{_ENDINGS.get(sys.platform, 'so')}")
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    c_int, c_i64, c_text, c_pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "edgellm_variant": (c_text, [c_int]),
        "edgellm_variant_runs_here": (c_int, [c_int]),
        "edgellm_feature": (c_text, [c_int]),
        "edgellm_has_feature": (c_int, [c_int]),
        "edgellm_type": (c_text, [c_int]),
        "edgellm_plug_in": (None, [c_text, c_text, c_text, c_int, c_text, c_int]),
        "edgellm_lend_memory": (c_int, []),
        "edgellm_pass": (c_int, [c_pointer, c_pointer, c_pointer, c_pointer, c_int, c_text, c_int]),
        "edgellm_sequences_new": (c_pointer, []),
        "edgellm_sequences_free": (None, [c_pointer]),
        "edgellm_sequences_tell": (None, [c_pointer, c_i64, c_pointer, c_pointer]),
        "edgellm_sequences_copy": (None, [c_pointer, c_int, c_int, c_i64]),
        "edgellm_sequences_restore": (None, [c_pointer, c_int, c_i64, c_i64, c_pointer]),
        "edgellm_sequences_end_restore": (c_int, [c_pointer]),
        "edgellm_packed_bytes": (c_i64, [c_int, c_i64, c_i64]),
        "edgellm_pack": (None, [c_int, c_pointer, c_i64, c_i64, c_pointer, c_int]),
        "edgellm_matmul": (
            ctypes.c_double,
            [c_text, c_int, c_pointer, c_i64, c_i64, c_i64, c_pointer, c_i64, c_pointer, c_int, c_int],
        ),
        "edgellm_attend": (
            ctypes.c_double,
            [c_text, c_int, *[c_pointer] * 4, *[c_i64] * 5, ctypes.c_float, c_pointer, c_int, c_int, c_pointer],
        ),
        "edgellm_thin": (
            ctypes.c_double,
            [c_text, c_int, c_pointer, c_i64, c_i64, c_pointer, c_i64, c_pointer, c_int, c_int],
        ),
        "edgellm_peak": (ctypes.c_double, [c_text, c_int, ctypes.c_double]),
        "edgellm_bandwidth": (ctypes.c_double, [c_text, c_i64, c_int, c_int]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name, None)
        if function is None:  # left over from another version
            return None
        function.restype, function.argtypes = result, arguments
    return library


@cache
def variants() -> tuple[str, ...]:
    """The variants that run on this CPU, the best first; `generic`, the slow definition of them all, last."""
    library = compiled()
    names: list[str] = []
    i = 0
    while library is not None and (name := library.edgellm_variant(i)) is not None:
        if library.edgellm_variant_runs_here(i):
            names.append(name.decode())
        i += 1
    return tuple(names)


@cache
def features() -> tuple[str, ...]:
    """The instruction sets of this CPU that the kernels know, as its system can use them."""
    library = compiled()
    names: list[str] = []
    i = 0
    while library is not None and (name := library.edgellm_feature(i)) is not None:
        if library.edgellm_has_feature(i):
            names.append(name.decode())
        i += 1
    return tuple(names)


@cache
def weight_types() -> tuple[str, ...]:
    """The weight types that the kernels take over, as ggml names them."""
    library = compiled()
    names: list[str] = []
    while library is not None and (name := library.edgellm_type(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def engine_library(name: str) -> Path | None:
    """The file of one of llama.cpp's libraries, where llama-cpp-python loads them from: "ggml-base", "ggml-cpu"."""
    spec = importlib.util.find_spec("llama_cpp")  # located, not imported: only the backend does that
    if spec is None or not spec.origin:
        return None
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(spec.origin).parent / "lib")
    # A wheel holds copies where the build had links, and llama.cpp loads the one that the soname names: any other copy
    # would be a second library with lists of its own.
    ending = _ENDINGS.get(sys.platform, "so")
    candidates = [f"lib{name}.so.0", f"lib{name}.0.dylib", f"lib{name}.{ending}", f"{name}.dll"]
    return next((path for candidate in candidates if (path := folder / candidate).is_file()), None)
