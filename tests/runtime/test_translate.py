"""Text that grows in another vocabulary: the same bytes, whole characters, bounded work, sure borders."""

from __future__ import annotations

import pytest
from fakes import PieceTokenizer, byte_vocabulary
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.text.translate import WINDOW, GrowingText, continuation, safe_start
from edgellm.runtime.text.vocabulary import Vocabulary, incomplete_tail

WORDS = [b" the", b"the", b"he", b" a", b"\n\n", b".\n", b"    ", "é".encode(), "日本".encode(), b"\xf0\x9f", b"<end>"]
texts = st.lists(st.sampled_from([b" the", b"he", b" ", b"\n", b".", "é日🙂".encode(), b"\xff", b"\x80", b"<end>"]))
splits = st.lists(st.integers(1, 9), min_size=1)


def portions_of(data: bytes, sizes: list[int]) -> list[bytes]:
    portions, at, n = [], 0, 0
    while at < len(data):
        portions.append(data[at : at + sizes[n % len(sizes)]])
        at, n = at + len(portions[-1]), n + 1
    return portions


def vocabulary() -> Vocabulary:
    return byte_vocabulary(*WORDS, control=["<end>"], ends=["<end>"], parses_literals=True)


@given(texts, splits, st.lists(st.sampled_from([ord("x"), 256, 267]), max_size=4))
def test_growing_text_spells_the_whole_text_at_every_split(
    data: list[bytes], sizes: list[int], prefix: list[int]
) -> None:
    grown, said = GrowingText(vocabulary(), prefix), b""
    for portion in portions_of(b"".join(data), sizes):
        before = list(grown.tokens)
        changed_from = grown.append(portion)
        said += portion
        assert grown.tokens[: len(prefix)] == prefix
        assert grown.tokens[:changed_from] == before[:changed_from]
        assert changed_from >= len(before) - WINDOW
        spelled = vocabulary().decode(grown.tokens[len(prefix) :])
        assert spelled + grown.unfinished == said
        assert incomplete_tail(spelled) == 0 or incomplete_tail(said) == 0
        assert 267 not in grown.tokens[len(prefix) :]  # text never becomes a control token


@given(st.text("aeh. \n\té日🙂", max_size=80), splits)
def test_half_a_character_never_becomes_tokens(text: str, sizes: list[int]) -> None:
    grown = GrowingText(vocabulary(), [])
    for portion in portions_of(text.encode(), sizes):
        grown.append(portion)
        vocabulary().decode(grown.tokens).decode("utf-8")
    assert grown.unfinished == b""


def test_the_work_for_an_append_does_not_grow_with_the_text() -> None:
    tokenizer = PieceTokenizer([bytes([byte]) for byte in range(256)] + WORDS)
    grown, most = GrowingText(Vocabulary(tokenizer), []), 0
    for i in range(2000):
        before = tokenizer.n_bytes_read
        grown.append(b" the" if i % 7 else b"hehehehe")  # runs without a border, too
        most = max(most, tokenizer.n_bytes_read - before)
    assert most <= WINDOW * 4 + 8


def test_a_slide_keeps_the_prompts_control_tokens() -> None:
    words = vocabulary()
    grown = GrowingText(words, [*b"hello", 267, *b"ab", 267])
    grown.drop_oldest(4)
    grown.append(b"c")
    assert grown.tokens == [267, *b"ab", 267, *b"c"]
    grown.drop_oldest(3)
    grown.append(b"he")
    assert grown.tokens == [*b"b", 267, *b"che"] or grown.tokens == [*b"b", 267, *b"c", 258]


@pytest.mark.parametrize(
    ("pieces", "start"),
    [
        ([], 0),
        ([b"a"], 0),
        ([b"a", b" b", b"c"], 1),
        ([b"a", b" b", b" c", b"d"], 2),
        ([b" ", b" ", b"a"], 0),  # a run of spaces is one word
        ([b"a", b" ", b" b"], 1),
        ([b"x", b"\n"], 1),
        ([b" .", b"\n"], 0),  # many vocabularies have ".\n"
        ([b"a", b"", b"b", b"c"], 2),  # a control token is a border by itself
        ([b"a", b""], 0),
    ],
)
def test_a_safe_start_is_where_every_tokenizer_begins_a_token(pieces: list[bytes], start: int) -> None:
    assert safe_start(pieces) == start


@given(st.lists(st.integers(0, 267), max_size=20), texts)
def test_a_continuation_spells_exactly_the_text_behind_the_tail(tail: list[int], data: list[bytes]) -> None:
    text = b"".join(data)
    tokens = continuation(vocabulary(), tail, text)
    n_open = incomplete_tail(text)
    assert vocabulary().decode(tokens) == text[: len(text) - n_open]
    assert 267 not in tokens


def test_a_continuation_takes_its_borders_from_the_context() -> None:
    words = byte_vocabulary(b" the", b"the", b"rest")
    assert continuation(words, [256], b"rest") == [258]
    # " " + "the" would be one token, but the model has already written the space by itself.
    assert continuation(words, [ord("a"), ord(" ")], b"the") == [257]
    # The tokenizer's own border behind "re" lies inside what was written: the text stands for itself.
    assert continuation(words, [ord(" "), ord("r"), ord("e")], b"st rest") == [*b"st ", 258]
