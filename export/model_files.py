"""The files of one model on its way through an export: unquantised, cut smaller, quantised, and described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgellm.export import manifest
from edgellm.export.convert import conversion, engine_jobs, trim
from edgellm.export.convert.conversion import CHOICES, Conversion
from edgellm.export.convert.gguf_copy import join
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.convert.script import Converter
from edgellm.export.convert.script import convert as convert_by
from edgellm.export.lora.adapter_export import Merging
from edgellm.export.obtain.source import ModelSource
from edgellm.export.request import Event, Options, Tabulator
from edgellm.export.staging import ExportError
from edgellm.memory import files as whole_files
from edgellm.memory.adapter import refuse_adapter
from edgellm.memory.files import sha256_of
from edgellm.memory.gguf import GgufHeader, read_header
from edgellm.memory.split import part_name

UNQUANTISED = {"F16", "F32", "BF16"}


@dataclass(frozen=True, slots=True)
class Step:
    """Where the files of one role go, and who is told of it."""

    role: str
    source: ModelSource
    work: Path
    on_event: Callable[[Event], None]
    _headers: dict[Path, GgufHeader] = field(default_factory=dict)

    def header(self, path: Path) -> GgufHeader:
        """Of a file that stays as it is for as long as the export runs: read once."""
        if path not in self._headers:
            self._headers[path] = read_header(path)
        return self._headers[path]

    def path(self, suffix: str) -> Path:
        stem = self.source.name if self.role == "target" else f"draft-{self.source.name}"
        return self.work / f"{stem}-{suffix}.gguf"

    def say(self, event: str, step: str, file: str, **more: Any) -> None:
        self.on_event({"event": event, "step": step, "role": self.role, "file": file, **more})

    def counter(self, step: str, path: Path) -> Callable[[int, int], None]:
        def count(n_done: int, n_total: int) -> None:
            self.say("progress", step, path.name, done=n_done, total=n_total)

        return count

    def file(self, suffix: str, make: Callable[[Path], object], what: str = "convert") -> Path:
        """The model file of that suffix: as an earlier run left it, or made now."""
        return self.made(self.path(suffix), make, what)

    def made(self, path: Path, make: Callable[[Path], object], what: str) -> Path:
        """Any file, likewise."""
        if path.exists():
            self.say("resumed", what, path.name)
        else:
            self.say("start", what, path.name)
            make(path)
            self.say("done", what, path.name, n_bytes=path.stat().st_size)
        return path


def chosen(source: ModelSource, options: Options, converter: Converter | None) -> Conversion:
    """Who converts a checkpoint, by the options that the export is repeated with."""
    choice = next((choice for choice in CHOICES if choice == options.converter), None)
    given = sha256_of(converter.script) if converter and not converter.is_pinned else None
    if given != (options.converter if choice is None else None):
        raise ExportError("the export was made with another script: give the same one with --converter PATH")
    if given is not None:
        return conversion.by_script(source.path)
    return conversion.choose(source.path, choice)


def unquantised(step: Step, found: Conversion | None, script: Converter | None, quants: tuple[str, ...]) -> Path:
    """The model unquantised, or the GGUF file that was named, joined where it was in parts."""
    if found is None:
        source = step.source.path
        if part_name(source.name) is None:
            return source
        return step.file("joined", lambda path: join(source, path, step.counter("join", path)), "join")
    kind: Literal["BF16", "F16"] = "BF16" if "BF16" in quants else "F16"
    name = step.source.name
    if found.by == "own":
        return step.file(
            kind,
            lambda path: to_gguf(
                step.source.path, path, float_type=kind, name=name, on_tensor=step.counter("convert", path)
            ),
        )
    if script is None:
        raise ExportError(f"{name} is converted by llama.cpp's script, which was not given")

    def convert(path: Path) -> None:
        def count(n_done: int, n_all: int) -> None:
            step.say("progress", "convert", path.name, done=n_done, total=n_all, unit="bytes")

        convert_by(script, found, step.source, path, float_type=kind, on_progress=count)

    return step.file(kind, convert)


def merged(step: Step, merging: Merging, quants: tuple[str, ...]) -> Path:
    """The base unquantised, with an adapter merged into it."""
    kind = "BF16" if "BF16" in quants else "F16"
    return step.file(kind, lambda path: merging.write(step.source, path, kind, step.counter("merge", path)), "merge")


def quantised(step: Step, base: Path, quant: str, matrix: Path | None, head: str | None) -> Path:
    """The model in a type.

    Args:
        matrix: of importances.
        head: type of the last matrix, where it is not the file's.
    """
    own = step.header(base).quantisation
    if own == quant and base == step.path(quant):
        return base  # unquantised: its head stays so too
    if own == quant and not head:
        return step.file(quant, lambda path: whole_files.copy(base, path), "copy")

    def quantise(path: Path) -> None:
        engine_jobs.quantise(
            base,
            path,
            quant,
            imatrix=matrix,
            head=head,
            requantise=own not in UNQUANTISED,
            on_tensor=step.counter("quantise", path),
        )

    return step.file(quant, quantise, "quantise")


def before_cutting(step: Step, whole: Path, quant: str) -> Path:
    """The drafter that was made smaller, in the type of the one that came out, to compare them."""
    own = step.header(whole).quantisation
    if own == quant:
        return whole
    requantise = own not in UNQUANTISED
    return step.file("before", lambda path: engine_jobs.quantise(whole, path, quant, requantise=requantise), "quantise")


def tabulated(step: Step, tabulate: Tabulator, target: Path, draft: Path) -> dict[str, Any]:
    """The entry of the pair's table, which holds for every type: quantising leaves vocabularies alone."""

    def make(path: Path) -> None:
        whole_files.write(path, tabulate(target, draft))

    return manifest.file_entry(step.made(step.work / f"draft-{step.source.name}.pair", make, "table"), role="table")


def without_layers(step: Step, base: Path, layers: tuple[int, ...]) -> Path:
    """The model without some of its layers.

    Raises:
        ExportError: it does not have them, or no others.
    """
    n_layers = int(step.header(base).hparam("block_count", 0))
    if not set(layers) < set(range(n_layers)):
        raise ExportError(f"--drop-layers {','.join(map(str, layers))}: the model has layers 0 to {n_layers - 1}")
    return step.file("layers", lambda path: engine_jobs.drop_layers(base, path, layers))


def trimmed(step: Step, base: Path, options: Options, corpus: Path | None) -> tuple[Path, dict[str, Any], Path | None]:
    """The trimmed model, figures for the manifest, and the file that it reads with."""
    assert options.keep_vocab is not None
    kept = trim.choose(base, options.keep_vocab, corpus.read_text(encoding="utf-8") if corpus else "")
    words: Path | None = None
    if not options.trim_input:
        words = step.path("words")
        if not words.exists():
            whole = step.file("whole", lambda path: _as_q8(step, base, path), "quantise")
            if not trim.write_words(whole, words, kept):
                words = None
            whole.unlink()
    path = step.file("trimmed", lambda path: trim.trim_vocabulary(base, path, kept), "trim")
    n_vocab_before = int(step.header(base).metadata["tokenizer.ggml.tokens"].n_items)
    return path, {"n_vocab": len(kept), "n_vocab_before": n_vocab_before}, words


def _as_q8(step: Step, base: Path, path: Path) -> None:
    own = step.header(base).quantisation
    engine_jobs.quantise(base, path, "Q8_0", requantise=own not in UNQUANTISED)


def described(source: ModelSource, header: GgufHeader) -> dict[str, Any]:
    """A model as a manifest tells of it."""
    return {
        "name": source.name,
        "architecture": header.architecture,
        "n_params": header.n_params,
        "n_vocab": header.metadata["tokenizer.ggml.tokens"].n_items,
        "draft_head_layers": int(header.hparam("nextn_predict_layers", 0)),
        "source": {
            "repo": source.repo,
            "revision": source.revision,
            "licence": source.licence or header.metadata.get("general.license"),
            "files": source.digests(),
        },
    }


def refuse_foreign_heads(header: GgufHeader) -> None:
    """Raises ExportError, AdapterError: a GGUF file that is no model of its own."""
    refuse_adapter(header)
    arch = header.architecture
    if arch in {"eagle3", "medusa", "dflash"}:
        raise ExportError(
            f"{header.path.name} is a draft head ({arch}) that reads another model's hidden states: it cannot draft "
            "alone; use a small model, or a target whose file has its head inside (MTP)"
        )
