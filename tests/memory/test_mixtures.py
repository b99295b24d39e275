"""Plans by name know what a file would hold: types as llama.cpp's quantiser chooses them, sizes as files have them."""

from __future__ import annotations

import sys
from dataclasses import asdict

import pytest
from engine_types import engine_types

from edgellm.app.shapes import of_name
from edgellm.export.obtain.catalogue import ModelEntry, load_catalogue
from edgellm.memory.architectures import PLAIN
from edgellm.memory.counts import Counts, from_counts
from edgellm.memory.mixtures import BASE_TYPES, Geometry, type_of

KNOWN = [entry for entry in load_catalogue() if entry.facts is not None]
ENTRIES = [entry for entry in KNOWN if entry.facts is not None and entry.facts.architecture in PLAIN | {"gemma3"}]
OWN_RULES = {"qwen3-30b-a3b", "qwen3-30b-a3b-instruct-2507"}  # whose makers gave more bits than llama.cpp's rules do
FILES = [(entry, file) for entry in KNOWN for file in entry.files if file.n_bytes]


def geometry_of(entry: ModelEntry, *, tied: bool) -> tuple[Geometry, int]:
    facts = entry.facts
    assert facts is not None
    geometry = Geometry(
        facts.architecture, facts.n_layers, facts.n_embd, facts.n_heads * facts.head_dim,
        facts.n_kv_heads * facts.head_dim, facts.n_ff, facts.n_vocab, facts.n_experts, tied=tied,
    )  # fmt: skip
    return geometry, facts.head_dim


OTHERS = [
    (Geometry("llama", 32, 4096, 4096, 1024, 14_336, 32_000, n_experts=8), 128),
    (Geometry("qwen3moe", 48, 2048, 4096, 512, 768, 151_936, n_experts=128), 128),
    (Geometry("phi3", 32, 3072, 3072, 3072, 8192, 32_064), 96),
    (Geometry("gemma2", 26, 2304, 2048, 1024, 9216, 256_000, tied=True), 256),
    (Geometry("llama", 10, 100, 96, 96, 200, 1000), 32),  # rows of no type's blocks
]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks llama.cpp by C++ names")
@pytest.mark.parametrize("quantisation", BASE_TYPES)
def test_each_matrix_has_the_type_that_the_engine_chooses(quantisation: str) -> None:
    models = [geometry_of(entry, tied=tied) for entry in ENTRIES for tied in (False, True)] + OTHERS
    for geometry, head_dim in models:
        if quantisation in ("F32", "F16", "BF16"):
            continue  # nothing is chosen
        wrong = [
            (matrix.role, matrix.layer, type_of(matrix, quantisation, geometry), kind)
            for matrix, kind in engine_types(geometry, quantisation, head_dim)
            if type_of(matrix, quantisation, geometry) != kind
        ]
        assert not wrong, (geometry, wrong[:5])


@pytest.mark.parametrize(("entry", "file"), FILES, ids=[entry.name for entry, _ in FILES])
def test_the_bytes_of_a_file_are_those_of_its_matrices_and_of_a_vocabulary(entry: ModelEntry, file: object) -> None:
    shape = of_name(entry.name).shape
    header_bytes = file.n_bytes - shape.weight_bytes  # type: ignore[attr-defined]
    if entry.name in OWN_RULES:
        assert 0 < header_bytes < 0.01 * shape.weight_bytes
    else:
        assert 20 * shape.n_vocab < header_bytes < 70 * shape.n_vocab


def test_a_tied_embedding_is_counted_where_packing_doubles_it() -> None:
    """19 models of the catalogue are tied, and some of their files hold an output matrix all the same."""
    tied = [of_name(entry.name).shape for entry in ENTRIES if entry.facts is not None and entry.facts.tied]
    assert len(tied) == 19
    assert sum(shape.tied is None and shape.lookup_bytes > 0 for shape in tied) == 7
    gemma = of_name("gemma-3-270m").shape
    assert gemma.tied == ("Q8_0", 262_144 * 640 * 34 // 32)


def test_a_file_made_by_other_rules_keeps_its_size() -> None:
    facts = next(entry.facts for entry in ENTRIES if entry.name == "llama-3.2-1b-instruct")
    counts = Counts(**asdict(facts))  # type: ignore[arg-type]
    usual = from_counts("x", "Q4_K_M", counts)
    other = from_counts("x", "Q4_K_M", counts, weight_bytes=usual.weight_bytes * 115 // 100)
    assert other.weight_bytes == pytest.approx(usual.weight_bytes * 1.15, rel=1e-6)
