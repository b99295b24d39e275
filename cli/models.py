"""`edgellm list`, `show` and `rm`: what is on this machine and what could be."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from edgellm.cli import _options as opt
from edgellm.cli._completion import model_names
from edgellm.cli._output import out


def list_(
    all_: Annotated[
        bool, opt.option("--all", "-a", help="Also the models of the catalogue that are not here.")
    ] = False,
    json_: opt.Json = False,
) -> None:
    """List the models on this machine."""
    from edgellm.app.inventory import model_rows
    from edgellm.memory.units import format_bytes

    rows = model_rows(catalogue=all_)
    if json_:
        return out.json(rows)
    if not rows:
        return out.note("no models here: `edgellm list --all` shows what there is, `edgellm pull NAME` brings it")
    columns = ["name", "quant", "size ", "licence", "here"]
    sizes = [format_bytes(row["n_bytes"]) if row["n_bytes"] else "?" for row in rows]
    lines = [
        (row["name"], row["quant"] or "-", size, row["licence"] or "?", "yes" if row["path"] else "-")
        for row, size in zip(rows, sizes, strict=True)
    ]
    out.table(columns if all_ else columns[:-1], lines if all_ else [line[:-1] for line in lines])


def show(
    reference: Annotated[
        str, typer.Argument(help="A catalogue name, user/repo[:QUANT], or a path.", autocompletion=model_names)
    ],
    template: Annotated[bool, opt.option("--template", help="Print the chat template and nothing else.")] = False,
    json_: opt.Json = False,
) -> None:
    """Show what a model is: its shape, vocabulary, context, quantisation, licence and place."""
    from edgellm.app import inventory

    if template:
        text = inventory.chat_template(reference)
        return out.text(text) if text is not None else out.warning(f"{reference} has no chat template")
    facts = inventory.describe(reference)
    if facts["path"] is None:
        out.note(f"{facts['name']} is not on this machine: this is what the catalogue says of it")
    if json_:
        return out.json(facts)
    for key, label in _LABELS.items():
        if facts.get(key):
            out.text(f"{label:<16}{_plain(key, facts[key])}")
    for adapter in facts["draft_adapters"]:
        out.text(f"{'drafted by':<16}{adapter['note']}")
    for sentence in facts["adapters_taken_back"]:
        out.note(sentence)


def rm(
    reference: Annotated[
        str,
        typer.Argument(help="As it was pulled: a catalogue name, or user/repo[:QUANT].", autocompletion=model_names),
    ],
    yes: opt.Yes = False,
    json_: opt.Json = False,
) -> None:
    """Delete a model from this machine, and what an interrupted download of it left."""
    from edgellm.export.obtain import store
    from edgellm.memory.units import format_bytes

    paths = store.files_of(reference)
    n_bytes = sum(path.stat().st_size for path in paths)
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("add --yes to delete without being asked")
        for path in paths:
            out.note(f"{format_bytes(path.stat().st_size):>10}  {path}")
        typer.confirm(f"Delete {format_bytes(n_bytes)}?", abort=True, err=True)
    store.remove(reference)
    if json_:
        out.json({"removed": [str(path) for path in paths], "n_bytes": n_bytes})
    else:
        out.note(f"{reference}: {format_bytes(n_bytes)} deleted")


_LABELS = {
    "name": "name",
    "adapter": "adapter",
    "architecture": "architecture",
    "n_params": "parameters",
    "quant": "quantisation",
    "n_bytes": "size",
    "n_layers": "layers",
    "n_heads": "heads",
    "n_kv_heads": "key-value heads",
    "head_dim": "head width",
    "n_embd": "embedding",
    "n_ff": "feed-forward",
    "n_vocab": "vocabulary",
    "n_ctx_train": "context",
    "window": "sliding window",
    "draft_head": "draft head",
    "chat_template": "chat template",
    "licence": "licence",
    "drafters": "drafters",
    "checkpoint": "checkpoint",
    "repo": "repository",
    "revision": "revision",
    "source": "source",
    "sha256": "sha256",
    "path": "path",
    "parts": "parts",
}


def _plain(key: str, value: Any) -> str:
    from edgellm.memory.units import format_bytes

    if key == "n_bytes":
        return f"{format_bytes(value)} ({value:,} bytes)"
    if key in ("n_vocab", "n_ctx_train", "window"):
        return f"{value:,} tokens"
    if key == "chat_template":
        return "yes (--template prints it)"
    if key == "parts":
        return f"{len(value)} files, from {value[0]['filename']} on"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
