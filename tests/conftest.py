"""Every test has folders of its own; the real models are pulled once for each machine, by the product's own command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_address import NOWHERE, hub_constants, point_hub_at
from hypothesis import settings
from loopback_hub import LoopbackHub

from edgellm.memory import units

# How long an example takes says how busy the machine is.
settings.register_profile("edgellm", deadline=None)
settings.load_profile("edgellm")

USER_ENV = dict(os.environ)  # before any test changes it
if "PYTEST_XDIST_WORKER" in os.environ:  # several engines share the cores: threads that wait must not spin on them
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
_OURS = ("EDGELLM_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_")


class RootIsNoTestPackage:
    """The checkout is the package `edgellm`; pytest would import it once more, under the name of its folder."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        is_root = path == parent.config.rootpath
        return pytest.Dir.from_parent(parent, path=path) if is_root else None  # type: ignore[no-any-return]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsNoTestPackage())


@pytest.fixture(scope="session")
def extra_buffers() -> str:
    """What this machine's trial of the engine's extra buffers says, so that it is not made anew for each test."""
    from edgellm.runtime.bringup.extra_buffers import verdict

    return "on" if verdict().usable else "off"


@pytest.fixture(autouse=True)
def private_folders(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, extra_buffers: str
) -> Path:
    """An empty EDGELLM_HOME and HF_HOME, and none of the user's own settings. Returns the folder that holds both."""
    folder = tmp_path_factory.mktemp("private")
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGELLM_HOME", str(folder / "edgellm"))
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.setenv("EDGELLM_EXTRA_BUFFERS", extra_buffers)
    units.answer_in(decimal=False)
    point_hub_at(NOWHERE, monkeypatch)
    if constants := hub_constants():
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "hf" / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return folder


@pytest.fixture
def hub(private_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub and a package index on the loopback; HF_ENDPOINT and pip point at them and at nothing else."""
    with LoopbackHub() as server:
        point_hub_at(server.url, monkeypatch)
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", server.index)
        yield server


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`catalogue({...}, {...})` adds entries of the format of models.yaml."""

    def add(*entries: dict[str, Any]) -> None:
        common = {"family": "test", "licence": "MIT", "repo": "me/checkpoint"}
        path = tmp_path / "own-models.yaml"
        path.write_text(json.dumps({"models": [common | entry for entry in entries]}))  # JSON is YAML
        monkeypatch.setenv("EDGELLM_CATALOGUE", str(path))

    return add


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    """`model_path("qwen2.5-coder-0.5b-instruct")` is the real file, in the user's own cache (see `-m model`)."""

    def pulled(name: str) -> Path:
        command = [sys.executable, "-m", "edgellm.cli", "--quiet", "pull", name, "--json"]
        done = subprocess.run(command, env=USER_ENV, capture_output=True, text=True, cwd=Path.home())
        assert done.returncode == 0, done.stderr
        return Path(json.loads(done.stdout)["path"])

    return pulled


@pytest.fixture(scope="session")
def smollm2_path(model_path: Callable[[str], Path]) -> Path:
    """SmolLM2-135M-Instruct Q4_1, 94 MiB: small enough for the default tests."""
    return model_path("smollm2-135m-instruct")


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that failed is tried again at once."""
    monkeypatch.setattr("edgellm.export.obtain.download.RETRY_WAIT_S", 0.01)
