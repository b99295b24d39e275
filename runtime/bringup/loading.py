"""Which engine runs a model: a GGUF file is llama.cpp's, an ONNX folder onnxruntime's; nothing above can tell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgellm.memory.context import ContextSettings
from edgellm.memory.onnx_graph import is_onnx
from edgellm.runtime.backends.base import LoadError, StopSignal
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_encoder import LlamaEncoderDecoder
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.text.encoder_input import EncoderInput
from edgellm.runtime.text.template import ChatTemplate, usable

if TYPE_CHECKING:
    from edgellm.runtime.backends.onnx_runtime import OnnxBackend, OnnxModel

Model: TypeAlias = "LlamaModel | OnnxModel"


def open_model(path: Path, options: ModelOptions) -> Model:
    """Weights and vocabulary of a model.

    Raises:
        LoadError: the model cannot be loaded, or its engine is not installed.
    """
    if is_onnx(path) and options.loras:
        raise LoadError(
            f"{path.name} is an ONNX model, to which no adapter is applied: run the model as GGUF, or merge the two "
            "(`edgellm export ADAPTER --base MODEL --merge`)"
        )
    if not is_onnx(path):
        return LlamaModel(path, options)
    try:
        from edgellm.runtime.backends.onnx_runtime import OnnxModel
    except ImportError as error:
        raise LoadError(
            f"{path.name} is an ONNX model, and {error.name} is not installed: pip install 'edgellm[onnx]'"
        ) from error
    return OnnxModel(path, cpu_only=options.processor_only)


def open_context(
    model: Model, settings: ContextSettings, *, pad_single: bool, stop_asked: StopSignal
) -> LlamaBackend | LlamaEncoderDecoder | OnnxBackend:
    """A sequence on the model.

    Args:
        settings: what does not apply to an ONNX graph (the cache's type, rolled-back states) is passed over there.
        pad_single: run single tokens as two, which makes results independent of how many are run at once.

    Raises:
        LoadError: the context's memory could not be had.
    """
    if isinstance(model, LlamaModel):
        kind = LlamaEncoderDecoder if model.has_encoder else LlamaBackend
        return kind(model, settings, pad_single=pad_single, stop_asked=stop_asked)
    from edgellm.runtime.backends.onnx_runtime import OnnxBackend

    return OnnxBackend(model, settings, pad_single=pad_single, stop_asked=stop_asked)


def template_of(model: Model, instead: str | None = None) -> tuple[ChatTemplate, str]:
    """How a model is asked, and why not as its file says; `instead` as of `usable`."""
    if isinstance(model, LlamaModel) and (start := model.decoder_start) is not None:
        return EncoderInput(model.vocabulary, start), ""
    return usable(model.chat_template, model.vocabulary, instead)


def needs_padding(model: Model, *, exact: bool) -> bool:
    """Whether a target runs single tokens as two. On onnxruntime it always does, which costs next to nothing there."""
    return not isinstance(model, LlamaModel) or (exact and not model.same_bits)
