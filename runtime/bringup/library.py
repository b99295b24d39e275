"""What the installed llama.cpp is, told by a child that loads it: version, layout of its structures, kernels, buffers.

A library that is broken, or built for another processor, ends the child and not the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from edgellm.memory.children import Send, answers, serve

_MODULE = "edgellm.runtime.bringup.library"


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

    from edgellm.runtime.backends.llama_library import misfits

    wrong = misfits(api)
    send({"version": llama_cpp.__version__, "structures": wrong})
    if wrong:
        return
    from edgellm.runtime.backends import llama_process
    from edgellm.runtime.bringup import extra_buffers

    report = llama_process.kernels()
    send({"kernels": asdict(report), "extra_buffers": asdict(extra_buffers.verdict())})
    send({"built": api.llama_print_system_info().decode("utf-8", "replace"), "offloads": llama_process.offloads()})


if __name__ == "__main__":
    serve(_facts, ImportError, OSError)
