"""Installing the kernels: in processes of their own, since a process loads llama.cpp but once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgellm.runtime.kernels import load

REPORT = """
from edgellm.runtime.kernels import install
r = install()
print(r.variant, r.active, r is install())
print(r.reason)
"""


def report(kernels: str, before: str = "") -> tuple[list[str], str, str]:
    """Variant, active, idempotent; the reason; the warnings."""
    environment = {**os.environ, "EDGELLM_KERNELS": kernels}
    done = subprocess.run(
        [sys.executable, "-c", before + "\n" + REPORT], env=environment, capture_output=True, text=True, check=True
    )
    first, reason = done.stdout.splitlines()[-2:]
    return first.split(), reason, done.stderr


def test_off_leaves_llama_cpp_alone_and_is_silent() -> None:
    assert report("off") == (["stock", "False", "True"], "EDGELLM_KERNELS=off", "")


@pytest.mark.skipif(load.compiled() is None, reason="the kernels were not compiled")
class TestCompiled:
    @pytest.mark.parametrize("variant", load.variants())
    def test_every_variant_passes_its_self_test_inside_llama_cpp(self, variant: str) -> None:
        assert report(variant) == ([variant, "True", "True"], f"EDGELLM_KERNELS={variant}", "")

    def test_auto_takes_the_best(self) -> None:
        best = load.variants()[0]
        if best == "generic":
            pytest.skip("this CPU has no variant of its own")
        assert report("auto")[0] == [best, "True", "True"]

    def test_an_unknown_variant_falls_back_with_a_warning(self) -> None:
        first, reason, talk = report("quantum")
        assert first == ["stock", "False", "True"]
        assert "auto" in reason
        assert talk.count("RuntimeWarning") == 1

    def test_a_missing_library_falls_back_with_a_warning(self) -> None:
        hide = "from edgellm.runtime.kernels import load; load.engine_library = lambda name: None"
        first, reason, talk = report("auto", hide)
        assert first == ["stock", "False", "True"]
        assert "libraries" in reason
        assert talk.count("RuntimeWarning") == 1

    def test_a_strange_library_falls_back_with_a_warning(self) -> None:
        strange = "from edgellm.runtime.kernels import load; load.engine_library = lambda name: load.Path('libm.so.6')"
        first, reason, _ = report("auto", strange)
        assert first == ["stock", "False", "True"]
        assert "lack" in reason or "opened" in reason


def test_an_installation_without_a_compiler_falls_back() -> None:
    first, reason, talk = report("auto", "from edgellm.runtime.kernels import load; load.compiled = lambda: None")
    assert first == ["stock", "False", "True"]
    assert "compile" in reason
    assert talk.count("RuntimeWarning") == 1
