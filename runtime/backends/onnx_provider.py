"""Where onnxruntime runs a decoder: on a provider that takes the whole graph, or on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.runtime.backends.base import LoadError

PROVIDER_VARIABLE = "EDGELLM_ONNX_PROVIDER"

# Providers that run the whole graph, best first -> what their memory is called.
_WHOLE = {
    "CUDAExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
    "WebGpuExecutionProvider": "webgpu",
}
_PARTIAL = ("CoreMLExecutionProvider", "QNNExecutionProvider", "XnnpackExecutionProvider", "NnapiExecutionProvider")
CPU = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class Provider:
    """Where a session runs, and why in a sentence."""

    name: str
    device: str  # of the cache
    reason: str


def choose_provider(available: Sequence[str], *, cpu_only: bool = False, wanted: str | None = None) -> Provider:
    """The execution provider for a decoder.

    Args:
        wanted: a provider's name or the head of it ("cuda", "CoreML"), in any case.

    Raises:
        LoadError: the wanted one is not in this build of onnxruntime.
    """
    if wanted:
        for name in available:
            if name.casefold().startswith(wanted.casefold().removesuffix("executionprovider")):
                return Provider(name, _WHOLE.get(name, "cpu"), f"{_short(name)} was asked for ({PROVIDER_VARIABLE})")
        have = ", ".join(map(_short, available))
        raise LoadError(f"{PROVIDER_VARIABLE}={wanted}: this build of onnxruntime has {have}; install another package")
    partial = [_short(name) for name in available if name in _PARTIAL]
    aside = (
        f"; {' and '.join(partial)} would run parts of the graph and hand the rest and the cache to and fro"
        if partial
        else ""
    )
    if cpu_only:
        return Provider(CPU, "cpu", "CPU, since no layer may go to a GPU")
    for name, device in _WHOLE.items():
        if name in available:
            return Provider(name, device, f"{_short(name)}, which runs the whole graph and keeps the cache{aside}")
    return Provider(CPU, "cpu", f"CPU, since no other provider of this onnxruntime runs the whole graph{aside}")


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")
