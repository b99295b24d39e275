"""What an export is asked for, which of its four ways that is, and which options each way takes.

An option that would have no effect is refused in one sentence, from one table, before anything is fetched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.memory.split import model_name

# A checkpoint or GGUF file to GGUF; a checkpoint to ONNX; an adapter (LoRA) to GGUF; an adapter and its base to GGUF.
Way = Literal["gguf", "onnx", "adapter", "merge"]
WAYS: tuple[Way, ...] = ("gguf", "onnx", "adapter", "merge")
DEFAULT_QUANT = "Q4_K_M"
DEFAULT_ONNX_QUANT = "int4"


class BadOption(EdgellmError, ValueError):
    """An option without effect, or a value that it does not take; the message says what to write instead."""

    exit_code = USAGE


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What was asked, each field as it was typed. The defaults ask for nothing."""

    model: str
    format: str = "gguf"
    output: Path | None = None
    draft: str | None = None
    quant: str | None = None  # types, with commas
    draft_quant: str | None = None
    adapter: Path | None = None  # what the drafter learnt of its target
    mem: str | None = None  # of the device that the type is chosen for, as in 6GB
    ctx: int | None = None  # tokens that `mem` plans for; N_CTX if None
    trim_vocab: float | None = None  # share of the drafter's vocabulary that is kept
    trim_corpus: Path | None = None
    trim_input: bool = False
    drop_layers: str | None = None  # of the drafter, as in 4,8-11
    draft_head: str | None = None
    imatrix: Path | None = None
    converter: str | None = None
    base: str | None = None
    merge: bool = False
    exporter: str = "builder"
    exporter_python: Path | None = None
    locked: bool = False
    verify: bool | None = None  # None: small models
    revision: str | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class _Rule:
    """Where an option has an effect."""

    ways: Collection[Way]
    needs: str | None = None  # the option without which it has none; a repeated export has it from the manifest
    excludes: str | None = None  # the option that decides in its place
    locked: bool = True  # also where an export is repeated, whose manifest says the rest


_TO_GGUF: tuple[Way, ...] = ("gguf", "merge")
_MODELS: tuple[Way, ...] = ("gguf", "onnx", "merge")
_MERGE: Way = "merge"
_ONNX: Way = "onnx"
# --token, --yes, --json and --jsonl are no wishes about the result: they are credentials, consent, and forms of talk,
# and go with everything, like the request's own `model`, `output` and `format`.
RULES: Mapping[str, _Rule] = {  # each behind what it hangs on
    "locked": _Rule(("gguf", "adapter", "merge")),
    "draft": _Rule(_MODELS),
    "quant": _Rule(WAYS, excludes="mem", locked=False),
    "draft_quant": _Rule(_MODELS, needs="draft", locked=False),
    "adapter": _Rule(_MODELS, needs="draft"),
    "mem": _Rule(_TO_GGUF, locked=False),
    "ctx": _Rule(_TO_GGUF, needs="mem", locked=False),
    "trim_vocab": _Rule(_TO_GGUF, needs="draft", locked=False),
    "trim_corpus": _Rule(_TO_GGUF, needs="trim_vocab"),
    "trim_input": _Rule(_TO_GGUF, needs="trim_vocab", locked=False),
    "drop_layers": _Rule(_TO_GGUF, needs="draft", locked=False),
    "draft_head": _Rule(_TO_GGUF, needs="draft", locked=False),
    "imatrix": _Rule(_TO_GGUF),
    "converter": _Rule(_TO_GGUF),
    "base": _Rule(("adapter", "merge")),
    "merge": _Rule((_MERGE,)),
    "exporter": _Rule((_ONNX,)),
    "exporter_python": _Rule(_MODELS),
    "verify": _Rule(WAYS, locked=False),
    "revision": _Rule(WAYS, locked=False),
}
EVERYWHERE = frozenset({"model", "format", "output", "token", "yes", "json_", "jsonl"})


def way_of(request: ExportRequest) -> Way:
    """Which way an export goes, as far as the request and this disk tell: a repository may turn out to be an adapter.

    Raises:
        BadOption: no known format.
    """
    from edgellm.export.lora.adapter_source import is_adapter

    if request.format not in ("gguf", "onnx"):
        raise BadOption(f"--format {request.format}: take gguf or onnx")
    if request.format == "onnx":
        return "onnx"
    if request.merge:
        return "merge"
    return "adapter" if request.base or is_adapter(request.model) else "gguf"


def settled(request: ExportRequest, way: Way, typed: Collection[str] | None = None) -> ExportRequest:
    """The request as that way takes it: what has no effect is refused if it was typed, and else left out.

    Args:
        typed: names of the fields that were asked for in this very call, and not by the environment for all of them.
            None: all that differ from their defaults.

    Raises:
        BadOption: the first one that has no effect, and what it goes with.
    """
    given = {name for name in RULES if getattr(request, name) != _DEFAULTS[name]}
    asked = frozenset(given if typed is None else typed)
    for name, rule in RULES.items():
        if rule.excludes in given - asked and name in asked:  # what was typed counts before what is always set
            given.remove(rule.excludes)
    for name, rule in RULES.items():
        if name not in given | asked:
            continue
        why = _why_idle(name, rule, request, way, given)
        if why is not None and name in asked:
            raise BadOption(why)
        if why is not None:
            given.discard(name)
    return replace(request, **{name: _DEFAULTS[name] for name in RULES if name not in given})


def _why_idle(name: str, rule: _Rule, request: ExportRequest, way: Way, given: Collection[str]) -> str | None:
    """Why an option has no effect, in a sentence; None where it has one."""
    word = option(name)
    if way not in rule.ways:
        if rule.ways == (_ONNX,):
            return f"{word} goes with --format onnx"
        if way == "adapter":
            return f"{word} does not go with an adapter; with --merge it goes with the model"
        return f"{word} goes with --format gguf"
    if way == "onnx" and name == "draft" and request.draft == "self":
        return "--draft self goes with --format gguf"
    if name == "adapter" and request.draft == "self":
        return "--adapter is of a drafter of its own: name that one with --draft"
    if way == "merge" and name == "converter" and request.converter != "own":
        return "--merge goes with edgellm's own converter: leave --converter out"
    if request.locked and "locked" in given:
        told = "which makes again what the manifest in --output tells of"
        return None if rule.locked else f"{word} does not go with --locked, {told}"
    if rule.needs is not None and rule.needs not in given:
        remedy = ": name the drafter that it is of" if rule.needs == "draft" else ""
        return f"{word} has no effect without {option(rule.needs)}{remedy}"
    if rule.excludes in given:
        return f"{word} does not go with {option(str(rule.excludes))}, which chooses in its place"
    return _why_no_revision(request.model) if name == "revision" else None


def _why_no_revision(model: str) -> str | None:
    from edgellm.export.obtain import naming

    path = Path(model).expanduser()
    if path.is_file() or any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        return f"--revision is of a repository's checkpoint, and {model} lies on this disk"
    with contextlib.suppress(naming.BadReference):
        parsed = naming.parse(model)
        if parsed.quant or parsed.path:
            return f"--revision is of a repository's checkpoint, and {model} names a GGUF file"
    return None


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(ExportRequest)}


def option(name: str) -> str:
    """A field as it is typed."""
    return "--" + name.strip("_").replace("_", "-")


def gguf_types(text: str, *, also: Sequence[str] = ()) -> tuple[str, ...]:
    """Types of llama.cpp, as in Q4_K_M,Q8_0.

    Args:
        also: further ones, which are not quantised to.

    Raises:
        BadOption: there is no such type.
    """
    from edgellm.export.convert.engine_jobs import QUANTS

    types = _words(text.upper())
    for name in types:
        if name not in (*QUANTS, *also):
            raise BadOption(f"{name} is no type of llama.cpp; among them are Q4_K_M, Q4_0, Q5_K_M, Q6_K, Q8_0, F16")
    return types


def onnx_types(text: str) -> tuple[str, ...]:
    from edgellm.export.onnx.onnx_export import QUANTS

    types = _words(text.lower())
    for name in types:
        if name not in QUANTS:
            raise BadOption(f"{name} is no type of ONNX export; take {', '.join(QUANTS)}")
    return types


def adapter_types(text: str | None) -> tuple[str, ...]:
    from edgellm.export.lora.lora_gguf import TYPES

    types = _words((text or TYPES[0]).upper())
    for name in types:
        if name not in TYPES:
            raise BadOption(f"an adapter is written as {', '.join(TYPES)}, and not as {name}")
    return types


def head_type(text: str | None) -> str | None:
    """Of the last matrix."""
    from edgellm.export.convert.engine_jobs import HEADS

    if text and text.upper() not in HEADS:
        raise BadOption(f"{text} is no type for a matrix: take one of {', '.join(HEADS)}")
    return text.upper() if text else None


def layers(text: str | None) -> tuple[int, ...]:
    """Numbers and ranges, as in 4,8-11."""
    found: set[int] = set()
    for word in filter(None, (text or "").split(",")):
        first, dash, last = word.partition("-")
        try:
            found |= set(range(int(first), int(last if dash else first) + 1))
        except ValueError as error:
            raise BadOption(f"--drop-layers {text}: write numbers and ranges, as in 4,8-11") from error
    return tuple(sorted(found))


def folder_name(model: str) -> str:
    """What the output is named after: `user/repo:Q8_0` gives `repo`, and `.` the folder's own name."""
    path = Path(model).expanduser()
    named = path.name.partition(":")[0]
    name = path.resolve().name if path.is_dir() else model_name(Path(named)) if named.endswith(".gguf") else named
    return name or "model"


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
