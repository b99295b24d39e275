"""`edgellm list`, `show` and `rm`: what is on this machine and what could be."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import _options as opt
from edgellm.cli._completion import model_names
from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.export.obtain.catalogue import ModelEntry
    from edgellm.export.obtain.store import ModelFile
    from edgellm.memory.gguf import GgufHeader


def list_(
    all_: Annotated[
        bool, opt.option("--all", "-a", help="Also the models of the catalogue that are not here.")
    ] = False,
    json_: opt.Json = False,
) -> None:
    """List the models on this machine."""
    from edgellm.export.obtain import store
    from edgellm.export.obtain.catalogue import load_catalogue
    from edgellm.memory.units import format_bytes

    models = store.installed()
    rows = [as_json(model) for model in models]
    if all_:
        here = {model.name for model in models}
        rows += [_entry_json(entry) for entry in load_catalogue() if entry.name not in here]
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
    from edgellm.export.obtain import naming, store
    from edgellm.export.obtain.catalogue import find
    from edgellm.memory.gguf import read_header

    model, name = store.locate(reference), naming.parse(reference).name
    if model:
        header = read_header(model.path)
        if template:
            text = header.metadata.get("tokenizer.chat_template")
            return out.text(text) if isinstance(text, str) else out.warning(f"{reference} has no chat template")
        facts = {**as_json(model), **_header_facts(header)}
        facts["licence"] = model.licence or header.metadata.get("general.license")
    elif template or name is None:
        raise store.NotHere(f"{reference} is not on this machine: run `edgellm pull {reference}` first")
    else:
        facts = _entry_json(find(name))
        out.note(f"{facts['name']} is not on this machine: this is what the catalogue says of it")
    if json_:
        return out.json(facts)
    for key, label in _LABELS.items():
        if facts.get(key):
            out.text(f"{label:<16}{_plain(key, facts[key])}")


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


def as_json(model: ModelFile) -> dict[str, Any]:
    """An installed model for machines. Sizes in bytes."""
    from dataclasses import asdict

    return {"reference": model.reference, **asdict(model), "path": str(model.path)}


def _entry_json(entry: ModelEntry) -> dict[str, Any]:
    """A model of the catalogue that is not here, with the same keys and `path` null."""
    from dataclasses import asdict

    file = entry.files[0] if entry.files else None
    return {
        "reference": entry.name,
        "path": None,
        "name": entry.name,
        "quant": file.quant if file else None,
        "n_bytes": file.n_bytes if file else None,
        "sha256": file.sha256 if file else None,
        "licence": entry.licence,
        "source": None,
        "repo": None,
        "revision": None,
        "checkpoint": entry.repo,
        "aliases": list(entry.aliases),
        "role": entry.role,
        "summary": entry.summary,
        "drafters": list(entry.drafters),
        **(asdict(entry.facts) if entry.facts else {}),
    }


def _adapter_facts(header: GgufHeader) -> dict[str, Any]:
    """What the file of an adapter says of itself."""
    from edgellm.memory.adapter import read_adapter

    adapter = read_adapter(header.path)
    ranks = " and ".join(map(str, adapter.ranks))
    return {
        "adapter": f"LoRA of rank {ranks} for {len(adapter.pairs)} matrices, used with --lora beside its base model",
        "quant": header.quantisation,
        "architecture": header.architecture,
        "n_params": header.n_params,
        "checkpoint": header.metadata.get("general.base_model.0.name"),
    }


def _header_facts(header: GgufHeader) -> dict[str, Any]:
    """The keys of `ModelFacts`, read from the file itself; null where it does not say."""
    from edgellm.memory.adapter import is_adapter
    from edgellm.memory.gguf import GgufArray

    def most(name: str) -> Any:
        """A number, or the largest of one for each layer."""
        value = header.hparam(name)
        return (
            max(header.array(f"{header.architecture}.{name}"), default=None) if isinstance(value, GgufArray) else value
        )

    if is_adapter(header):
        return _adapter_facts(header)
    n_heads, n_embd = most("attention.head_count"), header.hparam("embedding_length")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return {
        "quant": header.quantisation,
        "architecture": header.architecture,
        "n_layers": header.hparam("block_count"),
        "n_heads": n_heads,
        "n_kv_heads": most("attention.head_count_kv") or n_heads,
        "head_dim": header.hparam("attention.key_length") or (n_embd // n_heads if n_embd and n_heads else None),
        "n_embd": n_embd,
        "n_ff": most("feed_forward_length"),
        "n_vocab": tokens.n_items if isinstance(tokens, GgufArray) else header.hparam("vocab_size"),
        "n_ctx_train": header.hparam("context_length"),
        "n_params": header.n_params,
        "window": most("attention.sliding_window"),
        "tied": not any(tensor.name == "output.weight" for tensor in header.tensors),
        "chat_template": isinstance(header.metadata.get("tokenizer.chat_template"), str),
    }


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
    "chat_template": "chat template",
    "licence": "licence",
    "drafters": "drafters",
    "checkpoint": "checkpoint",
    "repo": "repository",
    "revision": "revision",
    "source": "source",
    "sha256": "sha256",
    "path": "path",
}


def _plain(key: str, value: Any) -> str:
    from edgellm.memory.units import format_bytes

    if key == "n_bytes":
        return f"{format_bytes(value)} ({value:,} bytes)"
    if key in ("n_vocab", "n_ctx_train", "window"):
        return f"{value:,} tokens"
    if key == "chat_template":
        return "yes (--template prints it)"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
