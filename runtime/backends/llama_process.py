"""llama.cpp as this process has it: started once, heard, with our kernels installed."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Sequence

from llama_cpp import __version__ as _version
from llama_cpp import llama_cpp as api

from edgellm.memory.children import REPORT, without_folder
from edgellm.memory.placement import Accelerator
from edgellm.runtime.backends import llama_devices, llama_library, llama_log, llama_rpc
from edgellm.runtime.backends.base import LoadError, OutOfMemory
from edgellm.runtime.bringup import extra_buffers
from edgellm.runtime.kernels import KernelReport, install

_SHORT_OF_MEMORY = "not enough memory"
_WHERE = re.compile(r"^(\w+: )?(error loading model( [a-z]+)?: )*")  # before the words that say why

log = logging.getLogger("edgellm.llama_cpp")
_recent: deque[str] = deque(maxlen=20)  # errors, for the sentence that explains a failed load
one_pass = threading.Lock()  # held in each pass: the kernels are told of one at a time, and passes share the cores
_aborting = threading.Lock()
_kernels: KernelReport | None = None  # None: not started


def _on_text(level: int, text: str) -> None:
    line = text.rstrip("\n")
    if not line.strip("."):
        return
    if level == llama_log.ERROR:
        _recent.append(line)
    log.debug(line)


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


def kernels() -> KernelReport:
    """Which kernels multiply, and why; starts the library before the first model is loaded.

    Raises:
        LoadError: the library does not fit its bindings or this processor.
    """
    global _kernels
    if _kernels is None:
        if unfit := llama_library.unfit(api):
            raise LoadError(unfit)
        llama_log.start(_on_text)
        api._lib.ggml_set_abort_callback(_on_abort)
        # They offer themselves to every model that is loaded from here on.
        _kernels = install(alone=not extra_buffers.verdict().usable)
    return _kernels


def listen() -> None:
    """Hear what the engine says from here on, and forget its errors so far."""
    llama_log.listen(_on_text)
    _recent.clear()


def has_extra_buffers() -> bool:
    """Whether weights may go to a buffer type that rearranges them: that of our kernels, or the engine's that work."""
    return kernels().active or extra_buffers.verdict().usable


def offloads() -> bool:
    """Whether this build can put layers on a GPU."""
    return bool(api.llama_supports_gpu_offload())


def accelerators(workers: Sequence[str] = ()) -> list[Accelerator]:
    """The devices beside the processor that this build can compute on, with those of `workers` (HOST:PORT).

    Raises:
        LoadError: this build knows no workers.
        BadAddress, WorkerError: one of them is not there, or cannot be used.
    """
    kernels()
    llama_rpc.add_workers(api, tuple(workers))
    wanted = llama_devices.accelerators(api) if workers or offloads() else []
    return [each for each in wanted if each.kind != "worker" or each.name in workers]


def engine_name() -> str:
    """Whose reading of a vocabulary this is."""
    return f"llama-cpp-python {_version}"


def failure(sentence: str) -> LoadError:
    return OutOfMemory(sentence) if _SHORT_OF_MEMORY in sentence else LoadError(sentence)


def reason() -> str:
    """The engine's own words for its last failure, in one line."""
    lines = [_WHERE.sub("", line) for line in _recent]
    words = [line for line in lines if line and "failed to load model" not in line]
    if not words:
        return "the engine gave no reason (run with --verbose)"
    why = words[0]
    if "unknown model architecture" in why:
        why += "; this engine does not know it, pull another model"
    elif "alloc" in why.lower():
        why += f"; {_SHORT_OF_MEMORY}"
    return why
