"""`edgellm cache`: what drafting has learnt on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgellm.cli import _options as opt
from edgellm.cli._output import out
from edgellm.cli._variables import Command

app = typer.Typer(
    no_args_is_help=True,
    help="Show, clear, export or import what drafting has learnt: earlier answers, spellings, measured costs, and what "
    "drafters learnt of their targets; and what servers keep of long beginnings.",
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
    from edgellm.app import kept_prefixes
    from edgellm.app.kept_adapters import kept
    from edgellm.memory.units import format_bytes
    from edgellm.runtime.learning.persistence import listing

    folder = _folder()
    files, adapters, prefixes = listing(folder), kept(), kept_prefixes.kept()
    if json_:
        out.json(
            {
                "folder": str(folder),
                "files": [
                    {"path": str(f.path), "kind": f.kind, "of": f.key, "bytes": f.n_bytes, "entries": f.n_entries}
                    for f in files
                ],
                "adapters": adapters,
                "prefixes": {"folder": str(prefixes.folder), "files": prefixes.n_files, "bytes": prefixes.n_bytes},
            }
        )
        return
    for file in files:
        of = " ".join(word if len(word) < 40 else word[:8] for word in file.key.split())
        out.text(f"{format_bytes(file.n_bytes):>10}  {file.n_entries:>8,} {_MEANING[file.kind]:<32} {of}")
    for pair in adapters:
        _show_adapter(pair)
    if prefixes.n_files:
        what = f"pieces of long beginnings, in {prefixes.folder}"
        out.text(f"{format_bytes(prefixes.n_bytes):>10}  {prefixes.n_files:>8,} {what}")
    if not files and not adapters and not prefixes.n_files:
        out.note("nothing is kept: it comes with the first answers")
    out.note(f"in {folder}, readable by you alone; `edgellm chat --no-learn` neither uses nor adds to it")


@app.command(cls=Command)
def clear() -> None:
    """Delete all of it."""
    from edgellm.app import kept_adapters, kept_prefixes
    from edgellm.runtime.learning import persistence

    n, n_adapters = persistence.clear(_folder()) + kept_prefixes.clear(), kept_adapters.clear()
    told = [f"{n} files"] * bool(n) + [f"{n_adapters} adapter{'s' * (n_adapters > 1)} of drafters"] * bool(n_adapters)
    out.note(f"{' and '.join(told)} deleted" if told else "there was nothing to delete")


@app.command("export", cls=Command)
def export_(
    archive: Annotated[Path, typer.Argument(help="File to write; it holds what was said to your models.")],
) -> None:
    """Write all of it into one archive."""
    from edgellm.app.kept_adapters import kept
    from edgellm.runtime.learning.persistence import export_to

    n = export_to(_folder(), archive)
    out.note(f"{n} files in {archive}, readable by you alone: it holds parts of your conversations")
    for adapter in [pair["adapter"] for pair in kept() if pair["adapter"] is not None]:
        out.note(f"{adapter['path']} is not in it: copy that file, and name it with --draft-adapter where it is used")


@app.command("import", cls=Command)
def import_(archive: Annotated[Path, typer.Argument(help="What `cache export` wrote.")]) -> None:
    """Add an archive's contents to what is here."""
    from edgellm.runtime.learning.persistence import import_from

    n = import_from(_folder(), archive, out.warning)
    out.note(f"{n} files taken over from {archive}")


def _show_adapter(pair: Mapping[str, Any]) -> None:
    """What a drafter learnt of a target, in a line; and what was taken back."""
    from edgellm.memory.units import format_bytes

    if (adapter := pair["adapter"]) is not None:
        sides = adapter["tokens_per_pass"]
        gain = f": {sides['before']:.2f} -> {sides['after']:.2f} tokens a pass" if sides["after"] is not None else ""
        n_tokens = f"{adapter['n_tokens'] or 0:,}"
        what = f"tokens that {pair['draft']} learnt from {pair['target'] or pair['target_key'][:8]}{gain}"
        out.text(f"{format_bytes(pair['bytes']):>10}  {n_tokens:>8} {what} ({pair['date']})")
    for given_up in pair["taken_back"]:
        out.note(given_up["note"])


def _folder() -> Path:
    from edgellm.app.defaults import learned_folder

    return learned_folder()
