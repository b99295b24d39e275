"""What was learnt is whole on disk or not there: kills, damage, foreign files, and two processes at once."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgellm.memory.sealed import Damaged, seal, unseal
from edgellm.runtime.learning import persistence
from edgellm.runtime.learning.files import SealedFile
from edgellm.runtime.learning.ngram_index import GAP
from edgellm.runtime.learning.persistence import BadArchive, SavedNgrams, SavedStore

N_KILLS = 50

WRITER = """
import sys
from pathlib import Path
from edgellm.runtime.learning import persistence
from edgellm.runtime.learning.persistence import SavedStore

who = int(sys.argv[2])
kept = SavedStore(persistence.sealed(Path(sys.argv[1]), "store", "k", print), 1_000_000)
for i in range(int(sys.argv[3])):
    kept.index.extend([-1, who, i])
    kept.save()
    print(i, flush=True)
"""


def store_file(folder: Path, warnings: list[str] | None = None) -> SealedFile:
    return persistence.sealed(folder, "store", "k", (warnings if warnings is not None else []).append)


def written(folder: Path, who: int) -> list[int]:
    tokens = SavedStore(store_file(folder), 1_000_000).index.tokens().tolist()
    assert len(tokens) % 3 == 0
    groups = [tokens[i : i + 3] for i in range(0, len(tokens), 3)]
    assert all(group[0] == GAP for group in groups)
    return [group[2] for group in groups if group[1] == who]


def test_fifty_kills_lose_the_last_write_at_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for who in range(N_KILLS):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(who), "1000000"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(rng.random()) * 0.02)
        os.kill(process.pid, signal.SIGKILL)
        told = process.communicate()[0].splitlines()
        n_told = int(told[-1]) + 1 if told else 1
        kept = written(tmp_path, who)
        assert kept == list(range(len(kept)))
        assert n_told <= len(kept) <= n_told + 1  # the last write may be done and not yet told
    left = [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")]
    assert len(left) <= 1  # the next write clears it away


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", WRITER, str(tmp_path), str(who), "60"] for who in (1, 2, 3)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait() for process in processes] == [0, 0, 0]
    for who in (1, 2, 3):
        assert written(tmp_path, who) == list(range(60))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: b"",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-3] + bytes([data[-3] ^ 4]) + data[-2:],
        lambda data: data.replace(b'"version": 1', b'"version": 9'),
        lambda data: data.replace(b'"k"', b'"x"'),
        lambda data: b"\x80\x04K\x01." + data,
    ],
)
def test_a_damaged_or_foreign_file_is_set_aside_with_a_warning(tmp_path: Path, damage: object) -> None:
    kept = SavedStore(store_file(tmp_path), 100)
    kept.index.extend([1, 2, 3])
    kept.save()
    path = store_file(tmp_path).path
    damaged = damage(path.read_bytes())  # type: ignore[operator]
    path.write_bytes(damaged)
    warnings: list[str] = []
    again = SavedStore(store_file(tmp_path, warnings), 100)
    assert again.index.n == 0
    assert len(warnings) == 1
    assert "set aside" in warnings[0]
    assert path.with_name(path.name + ".damaged").read_bytes() == damaged
    again.index.extend([4])
    again.save()
    assert SavedStore(store_file(tmp_path), 100).index.tokens().tolist() == [4]


def test_tokens_that_the_vocabulary_lacks_are_set_aside(tmp_path: Path) -> None:
    kept = SavedStore(store_file(tmp_path), 100)
    kept.index.extend([99])
    kept.save()
    warnings: list[str] = []
    assert SavedStore(store_file(tmp_path, warnings), 50).index.n == 0
    assert "lacks" in warnings[0]


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    kept = SavedStore(store_file(tmp_path / "learned"), 100)
    kept.index.extend([1])
    kept.save()
    path = store_file(tmp_path / "learned").path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_ngrams_of_two_processes_are_joined(tmp_path: Path) -> None:
    def opened() -> SavedNgrams:
        return SavedNgrams(persistence.sealed(tmp_path, "ngrams", "a b", lambda text: None), 100, 100)

    one, two = opened(), opened()
    one.cache.learn([1, 2], 3)
    two.cache.learn([4, 5], 6)
    one.save()
    two.save()
    assert sorted(entry.draft for entry in opened().cache.entries()) == [(1, 2), (4, 5)]


def test_an_archive_brings_everything_to_another_machine(tmp_path: Path) -> None:
    here, there, archive = tmp_path / "here", tmp_path / "there", tmp_path / "a.zip"
    kept = SavedStore(store_file(here), 100)
    kept.index.extend([GAP, 1, 2])
    kept.save()
    assert persistence.export_to(here, archive) == 1
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    other = SavedStore(store_file(there), 100)
    other.index.extend([GAP, 7])
    other.save()
    assert persistence.import_from(there, archive, lambda text: None) == 1
    assert SavedStore(store_file(there), 100).index.tokens().tolist() == [GAP, 7, GAP, 1, 2]
    assert [file.n_entries for file in persistence.listing(there)] == [5]
    assert persistence.clear(there) == 1
    assert persistence.listing(there) == []


@pytest.mark.parametrize("name", ["../store-0123456789abcdef.bin", "store-0123456789abcdef.bin", "x", "/etc/passwd"])
def test_a_hostile_archive_writes_nothing(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(name, seal(b"\1\0\0\0", "store", persistence.VERSION, "k"))
    folder = tmp_path / "learned"
    with pytest.raises(BadArchive):
        persistence.import_from(folder, archive, lambda text: None)
    assert not folder.exists() or not list(folder.glob("*.bin"))
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".bin"] == []


def test_no_archive_at_all_is_one_sentence(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"PK\3\4 nonsense")
    with pytest.raises(BadArchive, match="no archive"):
        persistence.import_from(tmp_path / "learned", archive, lambda text: None)


def test_a_header_must_say_everything() -> None:
    whole = seal(b"abc", "costs", 1, "key")
    assert unseal(whole, "costs", 1, "key") == b"abc"
    header = json.loads(whole.partition(b"\n")[0])
    for name in header:
        lacking = {key: value for key, value in header.items() if key != name}
        with pytest.raises(Damaged):
            unseal(json.dumps(lacking).encode() + b"\nabc", "costs", 1, "key")
