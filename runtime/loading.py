"""Which engine runs a model: a GGUF file is llama.cpp's, an ONNX folder onnxruntime's; nothing above can tell."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.backends.llama_cpp import ContextOptions, LlamaBackend, LlamaModel, ModelOptions, kernels

if TYPE_CHECKING:
    from edgellm.runtime.backends.onnx import OnnxBackend, OnnxModel

Model: TypeAlias = "LlamaModel | OnnxModel"


def is_onnx(path: Path) -> bool:
    """Whether the path is meant for onnxruntime: a graph, or a folder with one."""
    return path.suffix == ".onnx" or path.is_dir()


def open_model(path: Path, options: ModelOptions) -> Model:
    """Weights and vocabulary of a model.

    Raises:
        LoadError: the model cannot be loaded, or its engine is not installed.
    """
    if not is_onnx(path):
        return LlamaModel(path, options)
    try:
        from edgellm.runtime.backends.onnx import OnnxModel
    except ImportError as error:
        raise LoadError(
            f"{path.name} is an ONNX model, and {error.name} is not installed: pip install 'edgellm[onnx]'"
        ) from error
    return OnnxModel(path, cpu_only=options.n_gpu_layers == 0)


def open_context(
    model: Model, options: ContextOptions, stop_asked: threading.Event, *, padded: bool
) -> LlamaBackend | OnnxBackend:
    """A sequence on the model.

    Args:
        options: what does not apply to an ONNX graph (the cache's type, rolled-back states) is passed over there.
        padded: on onnxruntime, run single tokens as two, which makes results independent of how many are run at once.

    Raises:
        LoadError: the context's memory could not be had.
    """
    if isinstance(model, LlamaModel):
        return LlamaBackend(model, options, stop_asked=stop_asked)
    from edgellm.runtime.backends.onnx import OnnxBackend, SessionOptions

    own = SessionOptions(options.n_ctx, options.max_keep, options.n_ubatch, options.n_threads, padded)
    return OnnxBackend(model, own, stop_asked=stop_asked)


def is_exact_anyway(model: Model) -> bool:
    """Whether passes of all widths agree bit for bit without being asked to."""
    return not isinstance(model, LlamaModel) or kernels().active
