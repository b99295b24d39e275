"""`edgellm imatrix` without its options and its talk: texts and a model's name to an importance matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgellm.app.export_options import BadOption
from edgellm.export import manifest
from edgellm.export.convert import imatrix
from edgellm.export.convert.imatrix import MAX_TEXT_BYTES, Made
from edgellm.export.convert.imatrix_file import BadImatrix
from edgellm.export.obtain import store
from edgellm.export.obtain.download import Progress
from edgellm.memory.split import model_name
from edgellm.memory.units import format_bytes

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Job:
    """What an importance matrix is made of: a GGUF file that is here, and all of the text."""

    model: Path
    name: str
    text: str
    datasets: list[str]  # what the texts are called
    output: Path
    n_ctx: int  # tokens of a chunk
    chunks: int | None  # the most that are read
    n_threads: int | None

    def run(self, on_chunk: Callable[[Mapping[str, Any]], None]) -> Made:
        """Make it, or go on with it; see `imatrix.make`."""
        return imatrix.make(
            self.model,
            self.name,
            self.text,
            self.output,
            datasets=self.datasets,
            n_ctx=self.n_ctx,
            chunks=self.chunks,
            n_threads=self.n_threads,
            on_chunk=on_chunk,
        )


def prepare(
    model: str,
    texts: Sequence[str],
    *,
    stdin: BinaryIO,
    progress: Progress,
    output: Path | None = None,
    n_ctx: int = 512,
    chunks: int | None = None,
    max_tokens: int | None = None,
    n_threads: int | None = None,
    offline: bool = False,
) -> Job:
    """Read the texts and bring the model here.

    Args:
        texts: paths, or "-" for `stdin`.
        chunks, max_tokens: the most that is read; the lesser of both counts.

    Raises:
        BadOption: less than a chunk is to be read, or a text is no UTF-8 or too long.
        BadImatrix: the model is none that statistics are collected of.
        BadReference, UnknownModel, NotHere, PullError: as `store.pull`.
        OSError: a text cannot be read.
    """
    most = [n for n in (chunks, max_tokens // n_ctx if max_tokens else None) if n is not None]
    if most and not min(most):
        raise BadOption(f"--max-tokens {max_tokens} is less than one chunk of {n_ctx} tokens: lower --ctx")
    text, names = _read(texts, stdin)
    name, path = _file(model, offline=offline, progress=progress)
    target = output or Path(f"{name}-imatrix.gguf")
    return Job(path, name, text, names, target, n_ctx, min(most) if most else None, n_threads)


def _read(texts: Sequence[str], stdin: BinaryIO) -> tuple[str, list[str]]:
    """All texts, and what to call them."""
    parts, names = [], []
    for text in texts:
        if text == STDIN:
            data = stdin.read(MAX_TEXT_BYTES + 1)
        else:
            with Path(text).expanduser().open("rb") as file:
                data = file.read(MAX_TEXT_BYTES + 1)
        try:
            parts.append(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise BadOption(f"--text {text} is no UTF-8 text (byte {error.start:,}): convert it") from error
        names.append("stdin" if text == STDIN else Path(text).name)
        if sum(map(len, parts)) > MAX_TEXT_BYTES or len(data) > MAX_TEXT_BYTES:
            raise BadOption(f"--text {text} makes more than {format_bytes(MAX_TEXT_BYTES)}: a tenth is ample, cut it")
    return "\n".join(parts), names


def _file(model: str, *, offline: bool, progress: Progress) -> tuple[str, Path]:
    """Name and GGUF file of a model; of an exported folder's types the most exact one."""
    folder = Path(model).expanduser()
    if (folder / manifest.NAME).is_file():
        made = manifest.read(folder)
        files = [entry for entry in made.files() if entry["role"] == "target" and entry["path"].endswith(".gguf")]
        if not files:
            raise BadImatrix(f"{folder} holds no GGUF file: importances are collected of those")
        best = folder / max(files, key=lambda entry: int(entry["n_bytes"]))["path"]
        return str((made.document.get("target") or {}).get("name") or best.stem), best
    if (folder / "config.json").is_file() and not (folder / "model.onnx").is_file():
        raise BadImatrix(
            f"{model} is a checkpoint: `edgellm export {model} --quant F16` makes the file to collect from"
        )
    found = store.pull(model, offline=offline, progress=progress)
    if found.path.suffix == ".onnx" or found.path.is_dir():
        raise BadImatrix(f"{model} is an ONNX model: importances are collected of GGUF files")
    return (model_name(found.path) if found.source == "path" else found.name.rpartition("/")[2]), found.path
