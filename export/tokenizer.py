"""From a Hub folder's tokenizer files to the vocabulary that a GGUF file carries.

Two kinds are known. Byte-level BPE (`gpt2` in GGUF: Llama 3, Qwen, SmolLM) needs the name of llama.cpp's
pre-tokenizer; it is found by the splitting rules themselves as tokenizer.json states them, so that a fine-tune with
another vocabulary or more added tokens is recognised all the same. SentencePiece BPE (`llama` in GGUF: Llama 2,
Mistral, Gemma, Phi-3) is read from tokenizer.json, whose merge order gives the scores, or from tokenizer.model where
that is all there is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgellm.export import gguf_writer as gguf
from edgellm.memory.alphabet import SPACE, looks_special
from edgellm.memory.protobuf import ProtobufError, fields

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's `llama_token_type`
MAX_JSON_BYTES = 256 * 2**20
MAX_TOKENS = 2**22
# llama.cpp prefers a token of any type where two symbols join to its text; this keeps added ones last.
_ADDED_SCORE = -1000.0

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS_ON = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Splitting rules (regular expressions; `digits` and `words` stand for the ready-made ones) and whether whole words
# skip the merges -> llama.cpp's name.
_PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _LETTERS_ON,), True): "llama-bpe",
    ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _LETTERS_ON,), False): "smaug-bpe",
    ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _LETTERS_ON,), False): "qwen2",
    ((_TEKKEN,), True): "tekken",
    (("digits", "words"), False): "smollm",
    (("words",), False): "gpt-2",
}


class TokenizerError(ValueError):
    """A tokenizer that cannot be exported; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What GGUF stores of a tokenizer. `tokens`, `types` and `scores` are indexed by token id."""

    model: Literal["llama", "gpt2"]
    pre: str
    tokens: list[bytes]
    types: list[int]
    scores: list[float] | None  # SentencePiece: the higher, the earlier merged
    merges: list[str] | None  # byte-level BPE: "left right", the earlier the sooner
    special_ids: dict[str, int]  # "bos", "eos", "unk", "pad"
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_templates: dict[str, str] = field(default_factory=dict)  # "default" and named ones
    strips_right: bool = False  # control tokens swallow the spaces behind them (Phi-3)

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
        names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        for name, token in self.special_ids.items():
            entries[f"tokenizer.ggml.{names[name]}_token_id"] = gguf.u32(token)
        entries["tokenizer.ggml.add_bos_token"] = gguf.boolean(self.add_bos)
        entries["tokenizer.ggml.add_eos_token"] = gguf.boolean(self.add_eos)
        if self.model == "llama":
            entries["tokenizer.ggml.add_space_prefix"] = gguf.boolean(self.add_space_prefix)
        named = [name for name in self.chat_templates if name != "default"]
        if "default" in self.chat_templates:
            entries["tokenizer.chat_template"] = gguf.string(self.chat_templates["default"])
        if named:
            entries["tokenizer.chat_templates"] = gguf.strings(named)
            entries |= {f"tokenizer.chat_template.{name}": gguf.string(self.chat_templates[name]) for name in named}
        return entries


def read_vocabulary(folder: Path, n_vocab: int | None = None) -> Vocabulary:
    """The vocabulary of a Hub folder: tokenizer.json (or tokenizer.model), tokenizer_config.json, config.json.

    Args:
        n_vocab: rows of the embedding; ids without a token are filled with unused ones. None: as many as there are
        tokens.

    Raises:
        TokenizerError: no tokenizer, a damaged one, or a kind that llama.cpp has no equal for.
    """
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    try:
        if (folder / "tokenizer.json").exists():
            return _from_json(folder, config, n_vocab)
        if (folder / "tokenizer.model").exists():
            return _from_sentencepiece(folder, config, n_vocab)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise TokenizerError(f"{folder}: the tokenizer files are damaged ({error!r}): download them again") from error
    raise TokenizerError(f"{folder} has neither tokenizer.json nor tokenizer.model: add the tokenizer's files to it")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from outside.

    Raises:
        TokenizerError: not an object, damaged, or absurdly large.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise TokenizerError(f"{path} has {path.stat().st_size:,} bytes, which no configuration needs: is it damaged?")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is no valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds no JSON object: download it again")
    return value


def _from_json(folder: Path, config: dict[str, Any], n_vocab: int | None) -> Vocabulary:
    document = read_json(folder / "tokenizer.json")
    model = document["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(
            f"{folder}: a tokenizer of type {model['type']} is not supported (byte-level and SentencePiece BPE are); "
            "give --converter PATH to use llama.cpp's own script"
        )
    table: dict[str, int] = model["vocab"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    pairs = [_pair(merge) for merge in model["merges"]]
    added: list[dict[str, Any]] = document.get("added_tokens") or []
    sentencepiece = bool(model.get("byte_fallback"))
    size = 1 + max([*table.values(), *(int(token["id"]) for token in added)])
    tokens, types = _blank(folder, size, n_vocab)
    scores = [0.0] * len(tokens)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    for text, token in table.items():
        if not 0 <= token < len(tokens):
            continue
        tokens[token], types[token] = text.encode(), NORMAL
        if sentencepiece:
            scores[token] = -float(ranks.get(text, len(ranks)))
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                types[token], scores[token] = BYTE, 0.0
    for entry in added:
        text, token = str(entry["content"]), int(entry["id"])
        control = bool(entry.get("special")) or looks_special(text)
        if not 0 <= token < len(tokens) or (SPACE in text and text in ranks and not control):
            continue  # Gemma's runs of spaces: the merges make them, where a split of the raw text would see no space
        # llama.cpp splits the raw text at these before it shows spaces, so they are stored with real ones.
        tokens[token] = (text if control else text.replace(SPACE, " ")).encode()
        types[token] = CONTROL if control else USER_DEFINED
        scores[token] = _ADDED_SCORE
    unknown = model.get("unk_token")
    if sentencepiece and table.get(unknown, len(tokens)) < len(tokens):
        types[table[unknown]] = UNKNOWN
    _distinct(folder, tokens)
    special_ids = _special_ids(folder, config, tokens)
    if isinstance(unknown, str) and table.get(unknown, len(tokens)) < len(tokens):
        special_ids["unk"] = table[unknown]
    add_bos, add_eos = _adds(config, document.get("post_processor"), special_ids)
    return Vocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else _pre_tokenizer(folder, document),
        tokens=tokens,
        types=types,
        scores=scores if sentencepiece else None,
        merges=None if sentencepiece else merges,
        special_ids=special_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=sentencepiece and _prepends_space(document),
        chat_templates=_chat_templates(folder, config),
        strips_right=any(entry.get("rstrip") for entry in added),
    )


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _blank(folder: Path, size: int, n_vocab: int | None) -> tuple[list[bytes], list[int]]:
    n_total = n_vocab if n_vocab is not None else size
    if n_total > MAX_TOKENS:
        raise TokenizerError(f"{folder}: a vocabulary of {n_total:,} tokens is beyond any real one: is it damaged?")
    if size - n_total > 256:  # Gemma 3's text models name an image token that has no row; nothing can produce it
        raise TokenizerError(f"{folder}: the tokenizer has {size:,} tokens, the model only {n_total:,} rows for them")
    return [f"[PAD{token}]".encode() for token in range(n_total)], [UNUSED] * n_total


def _distinct(folder: Path, tokens: list[bytes]) -> None:
    """llama.cpp ends the process at two tokens of one text."""
    if len(set(tokens)) == len(tokens) and b"" not in tokens:
        return
    seen: set[bytes] = set()
    for token, text in enumerate(tokens):
        if text in seen or not text:
            raise TokenizerError(
                f"{folder}: token {token} ({text!r}) is empty or there twice: the tokenizer is damaged"
            )
        seen.add(text)


def _special_ids(folder: Path, config: dict[str, Any], tokens: list[bytes]) -> dict[str, int]:
    ids: dict[str, int] = {}
    by_text = {text: token for token, text in enumerate(tokens)}
    texts = dict(config)
    if (folder / "special_tokens_map.json").exists():
        texts = {**read_json(folder / "special_tokens_map.json"), **{k: v for k, v in config.items() if v is not None}}
    numbers: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            numbers |= {k: v for k, v in read_json(folder / name).items() if v is not None}
    for name in ("bos", "eos", "unk", "pad"):
        text = texts.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        token = by_text.get(text.encode()) if isinstance(text, str) else None
        if token is None:
            number = numbers.get(f"{name}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            token = number if isinstance(number, int) and 0 <= number < len(tokens) else None
        if token is not None:
            ids[name] = token
    return ids


def _adds(config: dict[str, Any], post: dict[str, Any] | None, special_ids: Mapping[str, int]) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before and EOS behind a text."""
    single: list[dict[str, Any]] = []
    for processor in [post, *((post or {}).get("processors") or [])]:
        if processor and processor.get("type") == "TemplateProcessing":
            single = processor["single"]
            table = {name: entry["ids"][0] for name, entry in processor["special_tokens"].items()}
    ids = [table[part["SpecialToken"]["id"]] if "SpecialToken" in part else None for part in single]
    before = ids[: ids.index(None)] if None in ids else []
    behind = ids[ids.index(None) + 1 :] if None in ids else []
    told_bos, told_eos = config.get("add_bos_token"), config.get("add_eos_token")
    add_bos = told_bos if isinstance(told_bos, bool) else special_ids.get("bos", -1) in before
    add_eos = told_eos if isinstance(told_eos, bool) else special_ids.get("eos", -1) in behind
    return add_bos and "bos" in special_ids, add_eos and "eos" in special_ids


def _prepends_space(document: dict[str, Any]) -> bool:
    parts = [
        *_parts(document.get("normalizer"), "normalizers"),
        *_parts(document.get("pre_tokenizer"), "pretokenizers"),
    ]
    return any(
        (part["type"] == "Prepend" and part["prepend"] == SPACE)
        or (
            part["type"] == "Metaspace"
            and part.get("prepend_scheme", "always") != "never"
            and part.get("add_prefix_space", True)
        )
        for part in parts
    )


def _parts(part: dict[str, Any] | None, children: str) -> Iterator[dict[str, Any]]:
    if part and part["type"] == "Sequence":
        for child in part[children]:
            yield from _parts(child, children)
    elif part:
        yield part


def _pre_tokenizer(folder: Path, document: dict[str, Any]) -> str:
    rules: list[str] = []
    for part in _parts(document.get("pre_tokenizer"), "pretokenizers"):
        kind = part["type"]
        if kind == "Split" and "Regex" in part["pattern"] and part.get("behavior") == "Isolated":
            rules.append(part["pattern"]["Regex"])
        elif kind == "Digits" and part.get("individual_digits"):
            rules.append("digits")
        elif kind == "ByteLevel" and not part.get("add_prefix_space"):
            if part.get("use_regex", True):
                rules.append("words")
        else:
            rules.append(f"{kind}?")
    name = _PRE_TOKENIZERS.get((tuple(rules), bool(document["model"].get("ignore_merges"))))
    if name is None:
        raise TokenizerError(
            f"{folder}: llama.cpp is not known to split text as this tokenizer does ({' then '.join(rules)}); "
            "give --converter PATH to use llama.cpp's own script"
        )
    return name


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    templates: dict[str, str] = {}
    told = config.get("chat_template")
    if isinstance(told, str):
        templates["default"] = told
    elif isinstance(told, list):
        templates |= {str(entry["name"]): str(entry["template"]) for entry in told}
    if (folder / "chat_template.json").exists():
        told = read_json(folder / "chat_template.json").get("chat_template")
        templates |= {"default": told} if isinstance(told, str) else {}
    if (folder / "chat_template.jinja").exists():
        templates["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return templates


def _from_sentencepiece(folder: Path, config: dict[str, Any], n_vocab: int | None) -> Vocabulary:
    """tokenizer.model (a protobuf), with the tokens that the Hub's files add to it."""
    data = (folder / "tokenizer.model").read_bytes()
    pieces: list[tuple[bytes, float, int]] = []
    unigram, add_space_prefix = True, True
    for number, value in _protobuf(data, folder):
        if number == 1 and isinstance(value, bytes):
            fields = dict(_protobuf(value, folder))
            score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
            pieces.append((fields[1], score, fields.get(3, NORMAL)))
        elif number == 2 and isinstance(value, bytes):
            unigram = dict(_protobuf(value, folder)).get(3, 1) != 2
        elif number == 3 and isinstance(value, bytes):
            add_space_prefix = bool(dict(_protobuf(value, folder)).get(3, 1))
    if unigram:
        raise TokenizerError(
            f"{folder}: tokenizer.model is of the unigram kind, which is not supported (BPE is); "
            "give --converter PATH to use llama.cpp's own script"
        )
    added: dict[int, tuple[str, bool]] = {}
    strips_right = any(entry.get("rstrip") for entry in (config.get("added_tokens_decoder") or {}).values())
    if (folder / "added_tokens.json").exists():
        added |= {int(token): (text, False) for text, token in read_json(folder / "added_tokens.json").items()}
    for token, entry in (config.get("added_tokens_decoder") or {}).items():
        added[int(token)] = (str(entry["content"]), bool(entry.get("special")))
    tokens, types = _blank(folder, 1 + max([len(pieces) - 1, *added]), n_vocab)
    scores = [_ADDED_SCORE] * len(tokens)
    for token, (text, score, kind) in enumerate(pieces[: len(tokens)]):
        tokens[token], scores[token] = text, score
        types[token] = kind if kind in {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE} else NORMAL
    for token, (content, special) in added.items():
        if not 0 <= token < len(tokens) or types[token] == UNKNOWN:
            continue
        control = special or looks_special(content) or types[token] == CONTROL
        tokens[token] = (content if control else content.replace(SPACE, " ")).encode()
        types[token], scores[token] = CONTROL if control else USER_DEFINED, _ADDED_SCORE
    _distinct(folder, tokens)
    special_ids = _special_ids(folder, config, tokens)
    told_bos, told_eos = config.get("add_bos_token"), config.get("add_eos_token")
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        scores=scores,
        merges=None,
        special_ids=special_ids,
        add_bos=(told_bos if isinstance(told_bos, bool) else True) and "bos" in special_ids,
        add_eos=bool(told_eos) and "eos" in special_ids,
        add_space_prefix=add_space_prefix,
        chat_templates=_chat_templates(folder, config),
        strips_right=strips_right,
    )


def _protobuf(data: bytes, folder: Path) -> Iterator[tuple[int, Any]]:
    """The fields of one message of tokenizer.model."""
    try:
        yield from fields(data)
    except ProtobufError as error:
        raise TokenizerError(f"{folder}: tokenizer.model is damaged or truncated: download it again") from error
