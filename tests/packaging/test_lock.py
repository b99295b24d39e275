"""requirements.lock: what `make lock` writes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ASKED = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
PINS = [Requirement(line) for line in re.findall(r"^(\S+==[^\\\n]+?) ?\\?$", LOCK, re.MULTILINE)]
PLATFORMS = [
    {
        "sys_platform": system,
        "platform_machine": machine,
        "python_full_version": f"{python}.0",
        "python_version": python,
    }
    for python in ("3.11", "3.12", "3.13")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64"))
]


@pytest.mark.parametrize("line", ASKED)
def test_every_dependency_is_locked_to_one_version_that_it_allows_on_every_platform(line: str) -> None:
    asked = Requirement(line)
    for platform in PLATFORMS:
        if asked.marker and not asked.marker.evaluate(platform):
            continue
        pins = [
            pin
            for pin in PINS
            if canonicalize_name(pin.name) == canonicalize_name(asked.name)
            and (pin.marker is None or pin.marker.evaluate(platform))
        ]
        assert len(pins) == 1, f"{asked.name} has {len(pins)} versions on {platform}; run `make lock`"
        version = next(iter(pins[0].specifier)).version
        assert asked.specifier.contains(version, prereleases=True), f"{line}: {version} is locked; run `make lock`"


def test_every_locked_version_has_hashes_and_nothing_names_where_it_lies() -> None:
    entries = re.split(r"\n(?=\S)", LOCK.strip())
    assert len(entries) == len(PINS)
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK
    assert "--index" not in LOCK
    assert "--find-links" not in LOCK
