"""A llama.cpp from elsewhere is refused before it computes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import llama_cpp.llama_cpp as api
import pytest

from edgellm.runtime.backends import llama_library, llama_process
from edgellm.runtime.backends.base import LoadError


def test_the_installed_library_fits() -> None:
    assert llama_library.unfit(api) is None


def test_instructions_that_this_processor_lacks_are_named() -> None:
    if not api._lib.ggml_cpu_has_avx2():
        pytest.skip("the library was compiled for another kind of processor")
    (sentence,) = llama_library.missing_instructions(api, "fpu sse sse2 pni")
    assert "avx2" in sentence
    assert "sse3" not in sentence
    assert llama_library.missing_instructions(api, "") == []


def test_a_library_for_another_processor_is_no_signal_but_a_sentence_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llama_library, "missing_instructions", lambda api: ["it was compiled for another"])
    monkeypatch.setattr(llama_process, "_kernels", None)
    with pytest.raises(LoadError, match=r"compiled for another.*pip install"):
        llama_process.kernels()


def test_the_remedy_installs_the_pinned_release() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pinned,) = [each for each in project["dependencies"] if each.startswith("llama-cpp-python")]
    assert pinned in llama_library.REMEDY
