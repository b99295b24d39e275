"""What an export is asked to make, and who is told of it and judges it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgellm.export.convert.script import Converter
from edgellm.export.lora.adapted_drafts import AdaptedDraft
from edgellm.export.lora.adapter_export import Merging
from edgellm.export.manifest import ManifestError
from edgellm.export.obtain.source import ModelSource

Event = Mapping[str, Any]
SMALL_PARAMS = 1_500_000_000  # up to here an export is verified unless told otherwise


class Judge(Protocol):
    """Who runs a target with a drafter; the runtime does, which this room does not know."""

    def __call__(self, target: Path, draft: Path, *, measure: bool) -> dict[str, Any]: ...


class Tabulator(Protocol):
    """Who works out what the vocabularies of a pair say of each other; the runtime reads it, and writes it."""

    def __call__(self, target: Path, draft: Path) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Options:
    """What to make. Everything here is in the manifest, and repeating it repeats the bytes."""

    quants: tuple[str, ...] = ("Q4_K_M",)
    draft_quants: tuple[str, ...] = ()  # empty: as `quants`
    keep_vocab: float | None = None  # share of the drafter's vocabulary that is kept
    trim_input: bool = False  # also forget how to read what is not kept
    keep_corpus: str | None = None  # sha256 of the text whose tokens are kept first
    drop_layers: tuple[int, ...] = ()  # of the drafter
    draft_head: str | None = None  # type of the drafter's last matrix, where it is not the file's
    imatrix: str | None = None  # sha256 of the target's importance matrix
    draft_adapter: str | None = None  # sha256 of what the drafter learnt
    converter: str | None = None  # "own", "llama.cpp", or sha256 of another script; None: own where it knows the family

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Options:
        """The options that a manifest tells of.

        Raises:
            ManifestError: options of another kind of export, or damaged ones.
        """
        told: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        kinds: dict[str, type | tuple[type, ...]] = {
            **dict.fromkeys(("quants", "draft_quants"), str), "drop_layers": int, "trim_input": bool,
            "keep_vocab": (float, int), "draft_adapter": str,
            **dict.fromkeys(("keep_corpus", "draft_head", "imatrix", "converter"), str),
        }  # fmt: skip
        for name, value in told.items():
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            if name not in kinds or not all(isinstance(item, kinds[name]) for item in values):
                raise ManifestError(f"an export cannot be repeated with {name} {value!r} of its manifest: export again")
        return cls(**told)


@dataclass(frozen=True, slots=True)
class Request:
    target: ModelSource
    draft: ModelSource | None
    options: Options
    output: Path
    imatrix: Path | None = None
    corpus: Path | None = None
    verify: bool | None = None  # None: small models only
    converter: Converter | None = None  # llama.cpp's script, for what it is to convert
    plan: dict[str, Any] | None = None  # of the device that the types were chosen for
    judge: Judge | None = None  # how well a drafter fits, for the manifest
    tabulate: Tabulator | None = None  # what is stored beside a drafter
    merging: Merging | None = None  # an adapter that becomes part of the target
    adapted: AdaptedDraft | None = None  # what the drafter learnt, which becomes part of it
