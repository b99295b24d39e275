"""What is written is whole or not there, wherever the writing stops."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

from edgellm.memory import files

NOBODY = 2**22 + 1  # no system gives a process this number


def test_a_block_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), files.appearing(path) as file:
        file.write(b"half" * (1 // len(b"")))
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_takes_its_name_with_all_that_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.making(tmp_path / "made") as aside:
        copytree(tmp_path / "nowhere", aside, dirs_exist_ok=aside.mkdir() is None)
    assert not list(tmp_path.iterdir())
    with files.making(tmp_path / "made") as aside:
        (aside / "inner").mkdir(parents=True)
        (aside / "inner" / "a").write_text("a")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "inner" / "a").read_text() == "a"
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]


def test_permissions_are_a_new_files_own_or_those_of_the_file_that_was_there(tmp_path: Path) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    before = os.umask(0o027)
    try:
        files.write(tmp_path / "new", b"")
        files.write(tmp_path / "private", b"", private=True)
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o604)
        files.write(tmp_path / "old", b"again")
        (tmp_path / "opened").touch()
        (tmp_path / "opened").chmod(0o644)
        files.write(tmp_path / "opened", b"secret", private=True)
    finally:
        os.umask(before)
    assert [mode(name) for name in ("new", "private", "old", "opened")] == [0o640, 0o600, 0o604, 0o600]


def test_a_link_stays_one_and_the_file_that_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("there", "not-there"):
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "there").touch()
    for name in ("there", "not-there"):
        files.write(tmp_path / name, b"written")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "real" / name).read_bytes() == b"written"


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "line\nbreak", 'it\'s "quoted"', "-rf", " ", "a.b[c]*?"])
def test_any_name_that_the_disk_takes_can_be_written(tmp_path: Path, name: str) -> None:
    files.write(tmp_path / name, b"1")
    files.write(tmp_path / name, b"2")
    with files.making(tmp_path / (name[:-1] + "d")) as aside:
        aside.mkdir()
    assert {entry.name for entry in tmp_path.iterdir()} == {name, name[:-1] + "d"}
    assert (tmp_path / name).read_bytes() == b"2"


def test_what_a_dead_process_left_is_taken_away_and_what_a_living_one_makes_is_not(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    dead, folder = files.beside(path, f"{NOBODY}.part"), files.beside(path, f"{NOBODY}.part.folder")
    folder.mkdir()
    spared = [files.beside(path, f"{os.getppid()}.part"), files.beside(tmp_path / "model.gguf.2", f"{NOBODY}.part")]
    for left in (dead, *spared):
        left.touch()
    files.write(path, b"whole")
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.gguf", *(left.name for left in spared)}


def test_a_full_disk_is_told_of_the_name_that_was_asked_for(tmp_path: Path) -> None:
    """The system's limit on a file's size stands for a full disk: the write fails in the middle."""
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom edgellm.memory import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: files.write(Path(sys.argv[1]), bytes(10_000))\nexcept OSError as error: print(error.filename)"
    )
    path = tmp_path / "kept"
    path.write_bytes(b"before")
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(path)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("kept", b"before")]
