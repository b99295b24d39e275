"""llama.cpp's converter at work, and transformers as the witness of what it made: jobs in an environment of their own.

Who asks for a conversion names a `Converter`: a script and a Python that has what it imports.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.export.check.reference import NoReference
from edgellm.export.convert.conversion import Conversion
from edgellm.export.convert.llama_cpp_converter import PACKAGE, SHA256
from edgellm.export.environments import ExporterError, packages_of, run_job
from edgellm.export.obtain.source import ModelSource, fingerprint
from edgellm.export.read.checkpoint import CheckpointError
from edgellm.export.read.facts import UnsupportedModel, read_document, text_settings
from edgellm.export.read.json_file import read_json
from edgellm.export.read.tokenizer_config import named_ends
from edgellm.memory.cpu import usable_cores
from edgellm.memory.files import settle, sha256_of

_JOB = "convert/converter_job.py"
_LEAST, _MOST = 64, 640  # tokens that are compared: beyond the window, where that is not too far


@dataclass(frozen=True, slots=True)
class Converter:
    """A script of llama.cpp, and the Python that runs it."""

    script: Path
    python: Path
    is_pinned: bool  # of the release that the engine is built from
    packages: Mapping[str, str]  # name -> version, of those that the script imports

    @property
    def version(self) -> str:
        """In one line, to compare exports by."""
        return f"{self.facts()['sha256'][:16]} {fingerprint(self.facts())}"

    def facts(self) -> dict[str, Any]:
        """What the bytes depend on, for the manifest."""
        told = {"package": "==".join(PACKAGE), "sha256": SHA256}
        if not self.is_pinned:
            told = {"script": self.script.name, "sha256": sha256_of(self.script)}
        return {**told, "environment": dict(self.packages)}


def packages_in(python: Path) -> dict[str, str]:
    """Which of the packages that the script imports a Python has, and in which version.

    Raises:
        ExporterError: it is no Python.
    """
    job = {"job": "packages", "names": list(packages_of("llama_cpp"))}
    with tempfile.TemporaryDirectory() as scratch:
        found = run_job(python, job, f"asking {python}", log=Path(scratch) / "log", program=_JOB)
    return {str(name): str(version) for name, version in found["packages"].items()}


def convert(
    converter: Converter,
    found: Conversion,
    source: ModelSource,
    path: Path,
    *,
    float_type: str,
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
    what = f"converting {source.name} with llama.cpp's script"

    def tell(event: Mapping[str, Any]) -> None:
        if on_progress is not None and event["event"] == "written":
            on_progress(event["n_bytes"], event["n_all_bytes"])

    try:
        with _bare(source, path.parent) as folder:
            job = {
                "job": "convert",
                "script": str(converter.script.resolve()),
                "source": str(folder.resolve()),
                "output": str(aside.resolve()),
                "type": float_type.lower(),
                "name": _plain(source.name),
                "pre_tokenizer": found.pre_tokenizer,
                "window": found.window,
                "slides": found.slides,
                "ends": named_ends(source.path),
            }
            run_job(converter.python, job, what, log=log, program=_JOB, on_event=tell)
        if not aside.is_file():
            raise ExporterError(f"{what} failed: it left no file")
        settle(aside, path)
    finally:
        for left in (aside, log):
            left.unlink(missing_ok=True)


@contextmanager
def _bare(source: ModelSource, beside: Path) -> Iterator[Path]:
    """A folder with the model's own files and nothing else, no code, under the model's name.

    What the script says of a model hangs on its folder's name, and on all that lies in it.
    """
    with tempfile.TemporaryDirectory(dir=beside, prefix=".convert.", suffix=".part") as scratch:
        folder = Path(scratch) / (_plain(source.name).replace(os.sep, "-").strip(".") or "model")
        folder.mkdir()
        for path in source.files():
            _link(path.resolve(), folder / path.name)
        yield folder


def _link(path: Path, link: Path) -> None:
    try:
        link.symlink_to(path)
    except OSError:  # Windows reserves links for some users
        shutil.copyfile(path, link)


def _plain(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # a folder's name may be no text


def refuse_tokenizer_code(converter: Converter, folder: Path) -> None:
    """Try a tokenizer that names code of its own before any weights are there: transformers may have its class, or not.

    Raises:
        UnsupportedModel: it needs the code.
    """
    path = folder / "tokenizer_config.json"
    if not path.exists() or not read_json(path).get("auto_map"):
        return
    source = ModelSource(folder.resolve().name, folder)
    with tempfile.TemporaryDirectory() as scratch, _bare(source, Path(scratch)) as bare:
        job = {"job": "tokenizer", "source": str(bare.resolve())}
        try:
            run_job(converter.python, job, f"the tokenizer of {folder}", log=Path(scratch) / "log", program=_JOB)
        except ExporterError as error:
            raise UnsupportedModel(str(error)) from error


def n_compared(folder: Path) -> int:
    """How many tokens tell whether a model is itself: more than its layers look back on, where that is in reach."""
    told = text_settings(read_document(folder))
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
    source = ModelSource(folder.resolve().name, folder)
    with tempfile.TemporaryDirectory() as scratch, _bare(source, Path(scratch)) as bare:
        out = Path(scratch) / "logits.npy"
        job = {"job": "logits", "source": str(bare.resolve()), "tokens": list(tokens), "output": str(out)}
        try:
            run_job(
                python, {**job, "n_threads": usable_cores()}, "transformers", log=Path(scratch) / "log", program=_JOB
            )
            rows: NDArray[np.float32] = np.load(out, allow_pickle=False)
        except (ExporterError, CheckpointError) as error:
            raise NoReference(str(error)) from error
        return rows
