"""SentencePiece's own file, tokenizer.model (a protobuf), with the tokens that the Hub's files add to it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgellm.export.read import tokenizer_facts
from edgellm.export.read.gguf_vocabulary import (
    ADDED_SCORE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    GgufVocabulary,
    Tokens,
)
from edgellm.export.read.json_file import read_json
from edgellm.export.read.tokenizer_config import chat_templates, special_ids
from edgellm.export.read.tokenizer_facts import TokenizerError
from edgellm.memory.byte_encoder import SPACE, looks_special
from edgellm.memory.protobuf import ProtobufError, fields


def account_model_file(folder: Path) -> None:
    """Refuse a tokenizer.model that llama.cpp cuts text by otherwise, whoever converts it.

    Raises:
        TokenizerError: which setting, or damage.
    """
    try:
        _pieces(folder)
    except (KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise TokenizerError(f"{folder}: tokenizer.model is damaged ({error!r}): download it again") from error


def _pieces(folder: Path) -> tuple[list[tuple[bytes, float, int]], bool]:
    """Each piece of tokenizer.model: text, score and kind; and whether a space is put before a text."""
    pieces, trainer, normalizer = parts_of(folder / "tokenizer.model")
    has_user_defined = any(kind == USER_DEFINED for _, _, kind in pieces)
    tokenizer_facts.account_sentencepiece(folder, trainer, normalizer, has_user_defined=has_user_defined)
    return pieces, bool(normalizer.get(3, True))


def parts_of(path: Path) -> tuple[list[tuple[bytes, float, int]], dict[int, Any], dict[int, Any]]:
    """SentencePiece's own file (a protobuf): (text, score, kind) of each piece, and the fields by number of what it
    says of the training and of how text is normalised.

    Raises:
        TokenizerError: it is damaged, or has a part that is not known.
    """
    folder, data = path.parent, path.read_bytes()
    pieces: list[tuple[bytes, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _protobuf(data, folder):
        if number == 1 and isinstance(value, bytes):
            fields = dict(_protobuf(value, folder))
            score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
            pieces.append((fields[1], score, fields.get(3, NORMAL)))
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(_protobuf(value, folder))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_protobuf(value, folder))
        elif number != 4 and value:  # 4 holds samples to test it with
            raise TokenizerError(f"{folder}: {path.name} has a part {number} that is not known here")
    if not trainer:
        raise TokenizerError(f"{folder}: {path.name} is damaged or truncated: download it again")
    return pieces, trainer, normalizer


def from_model_file(folder: Path, config: dict[str, Any], n_vocab: int | None) -> GgufVocabulary:
    """tokenizer.model, with the tokens that the Hub's files add to it."""
    pieces, has_dummy_prefix = _pieces(folder)
    tokenizer_facts.account_config(folder, config)
    tokenizer_facts.account_flags(folder, list((config.get("added_tokens_decoder") or {}).values()))
    added: dict[int, tuple[str, bool]] = {}
    strips_right = any(entry.get("rstrip") for entry in (config.get("added_tokens_decoder") or {}).values())
    if (folder / "added_tokens.json").exists():
        added |= {int(token): (text, False) for text, token in read_json(folder / "added_tokens.json").items()}
    for token, entry in (config.get("added_tokens_decoder") or {}).items():
        added[int(token)] = (str(entry["content"]), bool(entry.get("special")))
    tokens = Tokens.blank(folder, 1 + max([len(pieces) - 1, *added]), n_vocab, score=ADDED_SCORE)
    texts, types, scores = tokens.texts, tokens.types, tokens.scores
    for token, (text, score, kind) in enumerate(pieces[: len(texts)]):
        texts[token], scores[token] = text, score
        types[token] = kind if kind in {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE} else NORMAL
    for token, (content, special) in added.items():
        if not 0 <= token < len(texts) or types[token] == UNKNOWN:
            continue
        control = special or looks_special(content) or types[token] == CONTROL
        texts[token] = (content if control else content.replace(SPACE, " ")).encode()
        types[token], scores[token] = CONTROL if control else USER_DEFINED, ADDED_SCORE
    tokens.refuse_doubles(folder)
    ids = special_ids(folder, config, texts, types)
    told_bos, told_eos = config.get("add_bos_token"), config.get("add_eos_token")
    return GgufVocabulary(
        model="llama",
        pre="default",
        tokens=texts,
        types=types,
        scores=scores,
        merges=None,
        special_ids=ids,
        add_bos=(told_bos if isinstance(told_bos, bool) else True) and "bos" in ids,
        add_eos=bool(told_eos) and "eos" in ids,
        add_space_prefix=has_dummy_prefix,
        chat_templates=chat_templates(folder, config),
        strips_right=strips_right,
    )


def _protobuf(data: bytes, folder: Path) -> Iterator[tuple[int, Any]]:
    """The fields of one message of tokenizer.model."""
    try:
        yield from fields(data)
    except ProtobufError as error:
        raise TokenizerError(f"{folder}: tokenizer.model is damaged or truncated: download it again") from error
