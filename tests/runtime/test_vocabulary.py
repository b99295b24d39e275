"""Any bytes survive a vocabulary, over real tokenizers of five families and small ones made by hand."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest
from fakes import PieceTokenizer, byte_vocabulary
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import NAMES, NASTY, vocabulary_gguf

from edgellm.export.convert import gguf_writer
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.text.translate import GrowingText
from edgellm.runtime.text.vocabulary import MAX_WORD_BYTES, MAX_WORDS, CannotEncode, Vocabulary, incomplete_tail

REAL = ("smollm2", *NAMES)
N_STRINGS = 10_000
# Bytes that SmolLM2 has no token for: six control characters, and bytes that no assigned character holds.
LACKING = {"smollm2": bytes([0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)])}
PROSE = (
    "Dear all,\n\nthe meeting is at 10:30 (room 4.12).\nPlease bring: notes, a pen,\tand \"ideas\"...\n\n"
    "def f(x):\n    if x > 1:\n        return [x, 'é'];\n\n\nNaïve café – 東京は晴れ。🙂👍🏽 Ok?!\r\nEnd.\n"
)  # fmt: skip


@functools.cache
def loaded(path: Path) -> Vocabulary:
    model = LlamaModel(path, ModelOptions(vocabulary_only=True))
    _kept.append(model)
    return model.vocabulary


_kept: list[LlamaModel] = []


@pytest.fixture(params=REAL)
def named(request: pytest.FixtureRequest) -> tuple[str, Vocabulary]:
    name = request.param
    return name, loaded(request.getfixturevalue("smollm2_path") if name == "smollm2" else vocabulary_gguf(name))


@functools.cache
def byte_strings(lacking: bytes) -> list[bytes]:
    """Mixtures of what trips tokenizers, none of `lacking` in them."""
    rng = random.Random(0)
    literals = [
        "<|im_start|>",
        "<|im_end|>",
        "<s>",
        "</s>",
        "<|eot_id|>",
        "<start_of_turn>",
        "<unk>",
        "<0x0A>",
        "[INST]",
    ]

    def part() -> bytes:
        match rng.randrange(8):
            case 0:
                return rng.randbytes(rng.randrange(1, 5))
            case 1:
                return "".join(
                    rng.choices("🙂👩‍👩‍👧🏽🏳️‍🌈é日本語ñｱ한글ا\u0301\u200b\u3000", k=rng.randrange(1, 6))
                ).encode()
            case 2:
                return rng.choice(["\n", "\r\n", "\t", " ", "    "]).encode() * rng.randrange(1, 9)
            case 3:
                return bytes([rng.randrange(0x80, 0xC0)]) * rng.randrange(1, 4)  # lone continuation bytes
            case 4:
                return rng.choice(literals).encode()
            case 5:
                return rng.choice(NASTY).encode()
            case 6:
                return b"\0" * rng.randrange(1, 3)
            case _:
                return " ".join(rng.choices(["the", "Der", "return", "x=1;", "don't", "3.14", "---"], k=4)).encode()

    strings = [b"".join(part() for _ in range(rng.randrange(1, 5))) for _ in range(N_STRINGS)]
    return [data.translate(None, lacking) for data in strings]


def test_the_bytes_that_a_vocabulary_lacks_are_known(named: tuple[str, Vocabulary]) -> None:
    name, vocabulary = named
    lacking = set[bytes]()
    for byte in range(256):
        try:
            assert vocabulary.decode(vocabulary.encode(bytes([byte]))) == bytes([byte])
        except CannotEncode as error:
            lacking.add(error.byte)
    assert b"".join(sorted(lacking)) == LACKING.get(name, b"")


def test_any_bytes_survive_and_never_become_control_tokens(named: tuple[str, Vocabulary]) -> None:
    name, vocabulary = named
    for data in byte_strings(LACKING.get(name, b"")):
        tokens = vocabulary.encode(data)
        assert vocabulary.decode(tokens) == data
        assert vocabulary.control.isdisjoint(tokens)


@pytest.mark.parametrize(("target", "draft"), [("smollm2", "gemma3"), ("qwen3", "llama2"), ("llama3", "smollm2")])
def test_any_bytes_survive_from_target_to_draft_and_back(target: str, draft: str, smollm2_path: Path) -> None:
    ours, theirs = (loaded(smollm2_path if name == "smollm2" else vocabulary_gguf(name)) for name in (target, draft))
    lacking = LACKING["smollm2"] if "smollm2" in (target, draft) else b""
    for data in byte_strings(lacking)[::5]:
        said = ours.decode(ours.encode(data))
        drafted = theirs.decode(theirs.encode(said))
        assert ours.decode(ours.encode(drafted)) == data


def test_missing_bytes_are_left_out_and_nothing_else(smollm2_path: Path) -> None:
    vocabulary, lacking = loaded(smollm2_path), LACKING["smollm2"]
    data = b"Say \x04this\xff, \xf1please: " + PROSE.encode() + b"\xfe"
    tokens = vocabulary.encode_leniently(data)
    assert vocabulary.decode(tokens) == data.translate(None, lacking)
    # Around them words stay words: a missing byte does not turn the rest into single bytes.
    assert len(tokens) <= len(vocabulary.encode(data.translate(None, lacking)))


def test_every_text_token_is_spelled_again(named: tuple[str, Vocabulary]) -> None:
    _, vocabulary = named
    pieces = list(vocabulary.text_tokens())
    for piece in pieces[:: max(1, len(pieces) // 4000)]:
        assert vocabulary.decode(vocabulary.encode(piece)) == piece


def test_text_that_grows_is_tokenised_as_if_it_had_been_there_at_once(named: tuple[str, Vocabulary]) -> None:
    """Where a drafter reads other tokens than its own tokenizer would have made, it guesses worse."""
    name, vocabulary = named
    data = PROSE.encode() * 2
    whole, rng = vocabulary.encode(data), random.Random(1)
    for _ in range(20):
        grown, at = GrowingText(vocabulary, []), 0
        while at < len(data):
            n = rng.randrange(1, 12)
            grown.append(data[at : at + n])
            at += n
        assert vocabulary.decode(grown.tokens) == data
        assert grown.tokens == whole, name


def test_a_real_vocabularys_end_and_literals_are_found(named: tuple[str, Vocabulary]) -> None:
    _, vocabulary = named
    assert vocabulary.turn_end in vocabulary.end_tokens
    assert vocabulary.end_tokens <= vocabulary.control
    assert all(vocabulary.piece(token) == b"" for token in vocabulary.control)
    assert set(vocabulary.literals.values()) >= vocabulary.end_tokens


def test_equal_vocabularies_have_equal_fingerprints(smollm2_path: Path) -> None:
    again = LlamaModel(smollm2_path, ModelOptions(vocabulary_only=True))
    assert loaded(smollm2_path).fingerprint() == again.vocabulary.fingerprint()
    assert (
        byte_vocabulary(b"ab", control=["<a>"]).fingerprint() != byte_vocabulary(b"ab", control=["<b>"]).fingerprint()
    )
    assert byte_vocabulary(b"ab").fingerprint() != byte_vocabulary(b"ac").fingerprint()
    again.close()


@given(st.binary(max_size=60))
def test_any_bytes_survive_a_small_vocabulary(data: bytes) -> None:
    vocabulary = byte_vocabulary(b"  ", b"\n ", "é".encode(), b"ab", control=["<end>"], parses_literals=True)
    assert vocabulary.decode(vocabulary.encode(data)) == data


def test_reserved_tokens_are_spelled_letter_by_letter() -> None:
    pieces = [bytes([byte]) for byte in range(256)] + [b"<turn>", b"hi"]
    vocabulary = Vocabulary(PieceTokenizer(pieces, kinds=["normal"] * 256 + ["user", "normal"]))
    assert vocabulary.encode(b"hi<turn>hi") == [257, 256, 257]
    tokens = vocabulary.encode(b"hi<turn>hi", frozenset({256}))
    assert 256 not in tokens
    assert vocabulary.decode(tokens) == b"hi<turn>hi"


def test_a_byte_without_a_token_is_named() -> None:
    vocabulary = Vocabulary(PieceTokenizer([b"a", "é".encode()]))
    assert vocabulary.encode("aéa".encode()) == [0, 1, 0]
    with pytest.raises(CannotEncode, match="no token for byte 0x62"):
        vocabulary.encode(b"ab")
    assert vocabulary.encode_leniently(b"ab\xffca") == [0, 0]


@given(st.text(max_size=20), st.integers(0, 3))
def test_an_incomplete_tail_is_what_a_decoder_waits_for(text: str, n_cut: int) -> None:
    import codecs

    data = text.encode("utf-8", "ignore")
    data = data[: len(data) - n_cut]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    assert incomplete_tail(data) == len(decoder.getstate()[0])


def test_text_tokenised_word_by_word_is_the_text_tokenised_whole(named: tuple[str, Vocabulary]) -> None:
    _, vocabulary = named
    for data in (PROSE.encode(), PROSE.encode() * 2, b" leading", b"x\n\n  y\t z"):
        assert vocabulary.encode_words(data) == vocabulary.encode(data)


def test_the_words_that_are_remembered_are_bounded() -> None:
    vocabulary = byte_vocabulary()
    for i in range(3 * MAX_WORDS):
        vocabulary.encode_words(b" %d" % i)
    vocabulary.encode_words(b"x" * 10_000)
    assert len(vocabulary._words) <= MAX_WORDS
    assert max(map(len, vocabulary._words)) <= MAX_WORD_BYTES


def test_letters_that_sentencepiece_cannot_spell_are_left_out_and_end_nothing(tmp_path: Path) -> None:
    """Without byte tokens the engine itself would end the process."""
    path = tmp_path / "letters.gguf"
    write_letters(path, ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "<", "\u00e9"])
    vocabulary = loaded(path)
    assert vocabulary.encode("ab é a".encode()) == [4, 5, 3, 7, 3, 4]
    with pytest.raises(CannotEncode, match="no token for byte 0x63"):
        vocabulary.encode(b"abc")
    assert vocabulary.encode_leniently("abc ж\na\x00".encode()) == [4, 5, 3, 4]
    assert vocabulary.encode_marked(b"<s>ac</s><") == [1, 3, 4, 2, 3, 6]
    write_letters(path.with_name("b.gguf"), ["<unk>", "<s>", "</s>", "a"])
    with pytest.raises(LoadError, match="no token for a space"):
        loaded(path.with_name("b.gguf"))


def write_letters(path: Path, tokens: list[str]) -> None:
    entries = {
        "general.architecture": gguf_writer.string("llama"),
        "llama.block_count": gguf_writer.u32(1),
        "tokenizer.ggml.model": gguf_writer.string("llama"),
        "tokenizer.ggml.tokens": gguf_writer.strings(tokens),
        "tokenizer.ggml.scores": gguf_writer.f32s([0.0] * len(tokens)),
        "tokenizer.ggml.token_type": gguf_writer.i32s([2, 3, 3] + [1] * (len(tokens) - 3)),
        "tokenizer.ggml.bos_token_id": gguf_writer.u32(1),
        "tokenizer.ggml.eos_token_id": gguf_writer.u32(2),
    }
    gguf_writer.write_gguf(path, entries, [])
