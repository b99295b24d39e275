"""The worked examples in docstrings are run, so that they stay true."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["edit_alignment", "lookup", "ngram_index"])
def test_a_docstrings_example_gives_what_it_says(name: str) -> None:
    failed, tried = doctest.testmod(import_module(f"edgellm.runtime.learning.{name}"))
    assert (failed, tried > 3) == (0, True)
