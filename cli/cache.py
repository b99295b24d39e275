"""`edgellm cache`: what drafting has learnt on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgellm.cli import _options as opt
from edgellm.cli._output import out
from edgellm.cli._variables import Command

app = typer.Typer(
    no_args_is_help=True,
    help="Show, clear, export or import what drafting has learnt: earlier answers, spellings, measured costs.",
)
_MEANING = {
    "store": "tokens of earlier answers",
    "lessons": "questions with their answers",
    "ngrams": "spellings of the target's tokens",
    "knowledge": "whom to believe",
    "costs": "what a pass costs",
}


@app.command(cls=Command)
def show(json_: opt.Json = False) -> None:
    """List what is kept, and where."""
    from edgellm.memory.units import format_bytes
    from edgellm.runtime.learning.persistence import listing

    folder = _folder()
    files = listing(folder)
    if json_:
        out.json(
            {
                "folder": str(folder),
                "files": [
                    {"path": str(f.path), "kind": f.kind, "of": f.key, "bytes": f.n_bytes, "entries": f.n_entries}
                    for f in files
                ],
            }
        )
        return
    for file in files:
        of = " ".join(word if len(word) < 40 else word[:8] for word in file.key.split())
        out.text(f"{format_bytes(file.n_bytes):>10}  {file.n_entries:>8,} {_MEANING[file.kind]:<32} {of}")
    if not files:
        out.note("nothing is kept: it comes with the first answers")
    out.note(f"in {folder}, readable by you alone; `edgellm chat --no-learn` neither uses nor adds to it")


@app.command(cls=Command)
def clear() -> None:
    """Delete all of it."""
    from edgellm.runtime.learning import persistence

    n = persistence.clear(_folder())
    out.note(f"{n} files deleted" if n else "there was nothing to delete")


@app.command("export", cls=Command)
def export_(
    archive: Annotated[Path, typer.Argument(help="File to write; it holds what was said to your models.")],
) -> None:
    """Write all of it into one archive."""
    from edgellm.runtime.learning.persistence import export_to

    n = export_to(_folder(), archive)
    out.note(f"{n} files in {archive}, readable by you alone: it holds parts of your conversations")


@app.command("import", cls=Command)
def import_(archive: Annotated[Path, typer.Argument(help="What `cache export` wrote.")]) -> None:
    """Add an archive's contents to what is here."""
    from edgellm.runtime.learning.persistence import import_from

    n = import_from(_folder(), archive, out.warning)
    out.note(f"{n} files taken over from {archive}")


def _folder() -> Path:
    from edgellm.app.defaults import learned_folder

    return learned_folder()
