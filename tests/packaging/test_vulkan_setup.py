"""`install/vulkan.py`, asked before llama.cpp is compiled for Vulkan: one sentence for what is missing."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def vulkan(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("vulkan", ROOT / "install/vulkan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(module, "HEADERS", ())
    return module


def headers(folder: Path, *lines: str, spirv: bool = True) -> Path:
    (folder / "vulkan").mkdir(parents=True)
    version = "#define VK_HEADER_VERSION 309\n#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, 4, X)\n"
    (folder / "vulkan/vulkan_core.h").write_text(version + "\n".join(lines))
    if spirv:
        (folder / "spirv/unified1").mkdir(parents=True)
        (folder / "spirv/unified1/spirv.hpp").touch()
    return folder


def test_with_all_of_it_nothing_is_missing(vulkan: ModuleType, tmp_path: Path) -> None:
    assert vulkan.missing(headers(tmp_path, '"VK_EXT_layer_settings"')) is None


def test_what_is_missing_is_said_with_the_packages_that_have_it(
    vulkan: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "apt install glslc libvulkan-dev" in vulkan.missing(tmp_path)
    assert re.search(
        "spirv-headers are missing", vulkan.missing(headers(tmp_path, "VK_EXT_layer_settings", spirv=False))
    )
    monkeypatch.setattr(vulkan.shutil, "which", lambda name: None)
    assert vulkan.missing(tmp_path).startswith("glslc")


def test_headers_that_are_too_old_are_named_with_the_way_out(vulkan: ModuleType, tmp_path: Path) -> None:
    said = vulkan.missing(headers(tmp_path))
    assert "1.4.309" in said
    assert "make chat-vulkan VULKAN_HEADERS=FOLDER" in said


def test_make_asks_first_and_compiles_with_vulkan() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = makefile.partition("$(VENV_VULKAN)/.installed: ")[2].partition("\n\n")[0]
    assert rule.index("install/vulkan.py") < rule.index("install/environment.py")
    assert "-DGGML_VULKAN=ON" in makefile
