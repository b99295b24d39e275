"""A vocabulary in bytes: token id -> bytes, and bytes -> token ids that spell exactly those bytes.

Everything between two vocabularies goes through bytes (never through vocabulary strings, whose space markers differ
from family to family), so the one promise kept here is: `b"".join(map(piece, encode(data))) == data` for any bytes at
all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

from edgellm.memory.errors import EdgellmError

# Before white space that follows something else, where every tokenizer's own splitting puts a border too; only newlines
# join the punctuation before them in many vocabularies.
_WORD = re.compile(rb"(?<=\S)(?=[ \t\v\f])|(?<=[0-9A-Za-z])(?=[\r\n])")
MAX_WORD_BYTES = 64
MAX_WORDS = 2048  # whose tokens are remembered, some 0.3 MiB

TokenKind = Literal["normal", "control", "user", "byte", "unknown", "unused"]


class Tokenizer(Protocol):
    """What an engine knows of its model's vocabulary; thin and unchecked. `Vocabulary` makes it dependable."""

    n_tokens: int
    bos: int | None
    adds_bos: bool  # the model was trained with a BOS before every text
    end_tokens: frozenset[int]  # any of these ends generation
    turn_end: int | None  # what the model writes to end its turn

    def tokenize(self, text: bytes) -> list[int]:
        """Ids of valid UTF-8 text; control tokens spelled out in it stay text."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; b"" for control tokens."""
        ...

    def literal(self, token: int) -> bytes:
        """The same, with control tokens spelled out: b"<|im_end|>"."""
        ...

    def kinds(self) -> list[TokenKind]:
        """What each token is, shape (n_tokens,)."""
        ...


@runtime_checkable
class MarkedTokenizer(Tokenizer, Protocol):
    """A tokenizer that can also read what a chat template writes."""

    eos: int | None

    def tokenize_marked(self, text: bytes) -> list[int]:
        """Ids of valid UTF-8 text in which spelled-out control tokens are control tokens."""
        ...

    def strips(self, token: int) -> tuple[bool, bool]:
        """Whether a control token takes the white space before it, and behind it."""
        ...


class CannotEncode(EdgellmError, ValueError):
    """A byte that this vocabulary has no token for."""

    def __init__(self, byte: int) -> None:
        super().__init__(f"the vocabulary has no token for byte 0x{byte:02x}")
        self.byte = bytes([byte])


class Vocabulary:
    """Lossless view of a tokenizer. Pieces are read once, when first asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.n_tokens = tokenizer.n_tokens
        self.bos, self.adds_bos = tokenizer.bos, tokenizer.adds_bos
        self.end_tokens, self.turn_end = tokenizer.end_tokens, tokenizer.turn_end
        self._marked = tokenizer if isinstance(tokenizer, MarkedTokenizer) else None
        self.eos = self._marked.eos if self._marked is not None else tokenizer.turn_end
        self.kinds = tokenizer.kinds()
        self.control = frozenset(i for i, kind in enumerate(self.kinds) if kind in ("control", "unknown")) | frozenset(
            self.end_tokens
        )
        self._pieces: list[bytes | None] = [None] * self.n_tokens
        self._byte_tokens: list[int | None] | None = None
        self._literals: dict[str, int] | None = None
        self._words: dict[bytes, list[int]] = {}

    def piece(self, token: int) -> bytes:
        """The bytes of a token; b"" for control tokens, which are no text."""
        piece = self._pieces[token]
        if piece is None:
            piece = b"" if token in self.control else self._tokenizer.piece(token)
            self._pieces[token] = piece
        return piece

    def begun(self, tokens: list[int]) -> list[int]:
        """With the token that the model was trained to have before every text, where it has one."""
        if not self.adds_bos or self.bos is None or tokens[:1] == [self.bos]:
            return tokens
        return [self.bos, *tokens]

    def literal(self, token: int) -> bytes:
        """The bytes of a token, with control tokens spelled out."""
        return self._tokenizer.literal(token) if token in self.control else self.piece(token)

    def strips(self, token: int) -> tuple[bool, bool]:
        """Whether a control token takes the white space before it, and behind it."""
        return self._marked.strips(token) if self._marked is not None else (False, False)

    @cached_property
    def adds_space(self) -> bool:
        """Whether the tokenizer puts a space before a text, as SentencePiece does."""
        return self.decode(self._tokenizer.tokenize(b"a")) == b" a"

    @cached_property
    def longest_bytes(self) -> int:
        """Of any token, spelled out."""
        return max(len(self.literal(token)) for token in range(self.n_tokens))

    def encode_marked(self, data: bytes) -> list[int] | None:
        """Ids as the engine makes them where control tokens are spelled out; None where it cannot.

        What comes of text that someone wrote is theirs to choose: callers see to it that none of it is in `data`.
        """
        return self._marked.tokenize_marked(data) if self._marked is not None else None

    def decode(self, tokens: Iterable[int]) -> bytes:
        return b"".join(map(self.piece, tokens))

    @property
    def literals(self) -> dict[str, int]:
        """Spelled-out control and user-defined tokens -> id; what a chat template may write on purpose."""
        if self._literals is None:
            found: dict[str, int] = {}
            for token, kind in enumerate(self.kinds):
                if kind in ("control", "user", "unknown") or token in self.end_tokens:
                    text = self._tokenizer.literal(token).decode("utf-8", "replace")
                    if text:
                        found.setdefault(text, token)
            self._literals = found
        return self._literals

    def encode(self, data: bytes, reserved: frozenset[int] = frozenset()) -> list[int]:
        """Ids that spell exactly `data`, never a control token and never one of `reserved`.

        Raises:
            CannotEncode: a byte that no token stands for.
        """
        tokens: list[int] = []
        for run, is_text in _utf8_runs(data):
            tokens += self._encode_text(run, reserved) if is_text else [self._byte_token(byte) for byte in run]
        return tokens

    def encode_as_trained(self, data: bytes) -> list[int]:
        """Ids of UTF-8 text as the tokenizer cuts it, which need not spell it: it may normalise signs and spaces."""
        return self._tokenizer.tokenize(data)

    def encode_words(self, data: bytes) -> list[int]:
        """`encode` for text that is tokenised again and again as it grows: word by word, and each word once.

        A call of a tokenizer costs a tenth of a millisecond however short the text is.

        Raises:
            CannotEncode: a byte that no token stands for.
        """
        tokens: list[int] = []
        for word in _WORD.split(data):
            known = self._words.get(word)
            if known is None:
                known = self.encode(word)
                if len(word) <= MAX_WORD_BYTES:
                    if len(self._words) >= MAX_WORDS:
                        self._words.clear()
                    self._words[word] = known
            tokens += known
        return tokens

    def encode_leniently(self, data: bytes, reserved: frozenset[int] = frozenset()) -> list[int]:
        """`encode`, with the bytes left out that the vocabulary lacks: small ones miss some that hardly occur."""
        while True:
            try:
                return self.encode(data, reserved)
            except CannotEncode as error:
                data = data.replace(error.byte, b"")

    def _encode_text(self, text: bytes, reserved: frozenset[int]) -> list[int]:
        tokens = self._tokenizer.tokenize(text)
        spelled = self.decode(tokens)
        if spelled == text and not (reserved and reserved.intersection(tokens)):
            return tokens
        if spelled == b" " + text:  # a SentencePiece dummy prefix
            trimmed = self._without_dummy_prefix(text)
            if trimmed is None and self.piece(tokens[0]) == b" ":  # a vocabulary without newlines
                trimmed = tokens[1:]
            if trimmed is not None and not reserved.intersection(trimmed):
                return trimmed
        characters = text.decode("utf-8")
        if len(characters) == 1:
            return [self._byte_token(byte) for byte in text]
        # A control token spelled out in the text, or a tokenizer that normalises: cut until each part spells itself.
        middle = len(characters) // 2
        head, tail = characters[:middle].encode(), characters[middle:].encode()
        return self._encode_text(head, reserved) + self._encode_text(tail, reserved)

    def _without_dummy_prefix(self, text: bytes) -> list[int] | None:
        """Tokens of text that the tokenizer would put a space before, found behind a newline that takes the space."""
        if text.startswith(b" "):
            tokens = self._tokenizer.tokenize(text[1:])
            return tokens if self.decode(tokens) == text else None
        tokens = self._tokenizer.tokenize(b"\n" + text)
        n_bytes = 0
        for i, token in enumerate(tokens):
            if n_bytes == 2:
                return tokens[i:] if self.decode(tokens[i:]) == text else None
            n_bytes += len(self.piece(token))
        return None

    def _byte_token(self, byte: int) -> int:
        if self._byte_tokens is None:
            found: list[int | None] = [None] * 256
            for token, kind in enumerate(self.kinds):
                if kind in ("normal", "byte"):
                    piece = self.piece(token)
                    if len(piece) == 1 and found[piece[0]] is None:
                        found[piece[0]] = token
            self._byte_tokens = found
        token_id = self._byte_tokens[byte]
        if token_id is None:
            raise CannotEncode(byte)
        return token_id

    def fingerprint(self) -> str:
        """A hash of every token's kind and bytes: equal for equal vocabularies, whatever file they came in."""
        digest = hashlib.sha256()
        for token, kind in enumerate(self.kinds):
            piece = self._tokenizer.literal(token) if token in self.control else self.piece(token)
            digest.update(b"%d %c " % (len(piece), ord(kind[0])))
            digest.update(piece)
        return digest.hexdigest()

    def text_tokens(self) -> dict[bytes, int]:
        """Bytes -> id of every token that stands for text; for equal bytes a normal one, then the lowest."""
        found: dict[bytes, int] = {}
        for wanted in (("normal", "user"), ("byte",)):
            for token, kind in enumerate(self.kinds):
                if kind in wanted and token not in self.control:
                    piece = self.piece(token)
                    if piece:
                        found.setdefault(piece, token)
        return found


def incomplete_tail(data: bytes) -> int:
    """How many bytes at the end of `data` begin a UTF-8 character that is not finished, 0..3."""
    for n_back in range(1, min(3, len(data)) + 1):
        byte = data[-n_back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 2 if 0xC2 <= byte < 0xE0 else 3 if 0xE0 <= byte < 0xF0 else 4 if 0xF0 <= byte < 0xF5 else 1
        return n_back if needed > n_back else 0
    return 0


def _utf8_runs(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Cut bytes into runs that are valid UTF-8 text (True) and runs that are not (False)."""
    while data:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.start:
                yield data[: error.start], True
            yield data[error.start : error.end], False
            data = data[error.end :]
        else:
            yield data, True
            return
