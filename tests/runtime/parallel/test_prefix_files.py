"""The folder of beginnings: whole files or none, of this user, within a bound."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from edgellm.memory.sealed import seal
from edgellm.runtime.parallel.prefix_files import KIND, VERSION, PrefixFiles

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes, links and pipes of POSIX")
PAYLOAD = bytes(range(256)) * 4


class Folder:
    def __init__(self, path: Path, max_bytes: int = 10**6) -> None:
        self.path, self.warnings = path / "prefixes", list[str]()
        self.files = PrefixFiles(self.path, max_bytes, self.warnings.append)

    def file(self, name: str = "a") -> Path:
        return self.path / f"{name}.prefix"

    def read(self, name: str = "a") -> bytes | None:
        return self.files.read(name, len(PAYLOAD))

    @property
    def names(self) -> set[str]:
        return {path.stem for path in self.path.glob("*.prefix")}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_what_was_written_is_read_again(folder: Folder) -> None:
    assert not folder.files.has("a")
    assert folder.read() is None
    folder.files.write("a", PAYLOAD)
    assert folder.files.has("a")
    assert folder.read() == PAYLOAD
    assert not folder.warnings


@POSIX
def test_it_is_for_its_owner_alone(folder: Folder) -> None:
    folder.path.mkdir(mode=0o755)
    folder.files.write("a", PAYLOAD)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.file().stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data + b"more",
        lambda data: b"",
        lambda data: b"\0" * len(data),
        lambda data: seal(PAYLOAD, KIND, VERSION, "b"),  # another text's
        lambda data: seal(PAYLOAD[:-1], KIND, VERSION, "a"),
        lambda data: seal(PAYLOAD, KIND, VERSION + 1, "a"),
        lambda data: seal(PAYLOAD, "store", VERSION, "a"),
        lambda data: b'{"edgellm": "prefix"}\n' + data,
    ],
)
def test_a_damaged_or_foreign_file_is_taken_away_with_one_warning(folder: Folder, damage: object) -> None:
    for name in ("a", "b"):
        folder.files.write(name, PAYLOAD)
    folder.file("a").write_bytes(damage(folder.file("a").read_bytes()))  # type: ignore[operator]
    folder.file("b").write_bytes(b"nonsense")
    assert folder.read("a") is None
    assert folder.read("b") is None
    assert not folder.names
    assert len(folder.warnings) == 1
    assert "taken away" in folder.warnings[0]


def test_a_file_of_any_size_is_not_read_into_memory(folder: Folder) -> None:
    folder.files.write("a", PAYLOAD)
    with folder.file().open("r+b") as file:
        file.truncate(2**40)  # takes no room on the disk
    assert folder.read() is None
    assert "size" in folder.warnings[0]


@POSIX
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_plain_file_is_not_opened(folder: Folder, tmp_path: Path, kind: str) -> None:
    folder.path.mkdir()
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(seal(PAYLOAD, KIND, VERSION, "a"))
        folder.file().symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(folder.file())
    else:
        folder.file().mkdir()
    assert folder.read() is None
    assert len(folder.warnings) == 1


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 3 * (len(PAYLOAD) + 300))
    for age, name in enumerate("abc"):
        folder.files.write(name, PAYLOAD)
        os.utime(folder.file(name), (1000 + age, 1000 + age))
    folder.files.use(["b", "a"])
    folder.files.write("d", PAYLOAD)
    assert folder.names == {"a", "b", "d"}
    assert folder.file("b").stat().st_mtime_ns >= folder.file("a").stat().st_mtime_ns  # what goes on from it goes first


def test_what_is_larger_than_the_bound_is_not_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path, len(PAYLOAD))
    folder.files.write("a", PAYLOAD)
    assert not folder.path.exists()


def test_a_full_disk_is_told_once_and_leaves_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(3):
        with pytest.raises(OSError, match="No space") as caught:
            folder.files.write("a", PAYLOAD)
        folder.files.refused(caught.value)
    assert len(folder.warnings) == 1
    assert "No space left" in folder.warnings[0]
    assert [path.name for path in folder.path.iterdir() if path.suffix != ".lock"] == []
