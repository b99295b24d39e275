"""Adapters on the command line: `--lora FILE[:SCALE]`, and what `export` makes of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgellm.cli._texts import BadTexts, split_texts

if TYPE_CHECKING:
    from edgellm.export.lora.adapter_export import Merging
    from edgellm.export.manifest import Manifest
    from edgellm.export.obtain.source import ModelSource

VARIABLE = "EDGELLM_LORA"


def lora_option(value: list[str]) -> list[str]:
    """What was typed, else what the environment says: one adapter, or several in quotes."""
    try:
        return value or split_texts(os.environ.get(VARIABLE, ""))
    except BadTexts as error:
        raise typer.BadParameter(f"{VARIABLE}: {error}") from error


def is_adapter(reference: str) -> bool:
    from edgellm.export.lora.adapter_source import is_adapter as is_one

    return is_one(reference)


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """`edgellm export` of an adapter, alone or with its base."""

    reference: str
    base: str | None
    revision: str | None
    token: str | None
    folder: Path | None
    locked: bool

    def export(
        self,
        types: str | None,
        given: Mapping[str, Any],
        watch: Callable[[Mapping[str, Any]], None],
        *,
        verify: bool | None,
        json_: bool,
        jsonl: bool,
    ) -> None:
        """A folder with GGUF adapters, or, where that is asked, the proof that it comes out the same again."""
        from edgellm.cli._output import out
        from edgellm.cli.export import _show, _stem
        from edgellm.export import manifest
        from edgellm.export.lora import adapter_export

        for name in (name for name, value in given.items() if value):
            raise typer.BadParameter(f"{name} does not go with an adapter; with --merge it goes with the model")
        folder = self.folder or Path(f"{_stem(self.reference)}-export")
        there = manifest.read(folder) if self.locked else None
        told = (there.document.get("lora") or {}) if there else {}
        source = self._source(_at(told.get("source")))
        base = self._base(source, told.get("base"))
        adapter_export.judged(source, base)
        chosen = tuple(there.options["quants"]) if there else _types(types)
        request = adapter_export.AdapterRequest(source.complete(), base, chosen, folder, verify)
        if there is None:
            made = adapter_export.export_adapter(request, watch)
            _show(made, folder, json_=json_, silent=jsonl)
            proof = made.document["lora"]["verification"]
            for name, facts in proof.items() if isinstance(proof, dict) and not jsonl else ():
                error, n_tokens = facts["max_relative_error"], facts["n_tokens"]
                out.note(f"lora {name}: logits of {n_tokens} tokens within {error:.2g} of the merged checkpoint's")
            return
        if differences := adapter_export.reproduce_adapter(request, there, watch):
            raise manifest.ManifestError(f"the export differs from {folder / manifest.NAME}: {'; '.join(differences)}")
        out.note("identical to the bit")

    def merged(
        self, fetch: Callable[[str, str | None], ModelSource], there: Manifest | None, converter: str | None
    ) -> tuple[Merging, ModelSource]:
        """What merges the adapter, and the target, called after both."""
        from edgellm.export.lora import adapter_export
        from edgellm.export.lora.adapter_source import named_base

        if converter not in (None, "own"):
            raise typer.BadParameter("--merge goes with edgellm's own converter: leave --converter out")
        told = (there.document.get("target") or {}) if there else {}
        source = self._source(_at((told.get("adapter") or {}).get("source")))
        base = self._base(source, told.get("source"))
        adapter_export.judged(source, base, merge=True)
        model = fetch(self.base or named_base(source), base.revision)
        merging = adapter_export.Merging.of(source.complete(), model)
        return merging, replace(model, name=f"{model.name}-{source.name}")

    def _source(self, revision: str | None) -> Any:
        from edgellm.cli._progress import DownloadBar
        from edgellm.export.lora.adapter_source import resolve_adapter

        return resolve_adapter(
            self.reference, revision=revision or self.revision, token=self.token, progress=DownloadBar()
        )

    def _base(self, source: Any, told: Any) -> Any:
        from edgellm.cli._progress import DownloadBar
        from edgellm.export.lora.adapter_source import resolve_base, told_base

        if self.base:
            return resolve_base(self.base, revision=_at(told), token=self.token, progress=DownloadBar())
        return told_base(source, revision=_at(told), token=self.token, progress=DownloadBar())


def _at(told: Any) -> str | None:
    """The commit of a manifest's source."""
    return told.get("revision") if isinstance(told, dict) else None


def _types(text: str | None) -> tuple[str, ...]:
    from edgellm.export.lora.lora_gguf import TYPES

    types = tuple(dict.fromkeys(word.strip().upper() for word in (text or TYPES[0]).split(",") if word.strip()))
    for name in types:
        if name not in TYPES:
            raise typer.BadParameter(f"an adapter is written as {', '.join(TYPES)}, and not as {name}")
    return types
