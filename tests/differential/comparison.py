"""transformers on one side, an export in llama.cpp on the other: what became of each variant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import small_tokenizer
from variants import Variant

from edgellm.cli._errors import exit_code, sentence
from edgellm.export.check.reference import NoReference, reference_logits
from edgellm.export.convert.dtypes import FloatType
from edgellm.export.convert.hf_to_gguf import examine, to_gguf
from edgellm.memory.children import ChildFailed, answers

# Of a row of logits, by length. llama.cpp rounds activations to half precision where it multiplies by such weights, and
# has a table for Gemma's GELU.
LIMITS = {"F32": 0.005, "F16": 0.02}
MAX_REFERENCE_ERROR = 1e-3
_CHILD = Path(__file__).with_name("transformers_child.py")


class TransformersChild:
    """A process of the other environment that answers jobs one by one; started again where it died."""

    def __init__(self, python: Path, log: Path) -> None:
        self._python, self._log = python, log.open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, **job: Any) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            command = [str(self._python), "-I", str(_CHILD)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=_plain_environment()
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            return {"refused": f"transformers' process ended with {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
        self._log.close()


def _plain_environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(slots=True)
class Result:
    """What became of one variant."""

    variant: Variant
    float_type: FloatType
    outcome: str = ""  # "right", "refused", "WRONG", or "no truth": transformers does not run it
    why: str = ""
    error: float = 0.0
    reference: str = ""  # what the check's own reading says against transformers


def compare(
    variants: Sequence[Variant], python: Path, folder: Path, *, batch: int = 32, with_reference: bool = True
) -> Iterator[Result]:
    """Each variant's fate, in order; few checkpoints are on disk at once."""
    child = TransformersChild(python, folder / "transformers.log")
    try:
        for first in range(0, len(variants), batch):
            results = []
            for number, variant in enumerate(variants[first : first + batch], first):
                result = Result(variant, "F16" if number % 5 == 4 else "F32")
                results.append(result)
                _made_and_exported(result, folder / f"v{number}", child)
                if with_reference and result.outcome != "no truth":
                    result.reference = _reference(folder / f"v{number}")
            _run_engine([folder / f"v{first + i}" for i, result in enumerate(results) if not result.outcome])
            for number, result in enumerate(results, first):
                if not result.outcome:
                    _judge(result, folder / f"v{number}")
                shutil.rmtree(folder / f"v{number}", ignore_errors=True)
                yield result
    finally:
        child.close()


def _made_and_exported(result: Result, folder: Path, child: TransformersChild) -> None:
    variant = result.variant
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(variant.config))
    told = asdict(variant)
    how = {key: told[key] for key in ("seed", "dtype", "n_shards", "format", "head", "prefix")}
    answer = child.ask(job="made", folder=str(folder), n_tokens=variant.n_tokens, **how)
    if "refused" in answer:
        result.outcome, result.why = "no truth", answer["refused"]
    small_tokenizer(folder)
    try:
        # What is refused is refused before weights are there, where they have nothing to do with it.
        remarks = examine(folder)
        if result.outcome != "no truth":
            to_gguf(folder, folder / "model.gguf", float_type=result.float_type)
            result.why = "; ".join(remarks)
    except Exception as error:
        told = sentence(error).replace(str(folder), "MODEL") if exit_code(error) else ""
        if result.outcome == "no truth" and told:
            result.why += f" | ours: {told}"
        elif told:
            result.outcome, result.why = "refused", told
        else:
            result.outcome, result.why = "WRONG", f"traceback: {error!r}"


def _reference(folder: Path) -> str:
    expected, tokens = np.load(folder / "logits.npy"), np.load(folder / "tokens.npy").tolist()
    try:
        found = reference_logits(folder, tokens)
    except NoReference as error:
        return f"unknown: {error}"
    error = _worst(found, expected)
    return "same" if error < MAX_REFERENCE_ERROR else f"OTHER: {error:.3g}"


def _run_engine(folders: list[Path]) -> None:
    left = list(folders)
    while left:
        try:
            for event in answers("engine_child", {"folders": [str(folder) for folder in left]}, timeout_s=600):
                folder = Path(event["done"])
                left.remove(folder)
                if "failed" in event:
                    (folder / "failed").write_text(event["failed"])
        except ChildFailed as error:
            if left:
                (left.pop(0) / "failed").write_text(str(error))


def _judge(result: Result, folder: Path) -> None:
    if (folder / "failed").exists():
        result.outcome, result.why = "WRONG", (folder / "failed").read_text()
        return
    found, expected = np.load(folder / "found.npy"), np.load(folder / "logits.npy")
    if len(found) > len(expected) or found.shape[1:] != expected.shape[1:]:
        result.outcome, result.why = "WRONG", f"shape {found.shape}, not {expected.shape}"
        return
    result.error = _worst(found, expected[: len(found)])
    result.outcome = "right" if result.error < LIMITS[result.float_type] else "WRONG"


def _worst(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return float("inf")
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(np.where(np.isnan(errors), np.inf, errors).max())


def table(results: Sequence[Result]) -> str:
    """Families by outcome, in Markdown."""
    families = list(dict.fromkeys(result.variant.family for result in results))
    counts = Counter((result.variant.family, result.outcome) for result in results)
    lines = ["| family | right | refused | wrong |", "|---|---|---|---|"]
    for family in [*families, "all"]:
        cells = [
            sum(n for (name, what), n in counts.items() if family in (name, "all") and what == outcome)
            for outcome in ("right", "refused", "WRONG")
        ]
        lines.append(f"| {family} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def refusals(results: Sequence[Result]) -> list[tuple[int, str, list[str]]]:
    """(how often, sentence, some of the variants) of each distinct refusal, the commonest first."""
    by_sentence: dict[str, list[str]] = {}
    for result in results:
        if result.outcome == "refused":
            by_sentence.setdefault(result.why, []).append(f"{result.variant.family} {', '.join(result.variant.facts)}")
    return sorted(((len(who), why, who[:3]) for why, who in by_sentence.items()), reverse=True)
