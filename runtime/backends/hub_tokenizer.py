"""The tokenizer and settings of a model in the Hub's file formats, for engines that bring none of their own.

The `tokenizers` package cuts text; what each token is and which bytes it stands for is read from tokenizer.json itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgellm.memory.byte_encoder import SPACE, byte_alphabet, looks_special
from edgellm.memory.limits import TOKENIZER_JSON_MAX_BYTES
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.text.vocabulary import TokenKind

MAX_BEYOND = 256  # tokens of a tokenizer that the model has no row for: Gemma 3 names an image token
MIN_SHARE = 0.9  # of a model's rows that its tokenizer must know; the rest is padding

# What families end a turn with, and what else ends generation, when it is a control token.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")
_ENDS = (*_TURN_ENDS, "</s>", "<|end_of_text|>", "<|eom_id|>", "<eos>", "<|return|>")


class HubFolder:
    """The small files of a model's folder; all may be missing but tokenizer.json.

    Raises:
        LoadError: a file that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = self._read("config.json")
        self.genai = self._read("genai_config.json").get("model") or {}
        self.generation = self._read("generation_config.json")
        self.tokenizer_config = self._read("tokenizer_config.json")

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def head_dim(self) -> int:
        """Elements of one head's key; 0 where no file says."""
        told = self.config.get("head_dim") or (self.genai.get("decoder") or {}).get("head_size")
        if not told and self.config.get("num_attention_heads") and self.config.get("hidden_size"):
            told = int(self.config["hidden_size"]) // int(self.config["num_attention_heads"])
        return int(told or 0)

    @property
    def n_ctx_train(self) -> int:
        """Tokens that the model was trained for; 0 where no file says."""
        return int(self.config.get("max_position_embeddings") or self.genai.get("context_length") or 0)

    def chat_template(self) -> str | None:
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8") or None
        told = self._read("chat_template.json").get("chat_template") or self.tokenizer_config.get("chat_template")
        if isinstance(told, list):  # several by name
            named = {entry.get("name"): entry.get("template") for entry in told if isinstance(entry, dict)}
            told = named.get("default")
        return told if isinstance(told, str) and told else None

    def tokenizer(self, n_vocab: int) -> HubTokenizer:
        """The tokenizer for a model with so many rows of logits.

        Raises:
            LoadError: tokenizer.json is missing, damaged, of an unknown kind, or of another model.
        """
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise LoadError(f"{self.folder} has no tokenizer.json: copy it there from the model's repository")
        try:
            return HubTokenizer(self, self._read("tokenizer.json"), n_vocab)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise LoadError(f"{path} is damaged ({error!r}): copy it again from the model's repository") from error

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            return {}
        if path.stat().st_size > TOKENIZER_JSON_MAX_BYTES:
            raise LoadError(f"{path} has {path.stat().st_size:,} bytes, which no such file needs: copy it again")
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise LoadError(f"{path} is no valid JSON ({error}): copy it again") from error
        if not isinstance(value, dict):
            raise LoadError(f"{path} holds no JSON object: copy it again")
        return value


class HubTokenizer:
    """tokenizer.json as the `Tokenizer` that `Vocabulary` wants: byte-level and SentencePiece BPE, and unigram."""

    def __init__(self, files: HubFolder, document: dict[str, Any], n_vocab: int) -> None:
        model = document["model"]
        kind = model.get("type", "BPE")
        if kind not in ("BPE", "Unigram"):
            raise LoadError(f"{files.name}: a tokenizer of type {kind} is not supported; BPE and unigram ones are")
        table = _table(model)
        added: dict[int, dict[str, Any]] = {
            int(entry["id"]): entry for entry in document.get("added_tokens") or () if isinstance(entry, dict)
        }
        _check_match(files, 1 + max([*table.values(), *added], default=-1), n_vocab)
        self.n_tokens = n_vocab
        byte_level = _is_byte_level(document)
        byte_of = {sign: byte for byte, sign in enumerate(byte_alphabet())}
        self._pieces = [b""] * n_vocab
        self._kinds: list[TokenKind] = ["unused"] * n_vocab
        for text, token in table.items():
            if not 0 <= token < n_vocab:
                continue
            if byte_level and all(sign in byte_of for sign in text):
                self._pieces[token], self._kinds[token] = bytes(byte_of[sign] for sign in text), "normal"
            elif not byte_level and _is_byte_token(text):
                self._pieces[token], self._kinds[token] = bytes([int(text[3:5], 16)]), "byte"
            else:
                self._pieces[token], self._kinds[token] = text.replace(SPACE, " ").encode(), "normal"
        unknown = model.get("unk_token")
        unknown_id = model.get("unk_id") if kind == "Unigram" else table.get(unknown) if unknown else None
        if isinstance(unknown_id, int) and 0 <= unknown_id < n_vocab and not byte_level:
            self._kinds[unknown_id] = "unknown"
        for token, entry in added.items():
            if 0 <= token < n_vocab:
                text = str(entry["content"])
                control = bool(entry.get("special")) or looks_special(text)
                self._pieces[token] = text.encode() if control or byte_level else text.replace(SPACE, " ").encode()
                if self._kinds[token] != "unknown":
                    self._kinds[token] = "control" if control else "user"
        ids = {piece.decode("utf-8", "replace"): token for token, piece in self._special()}
        self.bos = self._named(files, "bos", ids)
        self.adds_bos = self.bos is not None and _adds_bos(files, document, self.bos)
        self.end_tokens = frozenset(self._ends(files, ids))
        eos = self._named(files, "eos", ids)
        self.turn_end, self.eos = next((ids[text] for text in _TURN_ENDS if text in ids), eos), eos
        self._strips = {token: (bool(entry.get("lstrip")), bool(entry.get("rstrip"))) for token, entry in added.items()}
        self._cut = _plain_tokenizer(document, {token for token, _ in self._special()}, files)

    def tokenize(self, text: bytes) -> list[int]:
        return self._tokenize(text, False)

    def tokenize_marked(self, text: bytes) -> list[int]:
        return self._tokenize(text, True)

    def strips(self, token: int) -> tuple[bool, bool]:
        return self._strips.get(token, (False, False))

    def _tokenize(self, text: bytes, special: bool) -> list[int]:
        self._cut.encode_special_tokens = not special  # whether they are read as text
        return list(self._cut.encode(text.decode("utf-8"), add_special_tokens=False).ids)

    def piece(self, token: int) -> bytes:
        return b"" if self._kinds[token] == "control" else self._pieces[token]

    def literal(self, token: int) -> bytes:
        return self._pieces[token]

    def kinds(self) -> list[TokenKind]:
        return list(self._kinds)

    def _special(self) -> Iterator[tuple[int, bytes]]:
        for token, kind in enumerate(self._kinds):
            if kind == "control":
                yield token, self._pieces[token]

    def _named(self, files: HubFolder, name: str, ids: Mapping[str, int]) -> int | None:
        text = files.tokenizer_config.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if isinstance(text, str) and text in ids:
            return ids[text]
        for settings in (files.generation, files.config, files.genai):
            found = _ids(settings.get(f"{name}_token_id"), self.n_tokens)
            if found:
                return found[0]
        return None

    def _ends(self, files: HubFolder, ids: Mapping[str, int]) -> Iterator[int]:
        for settings in (files.generation, files.config, files.genai):
            yield from _ids(settings.get("eos_token_id"), self.n_tokens)
        eos = self._named(files, "eos", ids)
        if eos is not None:
            yield eos
        yield from (ids[text] for text in _ENDS if text in ids)


def _table(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return {str(text): int(token) for text, token in vocabulary.items()}
    return {str(entry[0]): token for token, entry in enumerate(vocabulary)}


def _check_match(files: HubFolder, n_tokens: int, n_vocab: int) -> None:
    if n_tokens > n_vocab + MAX_BEYOND or n_tokens < MIN_SHARE * n_vocab:
        raise LoadError(
            f"{files.name}: tokenizer.json has {n_tokens:,} tokens and the model {n_vocab:,} rows of logits: it is "
            "another model's tokenizer, copy the right one there"
        )


def _plain_tokenizer(document: dict[str, Any], control: set[int], files: HubFolder) -> Any:
    """The tokenizer without what adds control tokens; all of them are special, so it can be told to read them as text.

    "special" is nothing else to it: which white space a token takes and whether it stands in words is said apart.
    """
    import tokenizers

    added = [{**entry, "special": int(entry["id"]) in control} for entry in document.get("added_tokens") or ()]
    plain = {**document, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
    plain = {"version": "1.0", "normalizer": None, "pre_tokenizer": None, "decoder": None, **plain}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the package raises nothing narrower
        raise LoadError(f"{files.folder / 'tokenizer.json'} cannot be used: {error}") from error


def _is_byte_level(document: Mapping[str, Any]) -> bool:
    return any(
        part["type"] == "ByteLevel"
        for name, children in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders"))
        for part in _parts(document.get(name), children)
    )


def _parts(part: Mapping[str, Any] | None, children: str) -> Iterator[Mapping[str, Any]]:
    if part and part["type"] == "Sequence":
        for child in part[children]:
            yield from _parts(child, children)
    elif part:
        yield part


def _is_byte_token(text: str) -> bool:
    if len(text) != 6 or not text.startswith("<0x") or not text.endswith(">"):
        return False
    return all(digit in "0123456789abcdefABCDEF" for digit in text[3:5])


def _ids(told: Any, n_tokens: int) -> list[int]:
    listed = told if isinstance(told, list) else [told]
    return [item for item in listed if isinstance(item, int) and 0 <= item < n_tokens]


def _adds_bos(files: HubFolder, document: Mapping[str, Any], bos: int) -> bool:
    told = files.tokenizer_config.get("add_bos_token")
    if isinstance(told, bool):
        return told
    for part in _parts_of_post(document.get("post_processor")):
        if part.get("type") == "TemplateProcessing" and part["single"]:
            first = part["single"][0].get("SpecialToken")
            if first and part["special_tokens"][first["id"]]["ids"][:1] == [bos]:
                return True
    return False


def _parts_of_post(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if part:
        yield part
        for child in part.get("processors") or ():
            yield from _parts_of_post(child)
