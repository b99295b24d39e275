"""The exported vocabulary cuts text exactly as the reference tokenizer does."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import pytest
from sentencepiece_file import sentencepiece_model
from vocabularies import (
    NAMES,
    NASTY,
    EngineVocabulary,
    reference_tokenizer,
    template,
    tokenizer_folder,
    vocabulary_gguf,
    write_vocabulary_gguf,
)

from edgellm.export.tokenizer import TokenizerError, read_vocabulary
from edgellm.memory.alphabet import byte_alphabet
from edgellm.memory.gguf import read_header

PARTS = [
    " ", "  ", "\n", "\n\n", "\t", "    ", "the", "Hello", "ing", "123", "7", ".", ",", "'s", "'LL", "é", "你好", "—",
    "def ", "_", "(", ")", "{", "}", "x", "<", ">", "|", "0", "🙂", "ß", "Ж", "\r\n", "’", "http://", "=", "==",
]  # fmt: skip
RANGES = [
    (32, 127),
    (0xA0, 0x250),
    (0x400, 0x500),
    (0x900, 0x980),
    (0x4E00, 0x5000),
    (0xAC00, 0xAE00),
    (0x1F300, 0x1F700),
]


def random_text(rng: random.Random) -> str:
    kind = rng.randrange(3)
    if kind == 0:
        return "".join(chr(rng.randrange(*rng.choice(RANGES))) for _ in range(rng.randrange(1, 60)))
    if kind == 1:
        return "".join(rng.choice(PARTS) for _ in range(rng.randrange(1, 40)))
    return "".join(rng.choice(NASTY) for _ in range(rng.randrange(1, 4)))


def has_an_equal(name: str, text: str) -> bool:
    """False for the few texts that llama.cpp cannot cut as the reference does, whatever the file says."""
    if name == "qwen3" and "</s>" in text:  # llama.cpp takes every `</s>` for a control token; to Qwen it is text
        return False
    return name != "gemma3" or "\u2581" not in text  # written-out space signs beside spaces


@pytest.mark.parametrize("name", NAMES)
def test_5000_random_and_nasty_texts_are_cut_as_the_reference_cuts_them(name: str) -> None:
    engine, reference = EngineVocabulary(vocabulary_gguf(name)), reference_tokenizer(name)
    rng = random.Random(20260801)
    texts = NASTY + [random_text(rng) for _ in range(5000)]
    if name == "qwen3":  # its reference composes characters first, which llama.cpp leaves to the caller
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    texts = [text for text in texts if has_an_equal(name, text)]
    assert len(texts) > 4500
    for text in texts:
        for add_special in (False, True):
            expected = reference.encode(text, add_special_tokens=add_special).ids
            assert engine.encode(text, add_special=add_special) == expected, text


@pytest.mark.parametrize("name", NAMES)
def test_every_token_has_its_id_its_kind_and_its_place(name: str) -> None:
    reference, vocabulary = reference_tokenizer(name), read_vocabulary(tokenizer_folder(name))
    assert len(vocabulary.tokens) == max(reference.get_vocab().values()) + 1
    header = read_header(vocabulary_gguf(name))
    assert header.array("tokenizer.ggml.tokens") == vocabulary.tokens
    assert header.metadata.get("tokenizer.chat_template", "") == template(name)
    engine = EngineVocabulary(vocabulary_gguf(name))
    assert engine.n_tokens == len(vocabulary.tokens)


def test_a_vocabulary_is_filled_up_to_the_rows_of_the_model() -> None:
    vocabulary = read_vocabulary(tokenizer_folder("qwen3"), n_vocab=151_936)
    assert len(vocabulary.tokens) == 151_936
    assert vocabulary.tokens[-1] == b"[PAD151935]"
    with pytest.raises(TokenizerError, match="only 1,000 rows"):
        read_vocabulary(tokenizer_folder("qwen3"), n_vocab=1000)


def small_bpe(folder: Path, **model: object) -> Path:
    """A byte-level tokenizer of 256 bytes and two merges, as Hub files."""
    vocab = {sign: token for token, sign in enumerate(byte_alphabet())} | {"th": 256, "the": 257}
    document = {
        "added_tokens": [{"id": 258, "content": "<|end|>", "special": True, "normalized": False}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["t h", "th e"], **model},
    }
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


def test_a_fine_tune_with_another_vocabulary_keeps_its_pre_tokenizer(tmp_path: Path) -> None:
    folder = small_bpe(tmp_path / "tuned")
    vocabulary = read_vocabulary(folder)
    assert (vocabulary.pre, vocabulary.special_ids, vocabulary.add_bos) == ("gpt-2", {"eos": 258}, False)
    write_vocabulary_gguf(folder, tmp_path / "tuned.gguf")
    engine = EngineVocabulary(tmp_path / "tuned.gguf")
    assert engine.encode("the<|end|>") == [257, 258]


def test_an_unknown_way_of_splitting_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = small_bpe(tmp_path / "odd", ignore_merges=True)
    with pytest.raises(TokenizerError, match="--converter PATH"):
        read_vocabulary(folder)
    with pytest.raises(TokenizerError, match="type Unigram is not supported"):
        read_vocabulary(small_bpe(tmp_path / "unigram", type="Unigram"))


def test_tokenizer_model_alone_gives_the_same_vocabulary(tmp_path: Path) -> None:
    folder = tokenizer_folder("llama2")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(folder))
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 32_000}))
    vocabulary, expected = read_vocabulary(tmp_path), read_vocabulary(folder)
    assert vocabulary.tokens == [*expected.tokens, b"<pad>"]
    assert vocabulary.types[:-1] == expected.types
    assert (vocabulary.special_ids, vocabulary.add_bos) == (expected.special_ids, expected.add_bos)
    assert vocabulary.add_space_prefix
    write_vocabulary_gguf(tmp_path, tmp_path / "it.gguf")
    engine, reference = EngineVocabulary(tmp_path / "it.gguf"), reference_tokenizer("llama2")
    for text in NASTY:
        if "<pad>" not in text:
            assert engine.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_a_damaged_tokenizer_model_is_one_clear_error(tmp_path: Path) -> None:
    data = sentencepiece_model(tokenizer_folder("llama2"))
    (tmp_path / "tokenizer.model").write_bytes(data[: len(data) // 2 + 1])
    with pytest.raises(TokenizerError, match="damaged or truncated"):
        read_vocabulary(tmp_path)


def test_no_tokenizer_and_a_broken_one_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab"')
    with pytest.raises(TokenizerError, match="no valid JSON"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": [1], "merges": []}}')
    with pytest.raises(TokenizerError, match="damaged"):
        read_vocabulary(tmp_path)


def test_two_tokens_of_one_text_are_refused_because_llama_cpp_would_end_the_process(tmp_path: Path) -> None:
    folder = small_bpe(tmp_path)
    document = json.loads((folder / "tokenizer.json").read_text())
    document["added_tokens"].append({"id": 259, "content": "the", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(TokenizerError, match="there twice"):
        read_vocabulary(folder)
