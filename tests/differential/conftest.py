"""What the differential suite stands on: a Python with transformers, and llama.cpp's converter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from comparison import TransformersChild

from edgellm.export.convert.llama_cpp_converter import CONVERTER, converter_source
from edgellm.export.environments import environment

HERE = Path(__file__).parent
USER_ENV = dict(os.environ)  # before any test changes it


@pytest.fixture(autouse=True)
def helpers_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children find this folder's modules, and are given no longer than a test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def transformers_python(monkeypatch: pytest.MonkeyPatch) -> Path:
    """EDGELLM_TEST_TRANSFORMERS, or the environment of llama.cpp's converter in the user's folder, installed once."""
    if told := USER_ENV.get("EDGELLM_TEST_TRANSFORMERS"):
        return Path(told)
    _in_users_home(monkeypatch)
    return environment("llama_cpp", ask=lambda _: True)


@pytest.fixture
def converter_script(monkeypatch: pytest.MonkeyPatch) -> Path:
    """EDGELLM_TEST_CONVERTER, or llama.cpp's script of the pinned release, fetched once into the user's own folder."""
    if told := USER_ENV.get("EDGELLM_TEST_CONVERTER"):
        return Path(told)
    _in_users_home(monkeypatch)
    return converter_source() / CONVERTER


def _in_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGELLM_HOME")
    for name in ("EDGELLM_HOME", *(name for name in USER_ENV if name.startswith("PIP_"))):
        if name in USER_ENV:
            monkeypatch.setenv(name, USER_ENV[name])


@pytest.fixture
def child(transformers_python: Path, tmp_path: Path) -> Iterator[TransformersChild]:
    child = TransformersChild(transformers_python, tmp_path / "transformers.log")
    yield child
    child.close()


@pytest.fixture
def tables() -> Path | None:
    """A folder for the suite's tables, where EDGELLM_TEST_TABLES names one."""
    told = USER_ENV.get("EDGELLM_TEST_TABLES")
    if told:
        Path(told).mkdir(parents=True, exist_ok=True)
    return Path(told) if told else None
