"""What is said of a model: one that is here by its file, one that is not by the catalogue, with the same keys."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.export.obtain.catalogue import FileEntry, ModelEntry
    from edgellm.export.obtain.store import ModelFile
    from edgellm.memory.gguf import GgufHeader


def model_rows(*, catalogue: bool = False) -> list[dict[str, Any]]:
    """The models on this machine and, if asked for, those of the catalogue that are not here."""
    from edgellm.export.obtain import store
    from edgellm.export.obtain.catalogue import load_catalogue

    models = store.installed()
    rows = [installed_json(model) for model in models]
    if catalogue:
        here = {model.name for model in models}
        rows += [entry_json(entry) for entry in load_catalogue() if entry.name not in here]
    return rows


def chat_template(reference: str) -> str | None:
    """The template of a model that is here; None where its file holds none.

    Raises:
        NotHere: it is not.
    """
    from edgellm.export.obtain import store
    from edgellm.memory.gguf import read_header

    model = store.locate(reference)
    if model is None:
        raise _not_here(reference)
    text = read_header(model.path).metadata.get("tokenizer.chat_template")
    return text if isinstance(text, str) else None


def describe(reference: str) -> dict[str, Any]:
    """What a model is; `path` is None where the catalogue alone knows it.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing.
        NotHere: it is not on this machine, and not of the catalogue.
    """
    from edgellm.app.kept_adapters import adapters_for, adapters_of, adapters_taken_back
    from edgellm.export.obtain import naming, store
    from edgellm.export.obtain.catalogue import find
    from edgellm.memory.split import read_model

    model, name = store.locate(reference), naming.parse(reference).name
    if model:
        header = read_model(model.path)
        facts = {**installed_json(model), **_header_facts(header)}
        facts["licence"] = model.licence or header.metadata.get("general.license")
        return facts | {
            "draft_adapters": [one.to_json() for one in adapters_for(model)],
            "adapters_taken_back": adapters_taken_back(model),
        }
    if name is None:
        raise _not_here(reference)
    entry = find(name)
    return entry_json(entry) | {
        "draft_adapters": [one.to_json() for one in adapters_of(entry)],
        "adapters_taken_back": [],
    }


def installed_json(model: ModelFile) -> dict[str, Any]:
    """An installed model for machines. Sizes in bytes."""
    facts = asdict(model)
    return {"reference": model.reference, **facts, "path": str(model.path), "parts": list(facts["parts"])}


def entry_json(entry: ModelEntry) -> dict[str, Any]:
    """A model of the catalogue that is not here, with the same keys and `path` null."""
    from edgellm.export.obtain.catalogue import ModelFacts

    file = entry.files[0] if entry.files else None
    unknown = dict.fromkeys(field.name for field in fields(ModelFacts))
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
        "tasks": list(entry.tasks),
        "parts": [asdict(part) for part in file.parts] if file and len(file.parts) > 1 else [],
        "files": [_offered(file) for file in entry.files],
        **(asdict(entry.facts) if entry.facts else unknown),
    }


def _offered(file: FileEntry) -> dict[str, Any]:
    """What can be pulled; null where nobody says how large it is, or what it hashes to."""
    from edgellm.export.obtain.catalogue import HfSource

    on_hub = next((source for source in file.sources if isinstance(source, HfSource)), None)
    return {
        "quant": file.quant,
        "filename": file.filename,
        "n_files": len(file.parts),
        "n_bytes": file.n_bytes,
        "sha256": file.sha256,
        "repo": on_hub.repo if on_hub else None,
        "revision": on_hub.revision if on_hub and on_hub.revision != "main" else None,
    }


def _not_here(reference: str) -> Exception:
    from edgellm.export.obtain.store import NotHere

    return NotHere(f"{reference} is not on this machine: run `edgellm pull {reference}` first")


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
    from edgellm.memory.draft_heads import describe as describe_head
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
        "draft_head": describe_head(header),
        "tied": not any(tensor.name == "output.weight" for tensor in header.tensors),
        "chat_template": isinstance(header.metadata.get("tokenizer.chat_template"), str),
    }
