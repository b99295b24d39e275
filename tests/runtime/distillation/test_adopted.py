"""A drafter is adopted whole or not at all: kills, damage, a full disk, two processes, and what was taken back."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from draft_adapters import MATRIX, adapter_for, quantised_tiny, write_adapter
from tiny_gguf import write_tiny

from edgellm.memory.draft_adapter import AdapterFile, DraftAdapterError, merge, quantised_matrix
from edgellm.memory.files import sha256_of
from edgellm.memory.gguf import read_header
from edgellm.runtime.distillation.adopted import Adopted, target_key
from edgellm.runtime.distillation.merged import N_SPARE

N_KILLS = int(os.environ.get("EDGELLM_TEST_KILLS", "25"))  # 100 for the long run
KEY = "0123"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised_tiny(tmp_path_factory.mktemp("models") / "small.gguf")


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def adopted(tmp_path: Path, warnings: list[str]) -> Adopted:
    return Adopted(tmp_path / "adapted", warnings.append)


def scale_of(path: Path) -> float:
    """The first scale of one matrix of a model's file."""
    header = read_header(path)
    return float(quantised_matrix(header, next(t for t in header.tensors if t.name == MATRIX)).start.flat[0])


def test_what_was_adopted_is_found_by_another_process(adopted: Adopted, base: Path) -> None:
    assert adopted.find(KEY, sha256_of(base)) is None
    adopted.adopt(KEY, adapter_for(base, 0.5), base)
    found = Adopted(adopted.folder).find(KEY, sha256_of(base))
    assert found is not None
    assert found.path is not None
    assert found.adapter is not None
    assert found.adapter.n_tokens == 12_345
    assert found.adapter.tokens_per_pass == (2.76, 3.04)
    assert scale_of(found.path) == pytest.approx(1.5 * scale_of(base), rel=1e-2)
    assert (found.path.name, found.path.stat().st_size) == (base.name, base.stat().st_size)


def test_each_target_has_its_own(adopted: Adopted, base: Path) -> None:
    adopted.adopt(KEY, adapter_for(base), base)
    assert adopted.find("4567", sha256_of(base)) is None
    assert adopted.draft_sizes(KEY) == {base.stat().st_size}
    assert adopted.draft_sizes("4567") == set()


def test_the_file_of_an_earlier_adapter_stays_for_those_who_run_it(adopted: Adopted, base: Path) -> None:
    first = adopted.adopt(KEY, adapter_for(base, 0.1), base)
    second = adopted.adopt(KEY, adapter_for(base, 0.2), base)
    assert first.path is not None
    assert first.path.exists()
    assert second.path != first.path
    for i in range(N_SPARE + 2):
        adopted.adopt(KEY, adapter_for(base, 0.3 + 0.1 * i), base)
    assert not first.path.exists()
    assert len(list(adopted.folder.glob(f"*/{base.name}"))) == N_SPARE + 1
    assert len(list(adopted.folder.glob("*.adapter"))) == 1


def test_files_are_for_their_owner_alone(adopted: Adopted, base: Path) -> None:
    found = adopted.adopt(KEY, adapter_for(base), base)
    assert found.adapter is not None
    assert stat.S_IMODE(adopted.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(found.adapter.path.stat().st_mode) == 0o600


def test_an_adapter_of_another_file_changes_nothing(adopted: Adopted, base: Path, tmp_path: Path) -> None:
    other = quantised_tiny(tmp_path / "other.gguf", seed=1)
    with pytest.raises(DraftAdapterError, match="made for another drafter than small"):
        adopted.adopt(KEY, adapter_for(other), base)
    assert adopted.find(KEY, sha256_of(base)) is None
    assert adopted.find(KEY, sha256_of(other)) is None


def test_what_was_taken_back_is_not_used_and_not_offered_again(adopted: Adopted, base: Path) -> None:
    sha256 = sha256_of(base)
    first = adopted.adopt(KEY, adapter_for(base, 0.1), base)
    adopted.take_back(KEY, sha256, "it drafts 2.1 tokens a pass instead of 2.5")
    assert adopted.find(KEY, sha256) is None
    (entry,) = adopted.taken_back(KEY, sha256)
    assert first.adapter is not None
    assert (entry.sha256, entry.why) == (first.adapter.sha256, "it drafts 2.1 tokens a pass instead of 2.5")
    with pytest.raises(DraftAdapterError, match=r"taken back on .*2\.1 tokens a pass"):
        adopted.adopt(KEY, adapter_for(base, 0.1), base)
    adopted.adopt(KEY, adapter_for(base, 0.2), base)
    assert adopted.find(KEY, sha256) is not None
    assert adopted.taken_back(KEY, sha256) == (entry,)


def test_an_adapter_from_elsewhere_can_be_taken_back_too(adopted: Adopted, base: Path, tmp_path: Path) -> None:
    theirs = AdapterFile.read(write_adapter(tmp_path / "theirs.adapter", base))
    adopted.take_back(KEY, sha256_of(base), "it is slower", adapter_sha256=theirs.sha256)
    assert [entry.sha256 for entry in adopted.taken_back(KEY, sha256_of(base))] == [theirs.sha256]


def test_a_full_disk_is_a_sentence_and_leaves_what_was_used(
    adopted: Adopted, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = adopted.adopt(KEY, adapter_for(base, 0.1), base)
    usage = shutil.disk_usage(base)._replace(free=10_000)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"a drafter with an adapter takes .* free on its disk") as caught:
            adopted.adopt(KEY, adapter_for(base, 0.2), base)
    assert caught.value.errno == errno.ENOSPC
    assert adopted.find(KEY, sha256_of(base)) == first
    assert len(list(adopted.folder.glob(f"*/{base.name}"))) == 1


def test_a_disk_that_fills_in_the_middle_leaves_what_was_used(
    adopted: Adopted, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = adopted.adopt(KEY, adapter_for(base, 0.1), base)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("edgellm.memory.files._sync_file", full)
        with pytest.raises(OSError, match="No space left"):
            adopted.adopt(KEY, adapter_for(base, 0.2), base)
    assert adopted.find(KEY, sha256_of(base)) == first
    assert not list(adopted.folder.glob(".*.part*"))


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: data.replace(b"4", b"5")])
@pytest.mark.parametrize("pattern", ["adopted-*.bin", "*.adapter"])
def test_damage_is_set_aside_with_a_warning(
    adopted: Adopted, base: Path, warnings: list[str], pattern: str, damage: Callable[[bytes], bytes]
) -> None:
    adopted.adopt(KEY, adapter_for(base), base)
    (path,) = adopted.folder.glob(pattern)
    path.write_bytes(damage(path.read_bytes()))
    assert adopted.find(KEY, sha256_of(base)) is None
    assert len(warnings) == 1
    assert "set aside" in warnings[0]
    assert adopted.find(KEY, sha256_of(base)) is None
    assert len(warnings) == 1
    assert adopted.adopt(KEY, adapter_for(base), base).path is not None


def test_a_reader_that_meets_an_adoption_takes_the_new_one(
    adopted: Adopted, base: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter that its record named is gone by the time it looks for it; the new record is no damage."""
    adopted.adopt(KEY, adapter_for(base, 0.1), base)
    read = AdapterFile.read

    def late(path: Path) -> AdapterFile:
        monkeypatch.setattr(AdapterFile, "read", read)
        Adopted(adopted.folder).adopt(KEY, adapter_for(base, 0.2), base)
        return read(path)

    monkeypatch.setattr(AdapterFile, "read", late)
    found = adopted.find(KEY, sha256_of(base))
    assert found is not None
    assert found.path is not None
    assert scale_of(found.path) == pytest.approx(1.2 * scale_of(base), rel=1e-2)
    assert warnings == []


def test_a_merged_file_that_is_damaged_is_made_again(adopted: Adopted, base: Path, warnings: list[str]) -> None:
    found = adopted.adopt(KEY, adapter_for(base), base)
    assert found.path is not None
    assert found.adapter is not None
    whole = found.path.read_bytes()
    found.path.write_bytes(whole[:-8] + b"damaged!")
    assert adopted.with_adapter(found.adapter, base) == found.path
    assert found.path.read_bytes() == whole
    assert "made again" in warnings[0]
    os.utime(found.path, (1, 1))  # another time alone is no damage
    adopted.with_adapter(found.adapter, base)
    assert len(warnings) == 1


def test_a_drafter_brings_the_files_that_it_is_read_with(adopted: Adopted, base: Path) -> None:
    (base.parent / "small-words.gguf").write_bytes(b"words")
    (base.parent / "draft-small.pair").write_bytes(b"pair")
    found = adopted.adopt(KEY, adapter_for(base), base)
    assert found.path is not None
    assert (found.path.parent / "small-words.gguf").read_bytes() == b"words"
    assert (found.path.parent / "draft-small.pair").read_bytes() == b"pair"


@pytest.mark.skipif(sys.platform == "win32", reason="it has no fork")
def test_kills_leave_the_old_adapter_or_the_new_one(
    adopted: Adopted, base: Path, tmp_path: Path, warnings: list[str]
) -> None:
    """A child adopts one after the other; the next one finds one that is whole, and never an earlier one again."""
    sha256, rng = sha256_of(base), random.Random(0)
    adapters = [adapter_for(base, 0.01 * i, i=i) for i in range(1, 9)]
    expected = {}
    for i, adapter in enumerate(adapters, 1):
        merge(adapter, base, tmp_path / "expected.gguf")
        expected[i] = sha256_of(tmp_path / "expected.gguf")
    n_adopted = 0
    for _ in range(N_KILLS):
        if (child := os.fork()) == 0:
            try:
                while True:
                    for adapter in adapters:
                        Adopted(adopted.folder).adopt(KEY, adapter, base)
            finally:
                os._exit(1)
        time.sleep(rng.random() * 0.25)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        found = adopted.find(KEY, sha256)
        if found is not None:
            assert found.adapter is not None
            assert found.path is not None
            assert sha256_of(adopted.with_adapter(found.adapter, base)) == expected[found.adapter.record["i"]]
            n_adopted += 1
    assert n_adopted > N_KILLS // 2
    assert warnings == []
    adopted.adopt(KEY, adapters[0], base)
    assert len(list(adopted.folder.glob(f"*/{base.name}"))) <= N_SPARE + 1
    assert not list(adopted.folder.glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="it has no fork")
def test_two_processes_adopt_at_once(adopted: Adopted, base: Path) -> None:
    children = []
    for by in (0.1, 0.2):
        if (child := os.fork()) == 0:
            code = 1
            try:
                for n in range(6):
                    Adopted(adopted.folder).adopt(f"{KEY}{by}", adapter_for(base, by * (n + 1)), base)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    for by in (0.1, 0.2):
        found = adopted.find(f"{KEY}{by}", sha256_of(base))
        assert found is not None
        assert found.path is not None
        assert scale_of(found.path) == pytest.approx((1 + 6 * by) * scale_of(base), rel=2e-2)


def test_all_of_it_is_deleted(adopted: Adopted, base: Path) -> None:
    adopted.adopt(KEY, adapter_for(base), base)
    assert [(one.target, one.draft) for one in adopted.listing()] == [("tiny-target", "tiny-drafter")]
    assert adopted.clear() == 1
    assert list(adopted.folder.iterdir()) == []
    assert adopted.clear() == 0


def test_a_target_is_known_by_what_it_is_and_not_by_its_name(tmp_path: Path) -> None:
    one = write_tiny(tmp_path / "one.gguf")
    other = write_tiny(tmp_path / "other.gguf", seed=1)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(one.read_bytes())
    assert target_key(one) == target_key(copy) != target_key(other)


def test_a_real_drafter_is_merged(adopted: Adopted, smollm2_path: Path) -> None:
    found = adopted.adopt(KEY, adapter_for(smollm2_path, 0.01), smollm2_path)
    assert found.path is not None
    assert found.path.stat().st_size == smollm2_path.stat().st_size
    assert scale_of(found.path) == pytest.approx(1.01 * scale_of(smollm2_path), rel=2e-3)
