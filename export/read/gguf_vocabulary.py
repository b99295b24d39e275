"""The vocabulary that a GGUF file carries, whichever tokenizer's files it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgellm.export.convert import gguf_writer as gguf
from edgellm.export.read.tokenizer_facts import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's `llama_token_type`
MAX_TOKENS = 2**22
# llama.cpp prefers a token of any type where two symbols join to its text; this keeps added ones last.
ADDED_SCORE = -1000.0


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """What GGUF stores of a tokenizer. `tokens`, `types` and `scores` are indexed by token id."""

    model: Literal["llama", "gpt2", "t5"]
    pre: str
    tokens: list[bytes]
    types: list[int]
    scores: list[float] | None  # SentencePiece: the higher, the earlier merged
    merges: list[str] | None  # byte-level BPE: "left right", the earlier the sooner
    special_ids: dict[str, int]  # "bos", "eos", "unk", "pad", and further ends of an answer: "eot", "eom"
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_templates: dict[str, str] = field(default_factory=dict)  # "default" and named ones
    strips_right: bool = False  # control tokens swallow the spaces behind them (Phi-3)
    charsmap: bytes = b""  # T5: how signs are written otherwise, as SentencePiece compiles it
    removes_spaces: bool = False  # T5: those at the ends, and all but one of several
    remarks: tuple[str, ...] = ()  # sentences about what llama.cpp does otherwise

    def entries(self) -> dict[str, bytes]:
        """The metadata entries of a GGUF file, packed."""
        entries = {
            "tokenizer.ggml.model": gguf.string(self.model),
            "tokenizer.ggml.pre": gguf.string(self.pre),
            "tokenizer.ggml.tokens": gguf.strings(self.tokens),
        }
        if self.scores is not None:
            entries["tokenizer.ggml.scores"] = gguf.f32s(self.scores)
        entries["tokenizer.ggml.token_type"] = gguf.i32s(self.types)
        if self.merges is not None:
            entries["tokenizer.ggml.merges"] = gguf.strings(self.merges)
        names = {"unk": "unknown", "pad": "padding"}
        for name, token in self.special_ids.items():
            entries[f"tokenizer.ggml.{names.get(name, name)}_token_id"] = gguf.u32(token)
        entries["tokenizer.ggml.add_bos_token"] = gguf.boolean(self.add_bos)
        entries["tokenizer.ggml.add_eos_token"] = gguf.boolean(self.add_eos)
        if self.model != "gpt2":
            entries["tokenizer.ggml.add_space_prefix"] = gguf.boolean(self.add_space_prefix)
        if self.model == "t5":
            entries["tokenizer.ggml.remove_extra_whitespaces"] = gguf.boolean(self.removes_spaces)
        if self.charsmap:
            entries["tokenizer.ggml.precompiled_charsmap"] = gguf.u8s(self.charsmap)
        named = [name for name in self.chat_templates if name != "default"]
        if "default" in self.chat_templates:
            entries["tokenizer.chat_template"] = gguf.string(self.chat_templates["default"])
        if named:
            entries["tokenizer.chat_templates"] = gguf.strings(named)
            entries |= {f"tokenizer.chat_template.{name}": gguf.string(self.chat_templates[name]) for name in named}
        return entries


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens by id while a vocabulary is read; ids that nothing fills are unused ones."""

    texts: list[bytes]
    types: list[int]
    scores: list[float]

    @classmethod
    def blank(cls, folder: Path, size: int, n_vocab: int | None, *, score: float) -> Tokens:
        """Raises TokenizerError: the model has no rows for so many, or nobody has.

        Args:
            size: of the tokenizer.
            n_vocab: rows of the model. None: `size`.
            score: of tokens that are not filled.
        """
        n_total = n_vocab if n_vocab is not None else size
        if n_total > MAX_TOKENS:
            raise TokenizerError(f"{folder}: a vocabulary of {n_total:,} tokens is beyond any real one: is it damaged?")
        if size - n_total > 256:  # Gemma 3's text models name an image token that has no row; nothing can produce it
            raise TokenizerError(
                f"{folder}: the tokenizer has {size:,} tokens, the model only {n_total:,} rows for them"
            )
        texts = [f"[PAD{token}]".encode() for token in range(n_total)]
        return cls(texts, [UNUSED] * n_total, [score] * n_total)

    def refuse_doubles(self, folder: Path) -> None:
        """llama.cpp ends the process at two tokens of one text, and reads a text up to a NUL."""
        tokens = self.texts
        if len(set(tokens)) == len(tokens) and b"" not in tokens and not any(b"\0" in text for text in tokens):
            return
        seen: set[bytes] = set()
        for token, text in enumerate(tokens):
            if text in seen or not text or b"\0" in text:
                fault = "holds a NUL" if b"\0" in text else "is empty or there twice"
                raise TokenizerError(f"{folder}: token {token} ({text!r}) {fault}: the tokenizer is damaged")
            seen.add(text)
