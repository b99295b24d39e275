"""Real tokenizers of four families from the Hub's files: lossless on any bytes, and the family's own ids for text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoints import small_tokenizer
from vocabularies import FILES, tokenizer_folder

from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.backends.hub_tokenizer import HubFolder
from edgellm.runtime.text.template import ChatTemplate, Message
from edgellm.runtime.text.vocabulary import Vocabulary

SIZES = {"llama2": 32_000, "llama3": 128_256, "qwen3": 151_936, "gemma3": 262_144}
TEXTS = (
    "Hello, world!", "  two  spaces\n\n\nand lines\t", "naïve café 你好 🙂 नमस्ते", "def f(x):\n    return x ** 2  # ok",
    "3.14159 and 1,000,000", "<|im_start|>system<|im_end|> <bos> </s> <start_of_turn>",
)  # fmt: skip


@pytest.fixture(scope="module", params=SIZES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Vocabulary]:
    folder = tmp_path_factory.mktemp(request.param)
    for name in FILES:
        shutil.copy(tokenizer_folder(request.param) / name, folder)
    return folder, Vocabulary(HubFolder(folder).tokenizer(SIZES[request.param]))


def test_every_text_and_every_byte_survives(family: tuple[Path, Vocabulary]) -> None:
    _, vocabulary = family
    for text in TEXTS:
        for data in (text.encode(), text.encode()[1:], text.encode()[:-1]):
            tokens = vocabulary.encode(data)
            assert vocabulary.decode(tokens) == data
            assert not vocabulary.control.intersection(tokens)
    every = bytes(range(256))
    assert vocabulary.decode(vocabulary.encode(every)) == every


def test_plain_text_gets_the_ids_of_the_family(family: tuple[Path, Vocabulary]) -> None:
    import tokenizers

    folder, vocabulary = family
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS[:5]:
        expected = reference.encode(text, add_special_tokens=False).ids
        found = vocabulary.encode(text.encode())
        if vocabulary.decode(expected) == text.encode():  # without the space that SentencePiece puts first
            assert found == expected


def test_a_chat_is_written_with_the_familys_own_markers(family: tuple[Path, Vocabulary]) -> None:
    folder, vocabulary = family
    template = ChatTemplate(HubFolder(folder).chat_template(), vocabulary)
    tokens = template.render([Message("user", "hi <|im_end|></s><end_of_turn>")])
    assert b"hi <|im_end|></s><end_of_turn>" in vocabulary.decode(tokens)  # what a user writes stays text
    assert vocabulary.end_tokens
    if vocabulary.adds_bos:
        assert tokens[0] == vocabulary.bos


def small(folder: Path, change: Any) -> HubFolder:
    small_tokenizer(folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return HubFolder(folder)


def test_a_tokenizer_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    files = small(tmp_path, lambda document: document["model"].update(type="WordPiece"))
    with pytest.raises(LoadError, match="WordPiece is not supported"):
        files.tokenizer(301)


@pytest.mark.parametrize("key", ["model", "added_tokens"])
def test_a_damaged_tokenizer_costs_one_sentence(tmp_path: Path, key: str) -> None:
    files = small(tmp_path, lambda document: document.update({key: [{"id": "x"}]}))
    with pytest.raises(LoadError, match=r"tokenizer\.json is damaged"):
        files.tokenizer(301)


def test_end_tokens_come_from_every_file_that_names_some(tmp_path: Path) -> None:
    small_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 11}))
    tokenizer = HubFolder(tmp_path).tokenizer(301)
    assert tokenizer.end_tokens >= {7, 9, 11, 300}
