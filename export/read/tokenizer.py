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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgellm.export.convert import gguf_writer as gguf
from edgellm.export.read import tokenizer_facts
from edgellm.export.read.kinds import wanted
from edgellm.export.read.tokenizer_facts import TokenizerError as TokenizerError
from edgellm.export.read.tokenizer_facts import parts
from edgellm.memory.byte_encoder import SPACE, looks_special
from edgellm.memory.limits import TOKENIZER_JSON_MAX_BYTES
from edgellm.memory.protobuf import ProtobufError, fields

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's `llama_token_type`
MAX_TOKENS = 2**22
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# llama.cpp prefers a token of any type where two symbols join to its text; this keeps added ones last.
_ADDED_SCORE = -1000.0

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS_ON = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CASED[0]}*{_CASED[1]}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_CASED[0]}+{_CASED[1]}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Splitting rules (regular expressions; `digits` and `words` stand for the ready-made ones) and whether whole words
# skip the merges -> llama.cpp's name.
_PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _LETTERS_ON,), True): "llama-bpe",
    ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _LETTERS_ON,), False): "smaug-bpe",
    ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _LETTERS_ON,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    (_DEEPSEEK, False): "deepseek-v3",
    ((_TEKKEN,), True): "tekken",
    ((_O200K,), False): "gpt-4o",
    (("digits", "words"), False): "smollm",
    (("words",), False): "gpt-2",
}


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """What GGUF stores of a tokenizer. `tokens`, `types` and `scores` are indexed by token id."""

    model: Literal["llama", "gpt2"]
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
        if self.model == "llama":
            entries["tokenizer.ggml.add_space_prefix"] = gguf.boolean(self.add_space_prefix)
        named = [name for name in self.chat_templates if name != "default"]
        if "default" in self.chat_templates:
            entries["tokenizer.chat_template"] = gguf.string(self.chat_templates["default"])
        if named:
            entries["tokenizer.chat_templates"] = gguf.strings(named)
            entries |= {f"tokenizer.chat_template.{name}": gguf.string(self.chat_templates[name]) for name in named}
        return entries


def read_vocabulary(folder: Path, n_vocab: int | None = None) -> GgufVocabulary:
    """The vocabulary of a Hub folder: tokenizer.json (or tokenizer.model), tokenizer_config.json, config.json.

    Args:
        n_vocab: rows of the embedding; ids without a token are filled with unused ones. None: as many as there are
        tokens.

    Raises:
        TokenizerError: no tokenizer, a damaged one, or a kind that llama.cpp has no equal for.
    """
    try:
        config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        if (folder / "tokenizer.json").exists():
            return _from_json(folder, config, n_vocab)
        if (folder / "tokenizer.model").exists():
            return _from_sentencepiece(folder, config, n_vocab)
    except (KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise TokenizerError(f"{folder}: the tokenizer files are damaged ({error!r}): download them again") from error
    if (folder / "vocab.json").exists():
        raise TokenizerError(
            f"{folder} has vocab.json and no tokenizer.json, which says how text is split: transformers writes it "
            "(AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))"
        )
    raise TokenizerError(f"{folder} has neither tokenizer.json nor tokenizer.model: add the tokenizer's files to it")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from outside.

    Raises:
        TokenizerError: not an object, damaged, or absurdly large.
    """
    if path.stat().st_size > TOKENIZER_JSON_MAX_BYTES:
        raise TokenizerError(f"{path} has {path.stat().st_size:,} bytes, which no configuration needs: is it damaged?")
    data = path.read_bytes()
    if data.startswith(LFS_POINTER):
        raise TokenizerError(f"{path} is a pointer of Git LFS and not the file: run `git lfs pull` in its folder")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is no valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds no JSON object: download it again")
    return value


def _from_json(folder: Path, config: dict[str, Any], n_vocab: int | None) -> GgufVocabulary:
    document = read_json(folder / "tokenizer.json")
    model = document["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(
            f"{folder}: a tokenizer of type {model['type']} is not supported (byte-level and SentencePiece BPE are); "
            f"{tokenizer_facts.NO_WAY}"
        )
    tokenizer_facts.account(folder, document, config, sentencepiece=bool(model.get("byte_fallback")))
    table: dict[str, int] = model["vocab"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    pairs = [_pair(merge) for merge in model["merges"]]
    added: list[dict[str, Any]] = document.get("added_tokens") or []
    sentencepiece = bool(model.get("byte_fallback"))
    ids = [*table.values(), *(entry["id"] for entry in added)]
    if any(type(number) is not int or number < 0 for number in ids) or len({*table.values()}) < len(table):
        raise TokenizerError(
            f"{folder}: tokenizer.json gives a token no number of its own (0, 1, 2 ...): it is damaged, download it "
            "again"
        )
    size = 1 + max(ids)
    tokens, types = _blank(folder, size, n_vocab)
    scores = [0.0] * len(tokens)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    for text, token in table.items():
        if token >= len(tokens):
            continue
        tokens[token], types[token] = text.encode(), NORMAL
        if sentencepiece:
            scores[token] = -float(ranks.get(text, len(ranks)))
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                types[token], scores[token] = BYTE, 0.0
    for entry in added:
        text, token = str(entry["content"]), int(entry["id"])
        control = bool(entry.get("special")) or looks_special(text)
        if token >= len(tokens) or (SPACE in text and text in ranks and not control):
            continue  # Gemma's runs of spaces: the merges make them, where a split of the raw text would see no space
        if sentencepiece and SPACE in text and not control and not entry.get("normalized"):
            raise TokenizerError(
                f"{folder}: the added token {text!r} is looked for as it is written, and llama.cpp would find it where "
                "a text has spaces; take it out if it does not matter"
            )
        # llama.cpp splits the raw text at these before it shows spaces, so they are stored with real ones.
        tokens[token] = (text if control else text.replace(SPACE, " ")).encode()
        types[token] = CONTROL if control else USER_DEFINED
        scores[token] = _ADDED_SCORE
    unknown = model.get("unk_token")
    if sentencepiece and table.get(unknown, len(tokens)) < len(tokens):
        types[table[unknown]] = UNKNOWN
    _distinct(folder, tokens)
    templates = _chat_templates(folder, config)
    _refuse_without_rows(
        folder, config, {str(entry["content"]): int(entry["id"]) for entry in added}, len(tokens), templates
    )
    special_ids = _special_ids(folder, config, tokens, types)
    if isinstance(unknown, str) and table.get(unknown, len(tokens)) < len(tokens):
        special_ids["unk"] = table[unknown]
    add_bos, add_eos = _adds(folder, document.get("post_processor"), special_ids)
    pre = "default" if sentencepiece else _pre_tokenizer(folder, document)
    return GgufVocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        scores=scores if sentencepiece else None,
        merges=None if sentencepiece else merges,
        special_ids=special_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=sentencepiece and _prepends_space(document),
        chat_templates=templates,
        strips_right=any(entry.get("rstrip") for entry in added),
        remarks=(*tokenizer_facts.remarks(document, pre), *_ends_in_text(tokens, types)),
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


def _refuse_without_rows(
    folder: Path, config: dict[str, Any], added: dict[str, int], n_rows: int, templates: dict[str, str]
) -> None:
    """A token beyond the embedding may stand in a list and never in a conversation: nothing can be computed from it."""
    for text, token in added.items():
        named = any(config.get(f"{name}_token") == text for name in ("bos", "eos"))
        if token >= n_rows and (named or any(text in template for template in templates.values())):
            raise TokenizerError(
                f"{folder}: {text!r} is token {token} and the model has rows for {n_rows:,}: it was added and never "
                "trained; resize the model's embedding to its tokenizer"
            )


def _distinct(folder: Path, tokens: list[bytes]) -> None:
    """llama.cpp ends the process at two tokens of one text, and reads a text up to a NUL."""
    if len(set(tokens)) == len(tokens) and b"" not in tokens and not any(b"\0" in text for text in tokens):
        return
    seen: set[bytes] = set()
    for token, text in enumerate(tokens):
        if text in seen or not text or b"\0" in text:
            fault = "holds a NUL" if b"\0" in text else "is empty or there twice"
            raise TokenizerError(f"{folder}: token {token} ({text!r}) {fault}: the tokenizer is damaged")
        seen.add(text)


# Texts at which llama.cpp ends an answer whatever the file says, those of a turn's end first.
_TURN_ENDS = (
    b"<|eot_id|>", b"<|im_end|>", b"<|end|>", b"<end_of_turn>", b"<|endoftext|>", b"<|end_of_text|>", b"<EOT>",
    b"_<EOT>", b"[EOT]", "<｜end▁of▁sentence｜>".encode(), b"<end_of_utterance>",
)  # fmt: skip
_ENDS = {
    *_TURN_ENDS, b"<|return|>", b"<|call|>", b"<|flush|>", b"<|calls|>", b"</s>", b"<|eom_id|>", b"[EOS]", b"<eos>",
    b"<turn|>", b"<|tool_response>", b"[e~[",
}  # fmt: skip


def _special_ids(folder: Path, config: dict[str, Any], tokens: list[bytes], types: list[int]) -> dict[str, int]:
    ids: dict[str, int] = {}
    by_text = {text: token for token, text in enumerate(tokens)}
    texts = dict(config)
    if (folder / "special_tokens_map.json").exists():
        texts = {**read_json(folder / "special_tokens_map.json"), **{k: v for k, v in config.items() if v is not None}}
    numbers: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            told = {k: v for k, v in read_json(folder / name).items() if v is not None}
            _account_numbers(folder, name, told)
            numbers |= told
    for name in ("bos", "eos", "unk", "pad"):
        text = tokenizer_facts.named(folder, f"{name}_token", texts.get(f"{name}_token"))
        token = by_text.get(text.encode()) if isinstance(text, str) else None
        if token is None:
            token = next(iter(_numbers(numbers.get(f"{name}_token_id"), len(tokens))), None)
        if token is not None:
            ids[name] = token
    return ids | _ends(folder, ids.get("eos"), _numbers(numbers.get("eos_token_id"), len(tokens)), tokens, types)


def _account_numbers(folder: Path, name: str, settings: dict[str, Any]) -> None:
    for key in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        if what := wanted(key, settings.get(key)):
            raise TokenizerError(f"{folder} has {key} {settings[key]!r} in {name}, which must be {what}"[:400])


def named_ends(folder: Path) -> dict[str, list[Any]]:
    """What tells llama.cpp where an answer ends: the ids that the configuration names, the texts of tokens that it ends
    at anyway, and those of them that end a turn.
    """
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        told = read_json(folder / name) if (folder / name).exists() else {}
        inner = told.get("text_config")
        for value in (told.get("eos_token_id"), inner.get("eos_token_id") if isinstance(inner, dict) else None):
            ids += [] if ids else _numbers(value, MAX_TOKENS)
    return {
        "ids": list(dict.fromkeys(ids)),
        "known": sorted(text.decode() for text in _ENDS),
        "turns": sorted(text.decode() for text in _TURN_ENDS),
    }


def _ends_in_text(tokens: list[bytes], types: list[int]) -> list[str]:
    """Tokens that are ordinary text to their tokenizer, and control tokens to llama.cpp in every vocabulary."""
    found = [text.decode() for text, kind in zip(tokens, types, strict=True) if text in _ENDS and kind == NORMAL]
    if not found:
        return []
    return [f"llama.cpp takes {', '.join(found)} for an end of an answer, which is ordinary text to its tokenizer"]


def _numbers(value: Any, n_tokens: int) -> list[int]:
    """One token id or several; those that the model has no row for are left out, as it cannot produce them."""
    values = value if isinstance(value, list) else [value]
    return [number for number in values if type(number) is int and 0 <= number < n_tokens]


def _ends(folder: Path, eos: int | None, stops: list[int], tokens: list[bytes], types: list[int]) -> dict[str, int]:
    """The tokens at which an answer ends, so that llama.cpp ends at all of them and at none of its own defaults."""
    known = [token for token, text in enumerate(tokens) if text in _ENDS]
    if eos is None:
        # llama.cpp takes an ordinary token where none is named; one that ends answers anyway, or never comes, does no
        # harm.
        spare = known or [token for token, kind in enumerate(types) if kind == UNUSED]
        if not spare:
            raise TokenizerError(
                f"{folder} names no token at which an answer ends, and llama.cpp would end at an ordinary one: write "
                "eos_token_id into generation_config.json"
            )
        return {"eos": spare[0]}
    further = [token for token in dict.fromkeys(stops) if token != eos and token not in known]
    # The end of a turn is found by its text; naming another would take its place.
    places = ["eom"] if any(tokens[token] in _TURN_ENDS for token in known) else ["eot", "eom"]
    if len(further) > len(places):
        raise TokenizerError(
            f"{folder}: answers end at {len(further) + 1} tokens that only generation_config.json names "
            f"(eos_token_id), and a GGUF file has places for {len(places) + 1}: leave the least important out"
        )
    return dict(zip(places, further, strict=False))


def _adds(folder: Path, post: dict[str, Any] | None, special_ids: dict[str, int]) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before and EOS behind a text; a BOS that it alone names is noted.

    transformers leaves `add_bos_token` and `add_eos_token` aside where there is a tokenizer.json.
    """
    single: list[dict[str, Any]] = []
    for processor in parts(post, "processors"):
        if processor["type"] == "TemplateProcessing":
            single = processor["single"]
            table = {name: entry["ids"] for name, entry in processor["special_tokens"].items()}
    ids = [table[part["SpecialToken"]["id"]] if "SpecialToken" in part else None for part in single]
    before = [token for group in ids[: ids.index(None)] if group for token in group] if None in ids else []
    behind = [token for group in ids[ids.index(None) + 1 :] if group for token in group] if None in ids else []
    if before and "bos" not in special_ids:
        special_ids["bos"] = before[0]
    if before not in ([], [special_ids.get("bos")]) or behind not in ([], [special_ids.get("eos")]):
        raise TokenizerError(
            f"{folder}: the tokenizer puts tokens {before} before and {behind} behind a text, where llama.cpp puts one "
            "BOS and one EOS"
        )
    return bool(before), bool(behind)


def _prepends_space(document: dict[str, Any]) -> bool:
    steps = [
        *parts(document.get("normalizer"), "normalizers"),
        *parts(document.get("pre_tokenizer"), "pretokenizers"),
    ]
    return any(
        (part["type"] == "Prepend" and part["prepend"] == SPACE)
        or (
            part["type"] == "Metaspace"
            and part.get("prepend_scheme", "always") != "never"
            and part.get("add_prefix_space", True)
        )
        for part in steps
    )


def pre_tokenizer(folder: Path) -> str:
    """llama.cpp's name for how the byte-level tokenizer of a Hub folder splits text, by its rules.

    Raises:
        TokenizerError: no rules of which llama.cpp is known to have the equal.
    """
    try:
        return _pre_tokenizer(folder, read_json(folder / "tokenizer.json"))
    except (KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{folder}: tokenizer.json is damaged ({error!r}): download it again") from error


def _pre_tokenizer(folder: Path, document: dict[str, Any]) -> str:
    rules: list[str] = []
    for part in parts(document.get("pre_tokenizer"), "pretokenizers"):
        kind = part["type"]
        # The rules match every sign, so what they match may as well be named as what is kept of a text.
        how = (part.get("behavior"), bool(part.get("invert")))
        if kind == "Split" and "Regex" in part["pattern"] and how in {("Isolated", False), ("Removed", True)}:
            # Some write line ends into the rule as they are.
            rules.append(part["pattern"]["Regex"].replace("\r", r"\r").replace("\n", r"\n"))
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
            "let llama.cpp's own script convert it with --converter llama.cpp"
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
        try:
            templates["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{folder / 'chat_template.jinja'} is no UTF-8 text: save it as such") from error
    return templates


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
    """Each piece of tokenizer.model (a protobuf): text, score and kind; and whether a space is put before a text."""
    data = (folder / "tokenizer.model").read_bytes()
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
            raise TokenizerError(f"{folder}: tokenizer.model has a part {number} that is not known here")
    if not trainer:
        raise TokenizerError(f"{folder}: tokenizer.model is damaged or truncated: download it again")
    has_user_defined = any(kind == USER_DEFINED for _, _, kind in pieces)
    tokenizer_facts.account_sentencepiece(folder, trainer, normalizer, has_user_defined=has_user_defined)
    return pieces, bool(normalizer.get(3, True))


def _from_sentencepiece(folder: Path, config: dict[str, Any], n_vocab: int | None) -> GgufVocabulary:
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
    special_ids = _special_ids(folder, config, tokens, types)
    told_bos, told_eos = config.get("add_bos_token"), config.get("add_eos_token")
    return GgufVocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        scores=scores,
        merges=None,
        special_ids=special_ids,
        add_bos=(told_bos if isinstance(told_bos, bool) else True) and "bos" in special_ids,
        add_eos=bool(told_eos) and "eos" in special_ids,
        add_space_prefix=has_dummy_prefix,
        chat_templates=_chat_templates(folder, config),
        strips_right=strips_right,
    )


def _protobuf(data: bytes, folder: Path) -> Iterator[tuple[int, Any]]:
    """The fields of one message of tokenizer.model."""
    try:
        yield from fields(data)
    except ProtobufError as error:
        raise TokenizerError(f"{folder}: tokenizer.model is damaged or truncated: download it again") from error
