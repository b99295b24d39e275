"""Lessons as bytes: packed one by one, so that the newest is added and the oldest dropped without unpacking any.

A record is a head of three numbers and a deflated body: a line of JSON, then arrays: tokens [n_tokens] i4, and for what
was likely counts [n_likely] u1, tokens [sum of counts] i4 and probabilities [sum of counts] u2 in steps of 1 / 65535.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.distillation.lesson import Lesson, Likely

MAX_TOKENS = 400_000  # of all answers that are kept for a target
MAX_BYTES = 16 * 2**20  # of all lessons, unpacked: so much and no more comes out of a file
MAX_RECORD_BYTES = 2**20  # of one, unpacked
MAX_LIKELY = 16  # tokens at a place
MAX_KIND_CHARACTERS = 32
ROLES = ("system", "user", "assistant")
_HEAD = struct.Struct("<III")  # bytes packed, bytes unpacked, tokens of the answer
_STEPS = 65_535  # of a probability


def pack(lesson: Lesson) -> bytes:
    """A record. The same lesson always makes the same one."""
    likely = [place[:MAX_LIKELY] for place in lesson.likely]
    line = {
        "messages": lesson.messages,
        "ended": lesson.ended,
        "kind": lesson.kind[:MAX_KIND_CHARACTERS],
        "n_likely": len(likely),
    }
    entries = [entry for place in likely for entry in place]
    body = b"".join(
        (
            json.dumps(line, ensure_ascii=False).encode() + b"\n",
            np.array(lesson.tokens, "<i4").tobytes(),
            bytes(map(len, likely)),
            np.array([token for token, _ in entries], "<i4").tobytes(),
            np.array([round(probability * _STEPS) for _, probability in entries], "<u2").tobytes(),
        )
    )
    packed = zlib.compress(body)
    return _HEAD.pack(len(packed), len(body), len(lesson.tokens)) + packed


def records_of(payload: bytes) -> list[bytes]:
    """The records of a file, the oldest first.

    Raises:
        ValueError: it holds something else, or more than ever is kept.
    """
    records, at, n_bytes, n_tokens = [], 0, 0, 0
    while at < len(payload):
        if at + _HEAD.size > len(payload):
            raise ValueError("half a lesson")
        n_packed, n_raw, n = _HEAD.unpack_from(payload, at)
        end = at + _HEAD.size + n_packed
        n_bytes, n_tokens = n_bytes + n_raw, n_tokens + n
        if end > len(payload) or n_raw > MAX_RECORD_BYTES or n_bytes > MAX_BYTES or n_tokens > MAX_TOKENS:
            raise ValueError("a lesson that is longer than it can be")
        records.append(payload[at:end])
        at = end
    return records


def newest(records: Iterable[bytes], max_tokens: int = MAX_TOKENS, max_bytes: int = MAX_BYTES) -> list[bytes]:
    """Of these, given the oldest first, the newest that fit the budget; one that comes twice counts as new."""
    kept, n_bytes, n_tokens = [], 0, 0
    for record in dict.fromkeys(reversed(list(records))):
        _, n_raw, n = _HEAD.unpack_from(record)
        n_bytes, n_tokens = n_bytes + n_raw, n_tokens + n
        if n_tokens > max_tokens or n_bytes > max_bytes:
            break
        kept.append(record)
    return kept[::-1]


def unpack(record: bytes, n_vocab: int) -> Lesson:
    """The lesson of a record, for a vocabulary of that size.

    Raises:
        ValueError: it is none; nothing larger than it says has been unpacked.
    """
    _, n_raw, n_tokens = _HEAD.unpack_from(record)
    inflating = zlib.decompressobj()
    try:
        body = inflating.decompress(record[_HEAD.size :], n_raw + 1)
        if len(body) != n_raw or not inflating.eof or inflating.unused_data:
            raise ValueError("a lesson that is not as long as it says")
        line, _, arrays = body.partition(b"\n")
        return _lesson(json.loads(line), arrays, n_tokens, n_vocab)
    except (KeyError, TypeError, RecursionError, zlib.error) as error:
        raise ValueError(f"a lesson that cannot be read: {error}") from None


def _lesson(line: Any, arrays: bytes, n_tokens: int, n_vocab: int) -> Lesson:
    messages = tuple((role, content) for role, content in line["messages"])
    ended, kind, n_likely = line["ended"], line["kind"], line["n_likely"]
    if not messages or not all(map(_is_message, messages)):
        raise ValueError("a lesson with messages that are none")
    if not isinstance(ended, bool) or not _is_text(kind) or len(kind) > MAX_KIND_CHARACTERS:
        raise ValueError("a lesson that does not say where it comes from")
    if type(n_likely) is not int or not 0 <= n_likely <= n_tokens + 1:
        raise ValueError("a lesson that knows of more places than it has")
    n_known = 4 * n_tokens + n_likely
    counts = list(arrays[4 * n_tokens : n_known])
    n = sum(counts)
    if len(arrays) != n_known + 6 * n or max(counts, default=0) > MAX_LIKELY:
        raise ValueError("a lesson whose numbers are too many or too few")
    tokens = _tokens(np.frombuffer(arrays, "<i4", n_tokens), n_vocab)
    ids = _tokens(np.frombuffer(arrays, "<i4", n, n_known), n_vocab)
    probabilities = (np.frombuffer(arrays, "<u2", n, n_known + 4 * n) / _STEPS).tolist()
    return Lesson(messages, tokens, ended, _places(counts, ids, probabilities), kind)


def _tokens(ids: NDArray[np.int32], n_vocab: int) -> tuple[int, ...]:
    if ids.size and (ids.min() < 0 or ids.max() >= n_vocab):
        raise ValueError("a lesson with tokens that the vocabulary lacks")
    return tuple(ids.tolist())


def _places(counts: list[int], ids: tuple[int, ...], probabilities: list[float]) -> tuple[Likely, ...]:
    borders = np.cumsum([0, *counts]).tolist()
    entries = tuple(zip(ids, probabilities, strict=True))
    return tuple(entries[begin:end] for begin, end in pairwise(borders))


def _is_message(message: tuple[Any, Any]) -> bool:
    role, content = message
    return role in ROLES and _is_text(content)


def _is_text(value: Any) -> bool:
    """Half a surrogate pair is none: JSON can spell it, and no tokenizer takes it."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
