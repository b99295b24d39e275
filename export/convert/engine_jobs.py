"""llama.cpp at work on files, each job in a process of its own: quantising, cutting text into tokens, computing logits.

A child process (`engine_program`) gives the memory back when it ends, cannot take the command down with it when the
library aborts on a damaged file, and goes when its parent goes.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.children import ChildFailed, answers
from edgellm.memory.errors import EdgellmError
from edgellm.memory.files import making
from edgellm.memory.gguf import FILE_TYPES, TYPE_IDS

QUANTS = tuple(name for name in FILE_TYPES.values() if name not in {"F32", "TQ1_0", "TQ2_0", "MXFP4"})
HEADS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16")
_FILE_TYPE_IDS = {name: number for number, name in FILE_TYPES.items()}

PROGRAM = "edgellm.export.convert.engine_program"  # runs the jobs
TIMEOUT_S = 6 * 3600.0  # a 70B model is quantised within; what takes longer hangs

Event = Mapping[str, Any]


class EngineJobError(EdgellmError, RuntimeError):
    """llama.cpp refused a file or failed on it; the message has its own words."""


def quantise(
    source: Path,
    target: Path,
    quant: str,
    *,
    imatrix: Path | None = None,
    head: str | None = None,
    requantise: bool = False,
    on_tensor: Callable[[int, int], None] | None = None,
) -> None:
    """Write `source` as `target` in the type `quant` ("Q4_K_M", ...), whole or not at all.

    Args:
        imatrix: importance matrix (a GGUF file of llama.cpp's own tool), which some types need.
        head: a key of HEADS, for the matrix that computes logits (and the embedding, which often is the same one).
        requantise: allow a source that is quantised already.
        on_tensor: called with (tensors done, tensors in all).

    Raises:
        EngineJobError: an unknown type, or llama.cpp's refusal.
    """
    for name, known in ((quant, QUANTS), (head, HEADS)):
        if name is not None and name not in known:
            raise EngineJobError(f"{name!r} is no known type: choose among {', '.join(known)}")
    job = {
        "file_type": _FILE_TYPE_IDS[quant],
        "imatrix": str(imatrix) if imatrix else None,
        "head_type": TYPE_IDS[head] if head else None,
        "requantise": requantise,
    }
    _rewrite(source, target, job, f"quantising {source.name} to {quant}", on_tensor)


def drop_layers(source: Path, target: Path, layers: Sequence[int]) -> None:
    """Write `source` without `layers`, the others renumbered and copied as they are; whole or not at all.

    Raises:
        EngineJobError: llama.cpp's refusal.
    """
    _rewrite(source, target, {"dropped_layers": list(layers)}, f"leaving layers out of {source.name}", None)


def _rewrite(
    source: Path, target: Path, options: Event, what: str, on_tensor: Callable[[int, int], None] | None
) -> None:
    with making(target) as aside:
        job = {"job": "rewrite", "source": str(source), "target": str(aside), **options}
        try:
            for event in events(job, what):
                if on_tensor is not None and "tensor" in event:
                    on_tensor(event["tensor"], event["n_tensors"])
        except EngineJobError as error:
            if re.search("iostream|no space", str(error), re.IGNORECASE):  # how llama.cpp finds the disk full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
            raise


def tokenise(path: Path, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
    """Each text as the token ids of the file's vocabulary, control tokens in the text included."""
    job = {"job": "tokenise", "path": str(path), "texts": list(texts), "add_special": add_special}
    return [event["tokens"] for event in events(job, f"reading the vocabulary of {path.name}") if "tokens" in event]


def logits(
    path: Path, tokens: Sequence[int], rows: Sequence[int] | None = None, *, lora: Path | None = None
) -> NDArray[np.float32]:
    """The model's logits behind `tokens`, shape (n_rows, n_vocab), with an adapter where one is named.

    A model with an encoder reads the tokens there, and again, one place later, in its decoder.

    Args:
        rows: positions in `tokens` whose logits are wanted, ascending. None: all of them.
    """
    wanted = list(range(len(tokens)) if rows is None else rows)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        job = {"job": "logits", "path": str(path), "tokens": list(tokens), "rows": wanted, "out": str(out)}
        for _ in events(job | ({"lora": str(lora)} if lora is not None else {}), path.name):
            pass
        found: NDArray[np.float32] = np.load(out, allow_pickle=False)
        return found


def perplexity(path: Path, text: str, *, n_ctx: int = 512, max_tokens: int = 4096) -> float:
    """exp of the mean negative log-likelihood of a token, over windows of `n_ctx`, their second halves alone."""
    job = {"job": "perplexity", "path": str(path), "text": text, "n_ctx": n_ctx, "max_tokens": max_tokens}
    return next(float(event["perplexity"]) for event in events(job, path.name) if "perplexity" in event)


def generate(path: Path, prompt: str, n_tokens: int) -> list[int]:
    """The greedy continuation of `prompt`, token by token, end of text or not."""
    job = {"job": "generate", "path": str(path), "prompt": prompt, "n_tokens": n_tokens}
    return next(list(event["tokens"]) for event in events(job, path.name) if "tokens" in event)


def version() -> str:
    """Of the pinned engine."""
    from importlib.metadata import version

    return version("llama-cpp-python")


def events(job: Event, what: str, *, module: str = PROGRAM, timeout_s: float = TIMEOUT_S) -> Iterator[Event]:
    """Run a job of `module`; the child's events as they come.

    Raises:
        EngineJobError: it failed.
    """
    try:
        yield from answers(module, job, timeout_s=timeout_s)
    except ChildFailed as error:
        raise EngineJobError(f"llama.cpp failed on {what} ({error})") from error
