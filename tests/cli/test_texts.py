"""Several texts in one value: the same on the command line, in the environment and in `/set`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.cli._texts import BadTexts, quoted, split_texts, unescaped


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("not a", ["not a"]),
        ("END OF", ["END OF"]),
        ('"END OF" "\\n"', ["END OF", "\n"]),
        ("'END OF' 'x'", ["END OF", "x"]),
        ("\\n\\n", ["\n\n"]),
        ("a\\tb\\\\n", ["a\tb\\n"]),
        ("C:\\dir", ["C:\\dir"]),
        ('"say \\"hi\\""', ['say "hi"']),
        ("### User:", ["### User:"]),
        ('it is "so"', ['it is "so"']),
        ("", []),
    ],
)
def test_a_value_is_one_text_unless_its_texts_are_quoted(value: str, texts: list[str]) -> None:
    assert list(map(unescaped, split_texts(value))) == texts


@pytest.mark.parametrize("value", ['"open', '"a" b', "'s", '"a""b"'])
def test_quotes_that_do_not_close_are_refused(value: str) -> None:
    with pytest.raises(BadTexts, match="texts in quotes"):
        split_texts(value)


@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("\n\t\r\\\"'"), min_size=1)))
def test_what_is_shown_can_be_typed(texts: list[str]) -> None:
    assert list(map(unescaped, split_texts(quoted(texts)))) == texts
