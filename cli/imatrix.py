"""`edgellm imatrix`: which columns of a model's matrices a text uses how much, for quantising to few bits."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgellm.cli._completion import model_names
from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.export.convert.imatrix import Made


def imatrix(
    model: str = typer.Argument(
        help="A GGUF file (F16 or Q8_0 do best), an exported folder, a catalogue name, or user/repo[:QUANT].",
        autocompletion=model_names,
    ),
    text: list[str] = typer.Option(
        ...,
        "--text",
        "-f",
        envvar="EDGELLM_IMATRIX_TEXT",
        help="Text of the kind that the model is for; - is stdin. Repeatable.",
    ),
    output: Path | None = typer.Option(
        None, "--output", "-o", envvar="EDGELLM_IMATRIX_OUTPUT", help="The file to write.  [default: NAME-imatrix.gguf]"
    ),
    ctx: int = typer.Option(512, min=32, max=32_768, envvar="EDGELLM_IMATRIX_CTX", help="Tokens of a chunk."),
    chunks: int | None = typer.Option(
        None, min=1, envvar="EDGELLM_IMATRIX_CHUNKS", help="Read so many chunks at most.", show_default=False
    ),
    max_tokens: int | None = typer.Option(
        None, min=32, envvar="EDGELLM_IMATRIX_MAX_TOKENS", help="Read so many tokens at most.", show_default=False
    ),
    threads: int | None = typer.Option(
        None, min=1, envvar="EDGELLM_THREADS", help="Default: the physical cores.", show_default=False
    ),
    offline: bool = typer.Option(False, "--offline", envvar="EDGELLM_OFFLINE", help="Use only what is on this disk."),
    quiet: bool = typer.Option(False, "--quiet", "-q", envvar="EDGELLM_QUIET", help="No progress."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Make an importance matrix, which `export --imatrix` quantises by; types of less than 3 bits need one.

    An interrupted run goes on where it stopped. The text should be like what the model will be asked, and not the one
    that it is judged by; some 100 chunks do well.
    """
    from edgellm.export.convert import imatrix as importance

    out.quiet = out.quiet or quiet
    most = [n for n in (chunks, max_tokens // ctx if max_tokens else None) if n is not None]
    if most and not min(most):
        raise typer.BadParameter(f"--max-tokens {max_tokens} is less than one chunk of {ctx} tokens: lower --ctx")
    content, names = _read(text)
    name, path = _file(model, offline=offline)
    target = output or Path(f"{name}-imatrix.gguf")
    progress = _Progress(target)
    try:
        with progress:
            made = importance.make(
                path,
                name,
                content,
                target,
                datasets=names,
                n_ctx=ctx,
                chunks=min(most) if most else None,
                n_threads=threads,
                on_chunk=progress.see,
            )
    except KeyboardInterrupt:
        out.note(
            f"interrupted after {progress.n_done} of {progress.n_chunks} chunks; {progress.n_saved} are kept, and the "
            "same command goes on from there"
        )
        raise
    _show(made, json_=json_, seconds=progress.seconds)


def _read(texts: list[str]) -> tuple[str, list[str]]:
    """All texts, and what to call them.

    Raises:
        typer.BadParameter: one is empty, no UTF-8, or too long.
        OSError: one cannot be read.
    """
    from edgellm.export.convert.imatrix import MAX_TEXT_BYTES
    from edgellm.memory.units import format_bytes

    parts, names = [], []
    for text in texts:
        if text == "-":
            data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
        else:
            with Path(text).expanduser().open("rb") as file:
                data = file.read(MAX_TEXT_BYTES + 1)
        try:
            parts.append(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise typer.BadParameter(f"--text {text} is no UTF-8 text (byte {error.start:,}): convert it") from error
        names.append("stdin" if text == "-" else Path(text).name)
        if sum(map(len, parts)) > MAX_TEXT_BYTES or len(data) > MAX_TEXT_BYTES:
            raise typer.BadParameter(
                f"--text {text} makes more than {format_bytes(MAX_TEXT_BYTES)}: a tenth is ample, cut it"
            )
    return "\n".join(parts), names


def _file(model: str, *, offline: bool) -> tuple[str, Path]:
    """Name and GGUF file of a model; of an exported folder's types the most exact one."""
    from edgellm.app.references import resolve
    from edgellm.cli._listener import TERMINAL
    from edgellm.export import manifest
    from edgellm.export.convert.imatrix import BadImatrix

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
    found = resolve(model, offline=offline, listener=TERMINAL)
    if found.path.suffix == ".onnx" or found.path.is_dir():
        raise BadImatrix(f"{model} is an ONNX model: importances are collected of GGUF files")
    return (found.path.stem if found.source == "path" else found.name.rpartition("/")[2]), found.path


class _Progress:
    """A bar on stderr where that is a terminal, and a line now and then elsewhere."""

    EVERY_S = 30.0

    def __init__(self, output: Path) -> None:
        self.n_done = self.n_chunks = self.n_saved = 0
        self._bar: Any = None
        self._output, self._began_s, self._told_s = output, time.monotonic(), time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty() and not out.quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=out.console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("reading the model", total=None)
        return self

    def see(self, event: Mapping[str, Any]) -> None:
        self.n_done, self.n_chunks = event["chunk"], event["n_chunks"]
        self.n_saved = event.get("saved", event.get("resumed", 0))
        said = f"perplexity {event['perplexity']:.4g}" if "perplexity" in event else "chunks"
        if event.get("resumed"):
            self._say(f"{self.n_done} of {self.n_chunks} chunks are there from an earlier run")
        if self._bar is not None:
            self._bar.update(self._task, completed=self.n_done, total=self.n_chunks, description=said)
        elif time.monotonic() - self._told_s >= self.EVERY_S:
            self._told_s = time.monotonic()
            self._say(f"{self.n_done} of {self.n_chunks} chunks, {said}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False)
        else:
            out.note(text)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _show(made: Made, *, json_: bool, seconds: float) -> None:
    from edgellm.export.obtain.source import sha256_of

    report = {
        "path": str(made.path),
        "n_bytes": made.path.stat().st_size,
        "sha256": sha256_of(made.path),
        "model": made.model,
        "fingerprint": made.fingerprint,
        "n_matrices": made.n_matrices,
        "n_chunks": made.n_chunks,
        "chunk_size": made.chunk_size,
        "n_tokens": made.n_chunks * made.chunk_size,
        "perplexity": made.perplexity,
        "resumed_chunks": made.resumed,
        "unseen_experts": made.unseen,
        "seconds": round(seconds, 3),
    }
    if json_:
        return out.json(report)
    if made.unseen:
        n_unseen = sum(made.unseen.values())
        out.warning(f"{n_unseen} experts of {len(made.unseen)} matrices were never chosen: more text would help")
    scored = f", perplexity {made.perplexity:.4g} on the way" if made.perplexity is not None else ""
    out.note(
        f"{made.n_matrices} matrices over {made.n_chunks:,} chunks of {made.chunk_size} tokens{scored}; "
        f"`edgellm export MODEL --imatrix {made.path}` uses it"
    )
    out.text(str(made.path))
