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
from typing import Any

from edgellm.export import manifest, model_files
from edgellm.export.check import fidelity
from edgellm.export.convert import engine_jobs, imatrix
from edgellm.export.convert.conversion import Conversion
from edgellm.export.convert.script import Converter
from edgellm.export.manifest import Manifest
from edgellm.export.model_files import Step
from edgellm.export.obtain.source import ModelSource, fingerprint
from edgellm.export.request import SMALL_PARAMS, Event, Request
from edgellm.export.staging import ExportError, publish, staging_folder
from edgellm.memory import files as whole_files
from edgellm.memory.files import sha256_of

_UNCHECKED = "not compared with transformers, for its size or as asked: --verify compares it, in float32"


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
    parts += [merged.described() for merged in (request.merging, request.adapted) if merged is not None]
    return fingerprint(parts)


def _make(request: Request, work: Path, key: str, on_event: Callable[[Event], None]) -> dict[str, Any]:
    _refuse_other_inputs(request)
    options = request.options
    sources = {"target": request.target} | ({"draft": request.draft} if request.draft else {})
    files: list[dict[str, Any]] = []
    firsts: dict[str, Path] = {}  # the type of each role that is judged
    document: dict[str, Any] = {"key": key, "tools": _tools(request), "options": asdict(options), "plan": request.plan}
    for role, source in sources.items():
        step = Step(role, source, work, on_event)
        quants = options.quants if role == "target" else (options.draft_quants or options.quants)
        base = _based(step, request, quants)
        matrix, head = (request.imatrix, None) if role == "target" else (None, options.draft_head)
        paths = {quant: model_files.quantised(step, base.cut, quant, matrix, head) for quant in quants}
        files += [
            manifest.file_entry(path, role=role, quant=quant, n_params=step.header(path).n_params)
            for quant, path in paths.items()
        ]
        files += [manifest.file_entry(base.words, role="words")] if base.words else []
        firsts[role] = next(iter(paths.values()))
        described = model_files.described(source, step.header(base.cut))
        checked, remarks = _checked(step, request, base, paths, described["n_params"])
        if role == "draft":
            files += _tabulated(step, request, firsts)
            measure = bool(checked and document["target"]["verification"])
            document |= _judged(step, request, base, firsts, quants[0], measure=measure)
        document[role] = {
            **described,
            **({"adapter": request.merging.described()} if request.merging and role == "target" else {}),
            **({"adapter": request.adapted.described()} if request.adapted and role == "draft" else {}),
            "converter": base.converter(),
            "remarks": [*base.remarks, *remarks],
            "trimmed": base.trimmed,
            "verification": checked,
        }
        for path in {base.cut, base.whole} - set(paths.values()):
            if path.parent == work and path.name not in {entry["path"] for entry in files}:
                path.unlink(missing_ok=True)
    keep = {entry["path"] for entry in files}
    for path in work.iterdir():
        if path.name not in keep:
            path.unlink()
    return document | {"files": files}


def _refuse_other_inputs(request: Request) -> None:
    """Files that the options name by their hash must be the same ones."""
    options = request.options
    adapter = request.adapted.adapter.path if request.adapted else None
    named = (
        ("corpus", options.keep_corpus, request.corpus),
        ("matrix", options.imatrix, request.imatrix),
        ("adapter", options.draft_adapter, adapter),
    )
    for option, digest, path in named:
        if digest != (sha256_of(path) if path else None):
            raise ExportError(f"the export was made with another {option}: give the same one (sha256 {digest})")


@dataclass(frozen=True, slots=True)
class _Base:
    """What a model's types are quantised from, and how it came about."""

    whole: Path  # unquantised, or the GGUF file that was named
    cut: Path  # the same made smaller, where that was asked
    found: Conversion | None = None  # None: nothing was converted
    script: Converter | None = None  # that converted it, where edgellm's own did not
    remarks: tuple[str, ...] = ()
    trimmed: dict[str, Any] | None = None
    words: Path | None = None  # what a trimmed model reads with

    @property
    def is_doubtful(self) -> bool:
        return self.found is not None and self.found.is_doubtful

    def converter(self) -> dict[str, Any] | None:
        """Who converted it, for the manifest."""
        return {"by": self.found.by, **(self.script.facts() if self.script else {})} if self.found else None


def _based(step: Step, request: Request, quants: tuple[str, ...]) -> _Base:
    source, options = step.source, request.options
    found = None if source.is_gguf else model_files.chosen(source, options, request.converter)
    script = request.converter if found and found.by != "own" else None
    remarks = found.remarks if found else ()
    for remark in remarks:
        step.say("remark", "convert", source.name, text=remark)
    if step.role == "target" and request.merging:
        whole = model_files.merged(step, request.merging, quants)
    elif step.role == "draft" and request.adapted:
        whole = step.file("adapted", request.adapted.write, "merge")
        remarks = (*remarks, *filter(None, map(request.adapted.remark, quants)))
        for remark in remarks:
            step.say("remark", "quantise", source.name, text=remark)
    else:
        whole = model_files.unquantised(step, found, script, quants)
    model_files.refuse_foreign_heads(step.header(whole))
    if step.role == "target":
        lacks = imatrix.check(request.imatrix, step.header(whole), quants) if request.imatrix else []
        for remark in lacks:
            step.say("remark", "quantise", source.name, text=remark)
        return _Base(whole, whole, found, script, (*remarks, *lacks))
    cut = model_files.without_layers(step, whole, options.drop_layers) if options.drop_layers else whole
    trimmed, words = None, None
    if options.keep_vocab is not None:
        cut, trimmed, words = model_files.trimmed(step, cut, options, request.corpus)
    return _Base(whole, cut, found, script, remarks, trimmed, words)


def _checked(
    step: Step, request: Request, base: _Base, paths: Mapping[str, Path], n_params: int
) -> tuple[dict[str, Any] | None, list[str]]:
    """What comparing a model with its checkpoint says, for the manifest, and remarks on what was not compared."""
    source, remarks = step.source, []
    checked: dict[str, Any] | None = None
    wants_proof = request.verify or (request.verify is None and (n_params <= SMALL_PARAMS or base.is_doubtful))
    if base.script and not wants_proof:
        remarks.append(_UNCHECKED)
        step.say("remark", "verify", source.name, text=_UNCHECKED)
        if request.verify is None:
            checked = {"tokens": fidelity.check_tokens(source.path, base.whole), "logits": _UNCHECKED}
            engine_jobs.generate(base.whole, fidelity.TEXT[:40], 1)  # what the script writes, llama.cpp may not load
    if wants_proof:
        step.say("start", "verify", source.name)
        if step.role == "target" and request.merging:
            check = partial(request.merging.verified, work=step.work)
        else:
            check = partial(fidelity.verification, python=base.script.python if base.script else None)
        checked = check(source, base.whole, paths if base.whole == base.cut else {})
        step.say("done", "verify", source.name)
    return checked, remarks


def _tabulated(step: Step, request: Request, firsts: Mapping[str, Path]) -> list[dict[str, Any]]:
    if request.tabulate is None:
        return []
    return [model_files.tabulated(step, request.tabulate, firsts["target"], firsts["draft"])]


def _judged(
    step: Step, request: Request, base: _Base, firsts: Mapping[str, Path], quant: str, *, measure: bool
) -> dict[str, Any]:
    """How well a drafter fits, and how well it did before it was made smaller; nothing where nobody judges."""
    if request.judge is None:
        return {}
    step.say("start", "judge", step.source.name)
    pair = {"exported": request.judge(firsts["target"], firsts["draft"], measure=measure)}
    if base.whole != base.cut:
        before = model_files.before_cutting(step, base.whole, quant)
        pair["before"] = request.judge(firsts["target"], before, measure=measure)
    step.say("done", "judge", step.source.name)
    return {"pair": pair}


def _tools(request: Request) -> dict[str, str]:
    tools = manifest.tools()
    return tools | {"llama.cpp's converter": request.converter.version} if request.converter else tools
