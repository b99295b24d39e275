"""A manifest from outside is read or refused in a sentence, whatever stands in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.export import manifest
from edgellm.export.bundle import pack
from edgellm.export.manifest import ManifestError

ODD = (
    None, True, -1, 1.5, "x", "../x", "", "a\0b", "x" * 5000, [], [1], {}, {"a": 1}, [{}], float("nan"), "\ud800"
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document, by the keys that lead to it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copied = document.copy()
    copied[path[0]] = replaced(copied[path[0]], path[1:], value)
    return copied


def test_whatever_stands_anywhere_in_a_manifest_it_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "m-Q8_0.bin").write_bytes(b"weights")
    side = {
        "name": "m", "source": {"repo": "a/b", "revision": "c", "licence": None, "files": {"config.json": "d"}},
        "verification": {"logits": {"max_relative_error": 0.1, "n_tokens": 3}, "perplexity": {"Q8_0": 2.0}},
    }  # fmt: skip
    document = {
        "format": manifest.FORMAT, "key": "k", "tools": {"edgellm": "1"}, "options": {"quants": ["Q8_0"]},
        "files": [manifest.file_entry(folder / "m-Q8_0.bin", role="target", quant="Q8_0")],
        "target": side, "draft": None, "plan": None, "pair": {"exported": {"shared_of_target": 0.5}},
    }  # fmt: skip
    n_refused = 0
    for path in places(document):
        for value in ODD:
            (folder / manifest.NAME).write_text(json.dumps(replaced(document, path, value)))
            try:
                found = manifest.verify(folder)
            except ManifestError:
                n_refused += 1
                with pytest.raises(ManifestError):
                    pack(folder, tmp_path / "assets.tar")
            else:
                for role in ("target", "draft"):
                    assert isinstance(found.repo(role), str | None)
    assert n_refused > 300
