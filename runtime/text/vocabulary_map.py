"""What two vocabularies say of each other, in a file beside the drafter: worked out once, when the pair is exported.

Reading every token of both takes a second at each load, and spelling one vocabulary's tokens in the other's several
more. The file holds nothing that the vocabularies alone do not give, so it is never needed: one that is missing,
damaged or for another pair is passed over.

Layout, little-endian: magic (8 bytes), sha256 of all that follows (32), length of the header (u32), header (JSON), then
the arrays: direct int32 (n_draft,), different int32 (n_different,), spelled int32 (n_spelled,), parts int32 (n_parts,),
lengths uint8 (n_spelled,).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.errors import EdgellmError
from edgellm.runtime.text.vocabulary import CannotEncode, Vocabulary
from edgellm.runtime.text.vocabulary_match import Match, Overlap, match

SUFFIX = ".pair"
MAX_PARTS = 8  # of the drafter's tokens for one of the target's; longer spellings are never drafted whole
_MAGIC, _VERSION = b"EDGEPAIR", 1
_MAX_HEADER_BYTES = 4096
_MAX_TOKENS = 2**21  # of a vocabulary; larger ones are damage
_COUNTS = ("n_target", "n_draft", "n_different", "n_spelled", "n_parts", "n_target_text", "n_draft_text")
_PREFIX = struct.Struct("<8s32sI")


class BadTable(EdgellmError, ValueError):
    """A file that is no table of this version, or a damaged one."""


@dataclass(frozen=True, slots=True, eq=False)
class VocabularyMap:
    """Two vocabularies, by bytes. Ids of the drafter on one side, of the target on the other."""

    target_key: str  # `GgufHeader.vocabulary_key` of each
    draft_key: str
    engine: str  # whose reading of the vocabularies it is
    match: Match
    direct: NDArray[np.int32]  # (n_draft,): the target's id of the same bytes, -1 where there is none
    spelled: NDArray[np.int32]  # (n_spelled,): the target's tokens that the drafter spells with several of its own,
    lengths: NDArray[np.uint8]  # (n_spelled,): how many each, 2 .. MAX_PARTS,
    parts: NDArray[np.int32]  # (sum of lengths,): and which
    n_target: int
    n_target_text: int  # tokens that stand for text
    n_draft_text: int

    @classmethod
    def build(
        cls, target: Vocabulary, draft: Vocabulary, *, target_key: str, draft_key: str, engine: str
    ) -> VocabularyMap:
        """Work it out: seconds for vocabularies of 100,000 tokens."""
        ours, theirs = target.text_tokens(), draft.text_tokens()
        direct = np.full(draft.n_tokens, -1, np.int32)
        for token, kind in enumerate(draft.kinds):
            if kind in ("normal", "user", "byte") and token not in draft.control:
                direct[token] = ours.get(draft.piece(token), -1)
        spelled: list[int] = []
        lengths: list[int] = []
        parts: list[int] = []
        for piece in ours.keys() - theirs.keys():
            try:
                piece.decode("utf-8")  # parts of characters are never drafted by themselves
                tokens = draft.encode(piece)
            except (UnicodeDecodeError, CannotEncode):
                continue
            if 1 < len(tokens) <= MAX_PARTS:
                spelled.append(ours[piece])
                lengths.append(len(tokens))
                parts += tokens
        order = np.argsort(np.array(spelled, np.int64), kind="stable")
        starts = np.cumsum([0, *lengths])
        return cls(
            target_key=target_key,
            draft_key=draft_key,
            engine=engine,
            match=match(target, draft),
            direct=direct,
            spelled=np.array(spelled, np.int32)[order],
            lengths=np.array(lengths, np.uint8)[order],
            parts=np.array([part for i in order for part in parts[starts[i] : starts[i + 1]]], np.int32),
            n_target=target.n_tokens,
            n_target_text=len(ours),
            n_draft_text=len(theirs),
        )

    def spellings(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """(the drafter's tokens, the target's one token) of the same bytes, by the target's id."""
        parts, end = self.parts.tolist(), 0
        for token, length in zip(self.spelled.tolist(), self.lengths.tolist(), strict=True):
            yield tuple(parts[end : end + length]), token
            end += length

    def overlap(self) -> Overlap:
        """What the two share."""
        return Overlap(
            n_target=self.n_target_text,
            n_draft=self.n_draft_text,
            n_shared=len(np.unique(self.direct[self.direct >= 0])),
            n_split=len(self.spelled),
            mean_split=float(self.lengths.mean()) if len(self.lengths) else 0.0,
        )

    def to_bytes(self) -> bytes:
        """The file. The same pair gives the same bytes."""
        different = np.array(sorted(self.match.different), np.int32)
        facts = {
            "version": _VERSION,
            "target": self.target_key,
            "draft": self.draft_key,
            "engine": self.engine,
            "same": self.match.same,
            "reason": self.match.reason,
            "n_target": self.n_target,
            "n_draft": len(self.direct),
            "n_different": len(different),
            "n_spelled": len(self.spelled),
            "n_parts": len(self.parts),
            "n_target_text": self.n_target_text,
            "n_draft_text": self.n_draft_text,
        }
        header = json.dumps(facts).encode()
        arrays = (self.direct, different, self.spelled, self.parts, self.lengths)
        body = struct.pack("<I", len(header)) + header
        body += b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)
        return _MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def load(cls, path: Path) -> VocabularyMap:
        """Read a file, which may come from anywhere.

        Raises:
            BadTable: it is not what it should be; no more is read than it says it holds.
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            prefix = file.read(_PREFIX.size)
            facts, header = _read_facts(file, prefix, path)
            n_draft, n_different, n_spelled, n_parts = (
                facts[name] for name in ("n_draft", "n_different", "n_spelled", "n_parts")
            )
            sizes = (4 * n_draft, 4 * n_different, 4 * n_spelled, 4 * n_parts, n_spelled)
            data = file.read(sum(sizes) + 1)
        digest = hashlib.sha256(prefix[40:] + header + data).digest()
        if len(data) != sum(sizes) or digest != prefix[8:40]:
            raise BadTable(f"{path.name} is damaged")
        arrays, offset = [], 0
        for size, dtype in zip(sizes, ("<i4", "<i4", "<i4", "<i4", "u1"), strict=True):
            arrays.append(np.frombuffer(data, dtype, size // np.dtype(dtype).itemsize, offset))
            offset += size
        direct, different, spelled, parts, lengths = arrays
        is_sound = (
            _within(direct, -1, facts["n_target"])
            and _within(different, 0, n_draft)
            and _within(spelled, 0, facts["n_target"])
            and _within(lengths, 2, MAX_PARTS + 1)
            and int(lengths.sum(dtype=np.int64)) == n_parts
            and _within(parts, 0, n_draft)
        )
        if not is_sound:
            raise BadTable(f"{path.name} holds tokens that its vocabularies do not have")
        return cls(
            target_key=facts["target"],
            draft_key=facts["draft"],
            engine=facts["engine"],
            match=Match(facts["same"], facts["reason"], frozenset(different.tolist())),
            direct=direct,
            spelled=spelled,
            lengths=lengths,
            parts=parts,
            n_target=facts["n_target"],
            n_target_text=facts["n_target_text"],
            n_draft_text=facts["n_draft_text"],
        )


def find(folder: Path, *, target_key: str, draft_key: str, engine: str) -> tuple[VocabularyMap | None, str]:
    """The table of this pair in a folder, and a note on those that were passed over ("" where nothing is to say)."""
    note = ""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            table = VocabularyMap.load(path)
        except (BadTable, OSError) as error:
            note = f"{path.name} is not used: {error}"
            continue
        if (table.target_key, table.draft_key, table.engine) == (target_key, draft_key, engine):
            return table, ""
        note = f"{path.name} is not used: it is of another pair of vocabularies, or another llama.cpp's"
    return None, note


def _read_facts(file: Any, prefix: bytes, path: Path) -> tuple[dict[str, Any], bytes]:
    """The header, parsed and as it lies in the file."""
    if len(prefix) < _PREFIX.size or prefix[:8] != _MAGIC:
        raise BadTable(f"{path.name} is no table of a pair")
    n_bytes = _PREFIX.unpack(prefix)[2]
    if n_bytes > _MAX_HEADER_BYTES:
        raise BadTable(f"{path.name} is damaged")
    header = file.read(n_bytes)
    try:
        facts = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise BadTable(f"{path.name} is damaged") from error
    if not isinstance(facts, dict) or facts.get("version") != _VERSION:
        raise BadTable(f"{path.name} is of another version: export again")
    counts = [facts.get(name) for name in _COUNTS]
    words = [facts.get(name) for name in ("target", "draft", "engine", "reason")]
    is_sound = (
        all(type(n) is int and 0 <= n <= _MAX_TOKENS * MAX_PARTS for n in counts)
        and max(facts["n_target"], facts["n_draft"], facts["n_spelled"], facts["n_different"]) <= _MAX_TOKENS
        and all(isinstance(word, str) for word in words)
        and isinstance(facts.get("same"), bool)
    )
    if not is_sound:
        raise BadTable(f"{path.name} is damaged")
    return facts, header


def _within(array: NDArray[Any], low: int, high: int) -> bool:
    return not len(array) or bool(array.min() >= low and array.max() < high)
