"""Every export is right or refused: configurations and tokenizers by the hundred against transformers' own results."""

from __future__ import annotations

import ast
import os
import random
from pathlib import Path

import pytest
from comparison import Result, TransformersChild, compare, refusals, table
from texts import texts
from tokenizing import Cuts, compare_tokenizer
from variants import paired_variants, single_variants

pytestmark = pytest.mark.differential

N_PAIRS = int(os.environ.get("EDGELLM_TEST_PAIRS", "300"))
SEED = int(os.environ.get("EDGELLM_TEST_SEED", "1"))
N_TEXTS = int(os.environ.get("EDGELLM_TEST_TEXTS", "5000"))  # a tokenizer
N_VARIANTS = int(os.environ.get("EDGELLM_TEST_VARIANTS", "0"))  # by chance; 0: all of them
LEAST_COMPARED = 0.75  # of the variants: transformers itself runs so many
_MAKERS = Path(__file__).with_name("tokenizer_makers.py")


def test_no_configuration_is_exported_wrongly(tmp_path: Path, transformers_python: Path, tables: Path | None) -> None:
    variants = [*single_variants(), *paired_variants(N_PAIRS, SEED)]
    if N_VARIANTS:
        variants = random.Random(SEED).sample(variants, N_VARIANTS)
    results = [result for result in compare(variants, transformers_python, tmp_path) if result.outcome != "no truth"]
    if tables is not None:
        lines = [f"{n} x {why}  ({'; '.join(who)})" for n, why, who in refusals(results)]
        (tables / "configurations.md").write_text("\n".join([table(results), "", *lines, ""]))
    assert [told(result) for result in results if result.outcome == "WRONG"] == []
    assert [told(result) for result in results if result.reference.startswith("OTHER")] == []
    assert len(results) >= LEAST_COMPARED * len(variants)


def told(result: Result) -> str:
    facts = ", ".join(result.variant.facts)
    return f"{result.variant.family} {facts} ({result.float_type}): {result.error:.3g} {result.why} {result.reference}"


def maker_names() -> list[str]:
    """Read, not imported: this Python need not have sentencepiece."""
    for node in ast.parse(_MAKERS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "MAKERS":
            assert isinstance(node.value, ast.Dict)
            return [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]
    raise AssertionError("no MAKERS")


def test_no_tokenizer_is_exported_wrongly(tmp_path: Path, child: TransformersChild, tables: Path | None) -> None:
    tried = texts(N_TEXTS)
    found: list[Cuts] = []
    for name in maker_names():
        found.append(compare_tokenizer(name, tried, tmp_path / name, child))
    if tables is not None:
        rows = [f"| {c.name} | {c.outcome} | {c.n_sequences} | {c.n_told} | {c.n_wrong} | {c.why} |" for c in found]
        head = ["| tokenizer | outcome | texts | told by a remark | wrong | why |", "|---|---|---|---|---|---|"]
        (tables / "tokenizers.md").write_text("\n".join([*head, *rows, ""]))
    assert [(cuts.name, cuts.why, cuts.examples) for cuts in found if cuts.outcome == "WRONG"] == []
    assert [(cuts.name, cuts.why) for cuts in found if cuts.outcome == "no truth"] == []
    assert sum(cuts.outcome == "right" for cuts in found) >= 30
