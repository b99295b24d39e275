"""llama.cpp's vocabulary as the `Tokenizer` that `Vocabulary` wants."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from llama_cpp import llama_cpp as api

from edgellm.runtime.backends.base import EngineError, LoadError
from edgellm.runtime.text.vocabulary import TokenKind

_SPACE = "\u2581"  # what SentencePiece writes for one


class LlamaTokenizer:
    """
    Raises:
        LoadError: the vocabulary cannot spell a space, and the engine would end the process over the first text.
    """

    def __init__(self, vocab: Any) -> None:
        self._vocab: Any = vocab
        self.n_tokens = int(api.llama_vocab_n_tokens(vocab))
        self.bos = _token_or_none(api.llama_vocab_bos(vocab))
        self.adds_bos = bool(api.llama_vocab_get_add_bos(vocab))
        self.end_tokens = frozenset(i for i in range(self.n_tokens) if api.llama_vocab_is_eog(vocab, i))
        eot, eos = _token_or_none(api.llama_vocab_eot(vocab)), _token_or_none(api.llama_vocab_eos(vocab))
        self.turn_end, self.eos = eot if eot is not None else eos, eos
        # SentencePiece without all 256 byte tokens: the engine ends the process over a letter that it cannot spell.
        self._lacks: re.Pattern[str] | None = None
        self._controls: dict[str, int] = {}
        if api.llama_vocab_type(vocab) == api.LLAMA_VOCAB_TYPE_SPM:
            self._look_for_bytes()

    def close(self) -> None:
        """The engine is about to free the vocabulary."""
        self._vocab = None

    def tokenize(self, text: bytes) -> list[int]:
        return self._tokenize(text if self._lacks is None else self._lacks.sub("", text.decode()).encode(), False)

    def tokenize_marked(self, text: bytes) -> list[int]:
        if self._lacks is None:
            return self._tokenize(text, True)
        spellings = "|".join(map(re.escape, sorted(self._controls, key=len, reverse=True))) or r"(?!)"
        tokens: list[int] = []
        for i, part in enumerate(re.split(f"({spellings})", text.decode())):
            tokens += [self._controls[part]] if i % 2 else self.tokenize(part.encode())
        return tokens

    def strips(self, token: int) -> tuple[bool, bool]:
        attr = api.llama_vocab_get_attr(self._open(), token)
        return bool(attr & api.LLAMA_TOKEN_ATTR_LSTRIP), bool(attr & api.LLAMA_TOKEN_ATTR_RSTRIP)

    def piece(self, token: int) -> bytes:
        return self._piece(token, False)

    def literal(self, token: int) -> bytes:
        return self._piece(token, True)

    def kinds(self) -> list[TokenKind]:
        attr_of, vocab = api.llama_vocab_get_attr, self._vocab
        return [_kind(attr_of(vocab, token)) for token in range(self.n_tokens)]

    def _open(self) -> Any:
        if self._vocab is None:
            raise EngineError("the model of this vocabulary is closed")
        return self._vocab

    def _tokenize(self, text: bytes, special: bool) -> list[int]:
        n_max = (2 if special else 1) * len(text) + 8  # a space may come behind every control token
        tokens = (api.llama_token * n_max)()
        n = api.llama_tokenize(self._open(), text, len(text), tokens, n_max, False, special)
        if n < 0:
            raise EngineError(f"the tokenizer wanted {-n} tokens for {len(text)} bytes")
        return list(tokens[:n])

    def _piece(self, token: int, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(256)  # one a call: several threads may ask
        n = api.llama_token_to_piece(self._open(), token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = api.llama_token_to_piece(self._open(), token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    def _look_for_bytes(self) -> None:
        texts = [
            api.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace") for token in range(self.n_tokens)
        ]
        known = set(texts)
        if all(f"<0x{byte:02X}>" in known for byte in range(256)):
            return
        # A letter is spelled by a token of its own, or byte by byte.
        letters = {text for text in known if len(text) == 1}
        whole = [byte for byte in range(256) if f"<0x{byte:02X}>" in known or (byte < 128 and chr(byte) in known)]
        spelled = {chr(byte) for byte in whole if byte < 128} | letters
        has_others = all(byte in whole for byte in range(128, 256))
        if _SPACE not in letters and not set(_SPACE.encode()) <= set(whole):
            raise LoadError("the vocabulary has no token for a space: the file is damaged, pull it again")
        kept = "".join(map(re.escape, sorted(spelled | {" "})))
        self._lacks = re.compile(f"[^{kept}\x80-\U0010ffff]" if has_others else f"[^{kept}]")
        special = ("control", "user", "unknown")
        self._controls = {
            texts[token]: token for token, kind in enumerate(self.kinds()) if kind in special and texts[token]
        }


def _kind(attr: int) -> TokenKind:
    if attr & api.LLAMA_TOKEN_ATTR_NORMAL:
        return "normal"
    if attr & api.LLAMA_TOKEN_ATTR_CONTROL:
        return "control"
    if attr & api.LLAMA_TOKEN_ATTR_USER_DEFINED:
        return "user"
    if attr & api.LLAMA_TOKEN_ATTR_BYTE:
        return "byte"
    return "unused" if attr & api.LLAMA_TOKEN_ATTR_UNUSED else "unknown"


def _token_or_none(token: int) -> int | None:
    return int(token) if token >= 0 else None
