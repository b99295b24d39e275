"""Which vocabularies count as one, and what two others share."""

from __future__ import annotations

from fakes import PieceTokenizer, byte_vocabulary

from edgellm.runtime.text.vocabulary import Vocabulary
from edgellm.runtime.text.vocabulary_match import match, overlap

WORDS = [b"word%03d" % i for i in range(1000)]


def with_padding(words: list[bytes], n_padding: int) -> Vocabulary:
    pieces = [bytes([byte]) for byte in range(256)] + words + [b""] * n_padding
    kinds = ["normal"] * (256 + len(words)) + ["unused"] * n_padding
    return Vocabulary(PieceTokenizer(pieces, kinds=kinds))  # type: ignore[arg-type]


def test_a_vocabulary_is_the_same_as_itself() -> None:
    found = match(byte_vocabulary(*WORDS), byte_vocabulary(*WORDS))
    assert (found.same, found.different, found.reason) == (True, frozenset(), "the vocabularies are the same")


def test_padding_makes_no_other_vocabulary() -> None:
    plain, padded = with_padding(WORDS, 0), with_padding(WORDS, 300)
    assert match(padded, plain).same
    found = match(plain, padded)
    assert found.same
    assert found.different == frozenset(range(1256, 1556))  # never to be proposed
    assert "0 ids and 300 of padding" in found.reason


def test_a_few_renamed_tokens_make_no_other_vocabulary() -> None:
    renamed = list(WORDS)
    renamed[5], renamed[70], renamed[500] = b"<tool>", b"</tool>", b"!!"
    found = match(byte_vocabulary(*WORDS), byte_vocabulary(*renamed))
    assert found.same
    assert found.different == frozenset({261, 326, 756})


def test_many_differences_make_another_vocabulary() -> None:
    found = match(byte_vocabulary(*WORDS), byte_vocabulary(*reversed(WORDS)))
    assert not found.same
    assert "1,256 and 1,256 tokens" in found.reason
    assert not match(byte_vocabulary(*WORDS), byte_vocabulary(*WORDS[:500])).same
    assert match(byte_vocabulary(*WORDS[:995]), byte_vocabulary(*WORDS)).same


def test_another_meaning_of_the_end_is_a_difference() -> None:
    ours = byte_vocabulary(*WORDS, control=["<end>", "<pad>"], ends=["<end>"])
    theirs = byte_vocabulary(*WORDS, control=["<end>", "<pad>"], ends=["<pad>"])
    assert match(ours, theirs).different == frozenset({1256, 1257})


def test_overlap_is_counted_in_bytes() -> None:
    ours = byte_vocabulary(b"the", b" the", b"hand", b"\xc3\xa9", b"\xf0\x9f", control=["<end>"])
    theirs = byte_vocabulary(b" the", b"ha", b"nd", b"the", control=["<s>", "<end>"])
    found = overlap(ours, theirs)
    assert (found.n_target, found.n_draft, found.n_shared) == (261, 260, 258)
    # "hand" is ha + nd, é is two bytes; half an emoji is never drafted by itself.
    assert (found.n_split, found.mean_split) == (2, 2.0)
    assert found.of_target == 258 / 261
    assert found.of_draft == 258 / 260


def test_overlap_survives_a_drafter_that_lacks_bytes() -> None:
    small = Vocabulary(PieceTokenizer([b"a", b"b", b"ab"]))
    found = overlap(byte_vocabulary(b"abab", b"abc"), small)
    assert (found.n_shared, found.n_split, found.mean_split) == (2, 1, 2.0)
