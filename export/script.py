"""llama.cpp's converter at work, and transformers as the witness of what it made: jobs in an environment of their own.

Who asks for a conversion names a `Converter`: a script and a Python that has what it imports.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.export.checkpoint import CheckpointError
from edgellm.export.conversion import Conversion
from edgellm.export.environments import ExporterError, packages_of, run_job
from edgellm.export.facts import read_document
from edgellm.export.llama_cpp_converter import PACKAGE, SHA256
from edgellm.export.reference import NoReference
from edgellm.export.source import fingerprint, sha256_of
from edgellm.export.tokenizer import named_ends
from edgellm.memory.cpu import usable_cores
from edgellm.memory.files import settle

_JOB = "converter_job.py"
_LEAST, _MOST = 64, 640  # tokens that are compared: beyond the window, where that is not too far


@dataclass(frozen=True, slots=True)
class Converter:
    """A script of llama.cpp, and the Python that runs it."""

    script: Path
    python: Path
    is_pinned: bool  # of the release that the engine is built from, with the packages that are pinned for it

    @property
    def version(self) -> str:
        """In one line, to compare exports by."""
        return f"{self.facts()['sha256'][:16]} {fingerprint(self.facts())}"

    def facts(self) -> dict[str, Any]:
        """What the bytes depend on, for the manifest."""
        if not self.is_pinned:
            return {"script": self.script.name, "sha256": sha256_of(self.script)}
        return {"package": "==".join(PACKAGE), "sha256": SHA256, "environment": packages_of("llama_cpp")}


def convert(
    converter: Converter,
    found: Conversion,
    folder: Path,
    path: Path,
    *,
    float_type: str,
    name: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the model of a Hub folder as `path`, whole or not at all.

    Args:
        on_progress: called with (bytes written, bytes in all).

    Raises:
        ExporterError: the script failed; the message has its reason.
        OSError: this machine's disk.
    """
    # The script fills in braces in a file's name.
    aside = path.with_name(f".convert.{os.getpid()}.part")
    log = path.with_name(f".convert.{os.getpid()}.log.part")
    job = {
        "job": "convert",
        "script": str(converter.script.resolve()),
        "source": str(folder.resolve()),
        "output": str(aside.resolve()),
        "type": float_type.lower(),
        "name": name.encode("utf-8", "replace").decode(),
        "pre_tokenizer": found.pre_tokenizer,
        "window": found.window,
        "ends": named_ends(folder),
    }

    def tell(event: Any) -> None:
        if on_progress is not None and event["event"] == "written":
            on_progress(event["n_bytes"], event["n_all_bytes"])

    try:
        run_job(
            converter.python, job, f"converting {name} with llama.cpp's script", log=log, program=_JOB, on_event=tell
        )
        if not aside.is_file():
            raise ExporterError(f"converting {name} with {converter.script.name} left no file")
        settle(aside, path)
    finally:
        for left in (aside, log):
            left.unlink(missing_ok=True)


def n_compared(folder: Path) -> int:
    """How many tokens tell whether a model is itself: more than its layers look back on, where that is in reach."""
    config = read_document(folder)
    text = config.get("text_config")
    told = {**config, **text} if isinstance(text, dict) else config
    windows = [told.get(key) for key in ("sliding_window", "attention_chunk_size")]
    reach = max((window for window in windows if isinstance(window, int) and window > 0), default=0)
    context = told.get("max_position_embeddings")
    most = min(_MOST, context) if isinstance(context, int) and context > 0 else _MOST
    return min(max(_LEAST, reach + reach // 2 + 16 if reach < _MOST else 0), most)


def transformers_logits(python: Path, folder: Path, tokens: Sequence[int]) -> NDArray[np.float32]:
    """The logits behind each of `tokens` by transformers in float32, shape (n_tokens, n_vocab).

    Args:
        python: of an environment that has torch and transformers.

    Raises:
        NoReference: transformers does not have the model, or cannot load it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.npy"
        job = {"job": "logits", "source": str(folder.resolve()), "tokens": list(tokens), "output": str(out)}
        try:
            run_job(
                python, {**job, "n_threads": usable_cores()}, "transformers", log=Path(scratch) / "log", program=_JOB
            )
            rows: NDArray[np.float32] = np.load(out, allow_pickle=False)
        except (ExporterError, CheckpointError) as error:
            raise NoReference(str(error)) from error
        return rows
