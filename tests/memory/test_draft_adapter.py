"""A drafter's adapter as a file: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from draft_adapters import MATRIX, adapter_for, quantised_tiny

from edgellm.memory.draft_adapter import (
    KIND,
    VERSION,
    AdapterFile,
    DraftAdapter,
    DraftAdapterError,
    merge,
    quantised_matrix,
    read_draft_adapter,
)
from edgellm.memory.gguf import read_header
from edgellm.memory.sealed import seal

NUMBERS = zlib.compress(bytes(8))


def packed(tensors: Any, numbers: bytes = NUMBERS, record: Any = {}) -> bytes:  # noqa: B006
    head = json.dumps({"record": record, "tensors": tensors}).encode()
    return seal(head + b"\n" + numbers, KIND, VERSION, "ab" * 32)


def test_numbers_come_back_within_a_fraction_of_what_is_typical() -> None:
    rng = np.random.default_rng(0)
    theta = (rng.standard_normal((2, 32, 18)) * 0.01).astype(np.float32)
    theta[0, 0, 0] = 0.2  # twenty times as large as others
    back = DraftAdapter.from_bytes(DraftAdapter("ab" * 32, {"a": theta}, {"target": "t"}).to_bytes())
    assert back.base == "ab" * 32
    assert back.record == {"target": "t"}
    assert np.abs(back.changes["a"] - theta).max() < 0.16 * theta.std()


def test_nothing_learnt_is_nothing_changed(tmp_path: Path) -> None:
    base = quantised_tiny(tmp_path / "base.gguf")
    adapter = adapter_for(base, by=0.0)
    merge(DraftAdapter.from_bytes(adapter.to_bytes()), base, tmp_path / "merged.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == base.read_bytes()


def test_a_merged_file_holds_what_was_learnt_and_all_else_as_it_was(tmp_path: Path) -> None:
    base, merged = quantised_tiny(tmp_path / "base.gguf"), tmp_path / "merged.gguf"
    merge(adapter_for(base, by=0.125), base, merged)
    before, after = read_header(base), read_header(merged)
    assert after.metadata.keys() == before.metadata.keys()
    changed = {tensor.name for tensor in before.tensors if tensor.name.startswith("blk.") and len(tensor.shape) == 2}
    for old, new in zip(before.tensors, after.tensors, strict=True):
        pair = [
            path.read_bytes()[h.data_offset + t.offset :][: t.n_bytes]
            for path, h, t in ((base, before, old), (merged, after, new))
        ]
        assert (pair[0] != pair[1]) == (old.name in changed)
    tensors = {tensor.name: tensor for tensor in before.tensors}
    first, second = (quantised_matrix(header, tensors[MATRIX]).start[0] for header in (before, after))
    np.testing.assert_allclose(second, 1.125 * first, rtol=2e-3)


@pytest.mark.parametrize(
    "damage",
    {
        "cut short": lambda data: data[:-1],
        "a bit turned": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        "nothing": lambda data: b"",
        "no tensors": lambda data: packed(None),
        "a shape that is no shape": lambda data: packed([["a", [1, 2], [0.1]]]),
        "a negative shape": lambda data: packed([["a", [-1, -2, 4], [0.1]]]),
        "more than there is": lambda data: packed([["a", [1, 2, 2**40], [0.1]]]),
        "less than there is": lambda data: packed([["a", [1, 1, 4], [0.1]]]),
        "an endless step": lambda data: packed([["a", [1, 2, 4], [1e300]]]),
        "a step that is no number": lambda data: packed([["a", [1, 2, 4], [float("nan")]]]),
        "an endless extent": lambda data: packed([["a", [1, float("inf"), 4], [0.1]]]),
        "numbers that do not inflate": lambda data: packed([["a", [1, 2, 4], [0.1]]], b"no"),
        "a record that is none": lambda data: packed([["a", [1, 2, 4], [0.1]]], record=3),
        "deep": lambda data: seal(b"[" * 100_000 + b"\n", KIND, VERSION, "ab"),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_no_adapter_is_one_sentence(tmp_path: Path, damage: tuple[str, Callable[[bytes], bytes]]) -> None:
    path = tmp_path / "an.adapter"
    path.write_bytes(damage[1](adapter_for(quantised_tiny(tmp_path / "base.gguf")).to_bytes()))
    with pytest.raises(DraftAdapterError, match=r"an\.adapter"):
        read_draft_adapter(path)


def test_its_record_is_read_without_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "an.adapter"
    path.write_bytes(packed([], b"not inflated", {"target": "t", "n_tokens": 5}))
    file = AdapterFile.read(path)
    assert (file.target, file.n_tokens, file.tokens_per_pass) == ("t", 5, None)


def test_another_drafter_is_refused_and_nothing_written(tmp_path: Path) -> None:
    base, other = quantised_tiny(tmp_path / "base.gguf"), quantised_tiny(tmp_path / "other.gguf", seed=5)
    with pytest.raises(DraftAdapterError, match=r"another drafter than other\.gguf"):
        merge(adapter_for(base), other, tmp_path / "merged.gguf")
    assert not list(tmp_path.glob("*merged*"))
