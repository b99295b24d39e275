"""`edgellm imatrix`: which columns of a model's matrices a text uses how much, for quantising to few bits."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import _options as opt
from edgellm.cli._completion import model_names
from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.export.convert.imatrix import Made


Model = Annotated[
    str,
    typer.Argument(
        help="A GGUF file (F16 or Q8_0 do best), an exported folder, a catalogue name, or user/repo[:QUANT].",
        autocompletion=model_names,
    ),
]
Text = Annotated[
    list[str],
    opt.option(
        "--text",
        "-f",
        help="Text of the kind that the model is for; - is stdin. May be repeated; several in the variable are "
        "quoted each.",
        metavar="FILE",
    ),
]
Output = Annotated[
    Path | None,
    opt.option("--output", "-o", help="The file to write.", show_default="NAME-imatrix.gguf", metavar="FILE"),
]
Ctx = Annotated[int, opt.option("--ctx", "-c", min=32, max=32_768, help="Tokens of a chunk.", metavar="N")]
Chunks = Annotated[int | None, opt.option("--chunks", min=1, help="Read so many chunks at most.", metavar="N")]
MaxTokens = Annotated[
    int | None, opt.option("--max-tokens", "-n", min=32, help="Read so many tokens at most.", metavar="N")
]


def imatrix(
    model: Model,
    text: Text,
    output: Output = None,
    ctx: Ctx = 512,
    chunks: Chunks = None,
    max_tokens: MaxTokens = None,
    threads: opt.Threads = None,
    offline: opt.Offline = False,
    quiet: opt.Quiet = False,
    json_: opt.Json = False,
) -> None:
    """Make an importance matrix, which `export --imatrix` quantises by; types of less than 3 bits need one.

    An interrupted run goes on where it stopped. The text should be like what the model will be asked, and not the one
    that it is judged by; some 100 chunks do well.
    """
    from edgellm.app import importances
    from edgellm.cli._export_view import usage
    from edgellm.cli._progress import DownloadBar

    out.quiet = out.quiet or quiet
    with usage():
        job = importances.prepare(
            model,
            text,
            stdin=sys.stdin.buffer,
            progress=DownloadBar(),
            output=output,
            n_ctx=ctx,
            chunks=chunks,
            max_tokens=max_tokens,
            n_threads=threads,
            offline=offline,
        )
    progress = _Progress()
    try:
        with progress:
            made = job.run(progress.see)
    except KeyboardInterrupt:
        out.note(
            f"interrupted after {progress.n_done} of {progress.n_chunks} chunks; {progress.n_saved} are kept, and the "
            "same command goes on from there"
        )
        raise
    _show(made, json_=json_, seconds=progress.seconds)


class _Progress:
    """A bar on stderr where that is a terminal, and a line now and then elsewhere."""

    EVERY_S = 30.0

    def __init__(self) -> None:
        self.n_done = self.n_chunks = self.n_saved = 0
        self._bar: Any = None
        self._began_s = self._told_s = time.monotonic()

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
    from edgellm.memory.files import sha256_of

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
