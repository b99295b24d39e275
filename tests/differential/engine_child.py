"""llama.cpp over many small files in one process: `python -m engine_child`. Where it dies, the one at hand did it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

from edgellm.export.convert.engine_jobs import EngineJobError, Event
from edgellm.export.convert.engine_program import Model
from edgellm.memory.children import Send, serve


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(level: int, text: bytes, data: object) -> None:
    pass


def logits(job: Event, send: Send) -> None:
    """For each folder the logits of tokens.npy, as many as the file's context has, into found.npy."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    for name in job["folders"]:
        folder = Path(name)
        tokens = np.load(folder / "tokens.npy").tolist()
        try:
            model = Model(str(folder / "model.gguf"), llama_cpp, n_ctx=max(len(tokens), 64))
            n_context = llama_cpp.llama_model_n_ctx_train(model._model)
            rows = [piece.copy() for piece in model.forward(tokens[:n_context], 0)]
            np.save(folder / "found.npy", np.concatenate(rows))
            llama_cpp.llama_free(model._context)
            llama_cpp.llama_model_free(model._model)
            send({"done": name})
        except EngineJobError as error:
            send({"done": name, "failed": str(error)})


if __name__ == "__main__":
    serve(logits, EngineJobError)
