"""The whole way: a model and its drafter from the Hub to one folder of checked device files.

Everything is made in a folder beside the output that bears the request's fingerprint, each file whole or not at all;
a run that was interrupted finds there what is done. When all is there and verified, the folder takes the output's
name in one step.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from edgellm.export import manifest
from edgellm.export.check import fidelity
from edgellm.export.convert import conversion, engine_jobs, imatrix, trim
from edgellm.export.convert.conversion import CHOICES, Conversion
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.convert.script import Converter
from edgellm.export.convert.script import convert as convert_by
from edgellm.export.lora.adapter_export import Merging
from edgellm.export.manifest import Manifest, ManifestError
from edgellm.export.obtain.source import ModelSource, fingerprint, sha256_of
from edgellm.export.staging import ExportError, publish, staging_folder
from edgellm.memory import files as whole_files
from edgellm.memory.adapter import refuse_adapter
from edgellm.memory.gguf import read_header

Event = Mapping[str, Any]
SMALL_PARAMS = 1_500_000_000  # up to here an export is verified unless told otherwise
_UNCHECKED = "not compared with transformers, for its size or as asked: --verify compares it, in float32"


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
            "keep_vocab": (float, int), **dict.fromkeys(("keep_corpus", "draft_head", "imatrix", "converter"), str),
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


def export(request: Request, on_event: Callable[[Event], None]) -> Manifest:
    """Make the folder `request.output`, which appears at once when all is done.

    Args:
        on_event: called with {"event", "step", "file", ...} as the work goes on.

    Raises:
        ExportError: the output is taken, or options contradict each other.
        UnsupportedModel, CheckpointError, TokenizerError, EngineJobError, ManifestError: from the steps.
    """
    drafts = (request.options.draft_quants or request.options.quants) if request.draft else ()
    imatrix.refuse_without(request.options.quants, drafts, has_matrix=request.imatrix is not None)
    key = _key(request)
    return publish(request.output, key, lambda work: _make(request, work, key, on_event))


def reproduce(request: Request, locked: Manifest, on_event: Callable[[Event], None]) -> list[str]:
    """Make everything once more and compare with a manifest; what differs, in sentences. Empty: identical to the bit.

    Model files that the manifest's folder lacks are put there.
    """
    key = _key(request)
    with staging_folder(request.output, key) as work:
        made = _make(request, work, key, on_event)
        differences = _differences(locked.document, made)
        if not differences:
            for entry in made["files"]:
                if not (request.output / entry["path"]).exists():
                    whole_files.settle(work / entry["path"], request.output / entry["path"])
        shutil.rmtree(work)
    return differences


def _differences(locked: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    found = []
    for name in sorted({*locked["tools"], *made["tools"]}):
        before, now = locked["tools"].get(name), made["tools"].get(name)
        if before != now:
            found.append(f"{name} was {before} and is {now}")
    for role in ("target", "draft"):
        before, now = (((side.get(role) or {}).get("source") or {}).get("files", {}) for side in (locked, made))
        found += [
            f"the {role}'s {name} has changed" for name in sorted({*before, *now}) if before.get(name) != now.get(name)
        ]
    before, now = ({entry["path"]: entry["sha256"] for entry in side["files"]} for side in (locked, made))
    different = [f"{name} comes out otherwise" for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    adapters = [((side.get("target") or {}).get("adapter") or {}).get("source") for side in (locked, made)]
    found += ["the adapter has changed"] if adapters[0] != adapters[1] else []
    return found + different if different else []


def _key(request: Request) -> str:
    """What the bytes depend on. Local files by size and time: hashing gigabytes only to resume would cost more than
    it saves.
    """

    def stamp(source: ModelSource | None) -> Any:
        if source is None:
            return None
        files = [] if source.revision else [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in source.files()]
        return [source.name, source.repo, source.revision, files]

    parts: list[Any] = [asdict(request.options), stamp(request.target), stamp(request.draft), _tools(request)]
    return fingerprint(parts + ([request.merging.described()] if request.merging else []))


def _make(request: Request, work: Path, key: str, on_event: Callable[[Event], None]) -> dict[str, Any]:
    options, corpus = request.options, request.corpus
    for option, digest, path in (("corpus", options.keep_corpus, corpus), ("matrix", options.imatrix, request.imatrix)):
        if digest != (sha256_of(path) if path else None):
            raise ExportError(f"the export was made with another {option}: give the same one (sha256 {digest})")
    sources = {"target": request.target} | ({"draft": request.draft} if request.draft else {})
    files: list[dict[str, Any]] = []
    firsts: dict[str, Path] = {}  # the type of each role that is judged
    document: dict[str, Any] = {"key": key, "tools": _tools(request), "options": asdict(options), "plan": request.plan}
    for role, source in sources.items():
        quants = options.quants if role == "target" else (options.draft_quants or options.quants)
        step = _Step(role, source, work, on_event)
        found = None if source.is_gguf else _chosen(source, options, request.converter)
        script = request.converter if found and found.by != "own" else None
        remarks = found.remarks if found else ()
        for remark in remarks:
            step.say("remark", "convert", source.name, text=remark)
        merging = request.merging if role == "target" else None
        base = _merged(step, merging, quants) if merging else _base(step, found, script, quants)
        _refuse_foreign_heads(base)
        if role == "target" and request.imatrix:
            lacks = imatrix.check(request.imatrix, base, quants)
            for remark in lacks:
                step.say("remark", "quantise", source.name, text=remark)
            remarks = (*remarks, *lacks)
        trimmed: dict[str, Any] | None = None
        words: Path | None = None
        whole = base
        if role == "draft" and options.drop_layers:
            base = step.file("layers", partial(_drop_layers, base, options.drop_layers))
        if role == "draft" and options.keep_vocab is not None:
            base, trimmed, words = _trim(step, base, options, corpus)
        paths = {
            quant: _quantised(step, base, quant, request.imatrix, None)
            if role == "target"
            else _quantised(step, base, quant, None, options.draft_head)
            for quant in quants
        }
        files += [
            manifest.file_entry(path, role=role, quant=quant, n_params=read_header(path).n_params)
            for quant, path in paths.items()
        ]
        files += [manifest.file_entry(words, role="words")] if words else []
        described = _described(source, base)
        checked: dict[str, Any] | None = None
        firsts[role] = next(iter(paths.values()))
        is_small = described["n_params"] <= SMALL_PARAMS or (found is not None and found.is_doubtful)
        wants_proof = request.verify or (request.verify is None and is_small)
        if script and not wants_proof:
            remarks = (*remarks, _UNCHECKED)
            step.say("remark", "verify", source.name, text=_UNCHECKED)
            if request.verify is None:
                checked = {"tokens": fidelity.check_tokens(source.path, whole), "logits": _UNCHECKED}
                engine_jobs.generate(whole, fidelity.TEXT[:40], 1)  # what the script writes, llama.cpp may not load
        if wants_proof:
            step.say("start", "verify", source.name)
            is_whole = whole == base
            of_model = partial(fidelity.verification, python=script.python if script else None)
            check = partial(merging.verified, work=work) if merging else of_model
            checked = check(source, base if is_whole else whole, paths if is_whole else {})
            step.say("done", "verify", source.name)
        if role == "draft" and request.tabulate:
            files.append(_tabulated(step, request.tabulate, firsts["target"], firsts["draft"]))
        if role == "draft" and request.judge:
            step.say("start", "judge", source.name)
            measure = bool(checked and document["target"]["verification"])
            pair = {"exported": request.judge(firsts["target"], firsts["draft"], measure=measure)}
            if whole != base:
                pair["before"] = request.judge(firsts["target"], _before(step, whole, quants[0]), measure=measure)
            document["pair"] = pair
            step.say("done", "judge", source.name)
        converter = {"by": found.by, **(script.facts() if script else {})} if found else None
        described |= {"adapter": merging.described()} if merging else {}
        document[role] = described | {
            "converter": converter,
            "remarks": list(remarks),
            "trimmed": trimmed,
            "verification": checked,
        }
        for path in {base, whole} - set(paths.values()):
            if path.parent == work and path.name not in {entry["path"] for entry in files}:
                path.unlink(missing_ok=True)
    keep = {entry["path"] for entry in files}
    for path in work.iterdir():
        if path.name not in keep:
            path.unlink()
    return document | {"files": files}


@dataclass(frozen=True, slots=True)
class _Step:
    """Where the files of one role go, and who is told of it."""

    role: str
    source: ModelSource
    work: Path
    on_event: Callable[[Event], None]

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


def _chosen(source: ModelSource, options: Options, converter: Converter | None) -> Conversion:
    """Who converts a checkpoint, by the options that the export is repeated with."""
    choice = next((choice for choice in CHOICES if choice == options.converter), None)
    given = sha256_of(converter.script) if converter and not converter.is_pinned else None
    if given != (options.converter if choice is None else None):
        raise ExportError("the export was made with another script: give the same one with --converter PATH")
    if given is not None:
        return conversion.by_script(source.path)
    return conversion.choose(source.path, choice)


def _tools(request: Request) -> dict[str, str]:
    tools = manifest.tools()
    return tools | {"llama.cpp's converter": request.converter.version} if request.converter else tools


def _base(step: _Step, found: Conversion | None, script: Converter | None, quants: tuple[str, ...]) -> Path:
    """The model unquantised, or the GGUF file that was named."""
    if found is None:
        return step.source.path
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


def _merged(step: _Step, merging: Merging, quants: tuple[str, ...]) -> Path:
    kind = "BF16" if "BF16" in quants else "F16"
    return step.file(kind, lambda path: merging.write(step.source, path, kind, step.counter("merge", path)), "merge")


def _quantised(step: _Step, base: Path, quant: str, matrix: Path | None, head: str | None) -> Path:
    own = read_header(base).quantisation
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
            requantise=own not in {"F16", "F32", "BF16"},
            on_tensor=step.counter("quantise", path),
        )

    return step.file(quant, quantise, "quantise")


def _before(step: _Step, whole: Path, quant: str) -> Path:
    """The drafter that was made smaller, in the type of the one that came out, to compare them."""
    own = read_header(whole).quantisation
    if own == quant:
        return whole
    requantise = own not in {"F16", "F32", "BF16"}
    return step.file("before", lambda path: engine_jobs.quantise(whole, path, quant, requantise=requantise), "quantise")


def _tabulated(step: _Step, tabulate: Tabulator, target: Path, draft: Path) -> dict[str, Any]:
    """The entry of the pair's table, which holds for every type: quantising leaves vocabularies alone."""

    def make(path: Path) -> None:
        whole_files.write(path, tabulate(target, draft))

    return manifest.file_entry(step.made(step.work / f"draft-{step.source.name}.pair", make, "table"), role="table")


def _drop_layers(base: Path, layers: tuple[int, ...], path: Path) -> None:
    header = read_header(base)
    n_layers = int(header.hparam("block_count", 0))
    if not set(layers) < set(range(n_layers)):
        raise ExportError(f"--drop-layers {','.join(map(str, layers))}: the model has layers 0 to {n_layers - 1}")
    engine_jobs.drop_layers(base, path, layers)


def _trim(step: _Step, base: Path, options: Options, corpus: Path | None) -> tuple[Path, dict[str, Any], Path | None]:
    """The trimmed model, figures for the manifest, and the file that it reads with."""
    assert options.keep_vocab is not None
    kept = trim.choose(base, options.keep_vocab, corpus.read_text(encoding="utf-8") if corpus else "")
    words: Path | None = None
    if not options.trim_input:
        words = step.path("words")
        if not words.exists():
            whole = step.file("whole", lambda path: _as_q8(base, path), "quantise")
            if not trim.write_words(whole, words, kept):
                words = None
            whole.unlink()
    path = step.file("trimmed", lambda path: trim.trim_vocabulary(base, path, kept), "trim")
    header = read_header(base)
    n_vocab_before = int(header.metadata["tokenizer.ggml.tokens"].n_items)
    return path, {"n_vocab": len(kept), "n_vocab_before": n_vocab_before}, words


def _as_q8(base: Path, path: Path) -> None:
    own = read_header(base).quantisation
    engine_jobs.quantise(base, path, "Q8_0", requantise=own not in {"F16", "F32", "BF16"})


def _described(source: ModelSource, base: Path) -> dict[str, Any]:
    header = read_header(base)
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


def _refuse_foreign_heads(base: Path) -> None:
    header = read_header(base)
    refuse_adapter(header)
    arch = header.architecture
    if arch in {"eagle3", "medusa", "dflash"}:
        raise ExportError(
            f"{base.name} is a draft head ({arch}) that reads another model's hidden states: it cannot draft alone; "
            "use a small model, or a target whose file has its head inside (MTP)"
        )
