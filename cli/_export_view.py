"""What `edgellm export`, `verify` and `bundle` say: steps as they come, and what a folder holds in the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgellm.cli._output import out
from edgellm.cli._variables import is_typed

if TYPE_CHECKING:
    from edgellm.app.exporting import Exported
    from edgellm.export.manifest import Manifest


def typed(context: typer.Context) -> frozenset[str]:
    """Parameters that this command line names, by their fields; what the environment sets is not among them."""
    return frozenset(name.strip("_") for name in context.params if is_typed(context, name))


@contextmanager
def usage() -> Iterator[None]:
    """An option that does not fit is told as the command line tells of its own: with its usage, exit code 2."""
    from edgellm.app.export_options import BadOption

    try:
        yield
    except BadOption as error:
        raise typer.BadParameter(str(error)) from error


def consent(*, yes: bool) -> Callable[[str], bool]:
    """Who answers whether something large is installed: --yes, a person at a terminal, or nobody."""

    def ask(question: str) -> bool:
        if yes:
            out.note(question.removesuffix("; create it?"))
            return True
        return sys.stdin.isatty() and typer.confirm(question, err=True)

    return ask


class Watch:
    """Steps as they come: lines of JSON on stdout, or talk on stderr."""

    def __init__(self, jsonl: bool) -> None:
        self._jsonl = jsonl
        self._quarter, self._told_s = 0, 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self._jsonl:
            return out.jsonl(dict(event))
        if event["event"] == "remark":
            out.note(f"{event['role']}: {event['text']}")
        elif event["event"] == "start":
            self._quarter, self._told_s = 0, time.monotonic()
            out.note(f"{event['role']}: {event['step']} {event['file']}")
        elif event["event"] == "resumed":
            out.note(f"{event['role']}: {event['file']} is there from an earlier run")
        elif event["event"] == "progress":
            self._show_progress(event)

    def _show_progress(self, event: Mapping[str, Any]) -> None:
        """Each quarter of a step: said where the step takes long, else only to the curious."""
        quarter = 4 * event["done"] // max(event["total"], 1)
        if quarter == self._quarter:
            return
        self._quarter = quarter
        is_slow = time.monotonic() - self._told_s > 5
        self._told_s = time.monotonic()
        (out.note if is_slow else out.detail)(f"{event['role']}: {event['step']} {quarter * 25} % of {event['file']}")


def show_export(done: Exported, *, json_: bool, jsonl: bool) -> None:
    """What was made; of an export that was repeated, that it is the same, and with --json what it is."""
    if not done.is_repeated:
        return show(done.manifest, done.folder, json_=json_, jsonl=jsonl)
    if json_:
        out.json(done.manifest.document)
    out.note("identical to the bit")


def show(made: Manifest, folder: Path, *, json_: bool, jsonl: bool = False) -> None:
    """The manifest, one line that ends a stream of steps, or a table of files and what is known of them."""
    if json_:
        out.json(made.document)
    elif jsonl:
        return out.jsonl({"event": "finished", "folder": str(folder), "files": list(made.files())})
    else:
        _tabulate(made, folder)
    for sentence in _of_adapter(made):
        out.note(sentence)


def _tabulate(made: Manifest, folder: Path) -> None:
    from edgellm.memory.units import format_bytes

    rows = [
        (entry["role"], entry["path"], format_bytes(entry["n_bytes"]), entry["sha256"][:12]) for entry in made.files()
    ]
    out.table(["role", "file", "size ", "sha256"], rows)
    for role in ("target", "draft"):
        for sentence in _of_model(role, made.document.get(role) or {}):
            out.note(sentence)
    for sentence in _of_pair(made):
        out.note(sentence)
    out.note(f"in {folder}")


def _of_model(role: str, told: Mapping[str, Any]) -> Iterator[str]:
    """How a model compares with its checkpoint, as far as it was compared."""
    checked = told.get("verification") or {}
    for quant, found in checked.items():
        if isinstance(found, dict) and {"top1", "n_tokens", "perplexity"} <= set(found):
            both = found["perplexity"]
            yield (
                f"{role} {quant}: the checkpoint's token at {found['top1']:.2%} of {found['n_tokens']:,} places, "
                f"perplexity {both['exported']:g} against {both['checkpoint']:g}"
            )
    if isinstance(checked.get("logits"), dict) and {"max_relative_error", "n_tokens"} <= set(checked["logits"]):
        error, n_tokens = checked["logits"]["max_relative_error"], checked["logits"]["n_tokens"]
        yield f"{role}: logits of {n_tokens} tokens within {error:.2g} of the checkpoint's"
    if isinstance(checked.get("perplexity"), dict):
        yield f"{role}: perplexity " + ", ".join(f"{name} {value:g}" for name, value in checked["perplexity"].items())
    if head := told.get("draft_head_layers"):
        yield f"{role}: the file carries a draft head of its own ({head} layers), which is kept"


def _of_pair(made: Manifest) -> Iterator[str]:
    for name, facts in (made.document.get("pair") or {}).items():
        if "shared_of_target" in facts:
            measured = f", takes {facts['acceptance']:.0%} of its drafts" if "acceptance" in facts else ""
            shared = f"{facts['shared_of_target']:.0%} of the target's tokens are the drafter's too"
            yield f"pair, {name}: {shared}{measured}"


def _of_adapter(made: Manifest) -> Iterator[str]:
    """How an adapter's files compare with the merged checkpoint."""
    told = made.document.get("lora")
    proof = told.get("verification") if isinstance(told, dict) else None
    for name, facts in proof.items() if isinstance(proof, dict) else ():
        if isinstance(facts, dict) and {"max_relative_error", "n_tokens"} <= set(facts):
            error, n_tokens = facts["max_relative_error"], facts["n_tokens"]
            yield f"lora {name}: logits of {n_tokens} tokens within {error:.2g} of the merged checkpoint's"
