"""tokenizer.model rebuilt from tokenizer.json, as Llama 2's own: scores fall with the order of the merges."""

from __future__ import annotations

import struct
from pathlib import Path

from edgellm.export.read.tokenizer import read_vocabulary


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def message(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def setting(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def sentencepiece_model(folder: Path, *, trainer: bytes = b"", normalizer: bytes = b"") -> bytes:
    """Further settings replace those that Llama 2's has."""
    vocabulary = read_vocabulary(folder)
    assert vocabulary.scores is not None
    out = bytearray()
    for text, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True):
        piece = message(1, text) + varint(2 << 3 | 5) + struct.pack("<f", score) + varint(3 << 3) + varint(kind)
        out += message(1, piece)
    trainer = setting(3, 2) + setting(35, 1) + trainer  # BPE; unknown signs become bytes
    normalizer = setting(3, 1) + setting(4, 0) + normalizer  # a space before the text, all other spaces as they are
    return bytes(out) + message(2, trainer) + message(3, normalizer)
