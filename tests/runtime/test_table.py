"""The stored table of a pair says what the vocabularies say, is used where it belongs, and harms nowhere else."""

from __future__ import annotations

import json
import random
import struct
from hashlib import sha256
from pathlib import Path

import pytest
from fakes import byte_vocabulary
from tiny_gguf import write_tiny

from edgellm.memory.gguf import read_header
from edgellm.runtime.backends.llama_process import engine_name
from edgellm.runtime.bringup import load as load_module
from edgellm.runtime.bringup.load import load
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.text.vocabulary_map import BadTable, VocabularyMap, find
from edgellm.runtime.text.vocabulary_match import match, overlap

TARGET = byte_vocabulary(b"the", b"other", b"harbour", " 🙂".encode())
DRAFT = byte_vocabulary(b"the", b"har", b"bour", b"ot", b"her")
KEYS = {"target_key": "t" * 64, "draft_key": "d" * 64, "engine": "some engine"}


def table() -> VocabularyMap:
    return VocabularyMap.build(TARGET, DRAFT, **KEYS)


def written(folder: Path, data: bytes, name: str = "draft.pair") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_a_table_comes_back_as_it_was_and_is_the_same_twice(tmp_path: Path) -> None:
    made = table()
    assert made.to_bytes() == table().to_bytes()
    back = VocabularyMap.load(written(tmp_path, made.to_bytes()))
    assert back.to_bytes() == made.to_bytes()
    assert back.match == match(TARGET, DRAFT)
    assert back.overlap() == overlap(TARGET, DRAFT)


def test_directly_mapped_tokens_and_spellings_are_the_same_bytes() -> None:
    made = table()
    n_direct = 0
    for own, theirs in enumerate(made.direct.tolist()):
        if theirs >= 0:
            assert DRAFT.piece(own) == TARGET.piece(theirs)
            n_direct += 1
    assert n_direct == len(DRAFT.text_tokens().keys() & TARGET.text_tokens().keys())
    spellings = dict(made.spellings())
    assert all(DRAFT.decode(parts) == TARGET.piece(token) for parts, token in spellings.items())
    assert {TARGET.piece(token) for token in spellings.values()} == {b"other", b"harbour", " 🙂".encode()}


def sealed(header: object, arrays: bytes) -> bytes:
    """A file with the right checksum, whatever it says."""
    text = json.dumps(header).encode()
    body = struct.pack("<I", len(text)) + text + arrays
    return b"EDGEPAIR" + sha256(body).digest() + body


def parts_of(data: bytes) -> tuple[dict[str, object], bytes]:
    n_header = struct.unpack_from("<I", data, 40)[0]
    return json.loads(data[44 : 44 + n_header]), data[44 + n_header :]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"n_draft": 2**40},
        {"n_draft": -1},
        {"n_target": 3},
        {"n_parts": 1},
        {"n_spelled": True},
        {"same": 1},
        {"target": None},
        {"reason": 7},
    ],
)
def test_a_table_that_lies_about_itself_is_refused_although_its_checksum_is_right(
    tmp_path: Path, change: dict[str, object]
) -> None:
    header, arrays = parts_of(table().to_bytes())
    assert sealed(header, arrays) == table().to_bytes()
    with pytest.raises(BadTable):
        VocabularyMap.load(written(tmp_path, sealed(header | change, arrays)))


def test_ids_outside_the_vocabularies_are_refused_although_the_checksum_is_right(tmp_path: Path) -> None:
    header, arrays = parts_of(table().to_bytes())
    n_lengths = len(table().lengths)
    for at in range(0, len(arrays) - n_lengths, 4):
        for value in (-2, 2**30):
            changed = arrays[:at] + struct.pack("<i", value) + arrays[at + 4 :]
            with pytest.raises(BadTable):
                VocabularyMap.load(written(tmp_path, sealed(header, changed)))


def test_500_mutations_are_refused(tmp_path: Path) -> None:
    whole, rng = table().to_bytes(), random.Random(5)
    for _ in range(500):
        data = bytearray(whole)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with pytest.raises(BadTable):
            VocabularyMap.load(written(tmp_path, bytes(data)))


def test_the_table_of_the_pair_is_found_among_foreign_and_damaged_ones(tmp_path: Path) -> None:
    assert find(tmp_path, **KEYS) == (None, "")
    written(tmp_path, b"EDGEPAIR" + bytes(50), "a.pair")
    found, note = find(tmp_path, **KEYS)
    assert found is None
    assert note.startswith("a.pair is not used: a.pair is damaged")
    written(tmp_path, VocabularyMap.build(TARGET, DRAFT, **{**KEYS, "draft_key": "x"}).to_bytes(), "b.pair")
    assert find(tmp_path, **KEYS)[1].startswith("b.pair is not used: it is of another pair")
    written(tmp_path, table().to_bytes(), "c.pair")
    found, note = find(tmp_path, **KEYS)
    assert (found is not None, note) == (True, "")


def test_the_engine_takes_what_the_table_says_instead_of_comparing(
    tmp_path: Path, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgellm.app.evaluation import tabulate

    draft = tmp_path / "draft.gguf"
    draft.symlink_to(smollm2_path)
    key = read_header(smollm2_path).vocabulary_key()
    written(tmp_path, tabulate(smollm2_path, draft))
    options = EngineOptions(n_ctx=64, copy=False)
    with load(smollm2_path, draft, options) as engine:
        assert engine.table is not None
        assert (engine.table.target_key, engine.table.draft_key, engine.table.engine) == (key, key, engine_name())
        stored = engine.pair
    monkeypatch.setattr(load_module, "match", lambda *_: pytest.fail("compared although the table says it"))
    with load(smollm2_path, draft, options) as engine:
        assert engine.pair == stored
    monkeypatch.undo()
    written(tmp_path, (tmp_path / "draft.pair").read_bytes()[:-1])
    with load(smollm2_path, draft, options) as engine:
        assert (engine.table, engine.pair) == (None, stored)
        assert any("draft.pair is not used" in note for note in engine.notes)


def test_the_key_is_of_the_vocabulary_and_not_of_the_file(tmp_path: Path) -> None:
    keys = []
    for name, settings in (("a", {}), ("b", {"n_layers": 3}), ("c", {"n_vocab": 300})):
        write_tiny(tmp_path / name, "llama", **settings)
        keys.append(read_header(tmp_path / name).vocabulary_key())
    assert keys[0] == keys[1] != keys[2]
