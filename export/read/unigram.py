"""SentencePiece's unigram tokenizer, as T5's: from tokenizer.json, or from spiece.model where that is all there is.

llama.cpp reads it for models with an encoder alone. Signs are written otherwise by a map that SentencePiece compiled,
then spaces are joined, and the cut whose scores add up highest is taken.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from pathlib import Path
from typing import Any

from edgellm.export.read import tokenizer_facts
from edgellm.export.read.gguf_vocabulary import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    GgufVocabulary,
    Tokens,
)
from edgellm.export.read.json_file import read_json
from edgellm.export.read.sentencepiece_model import parts_of
from edgellm.export.read.tokenizer_config import special_ids
from edgellm.export.read.tokenizer_facts import NO_WAY, UNIGRAM, Part, TokenizerError, parts
from edgellm.memory.byte_encoder import SPACE

FILES = ("tokenizer.json", "spiece.model", "tokenizer.model")
MAX_CHARSMAP_BYTES = 2**24
_SENTINEL = re.compile(r"<extra_id_\d+>")  # what stands for a gap: people write it, so it is no control token
_UNUSED_SCORE = -10_000.0
_MODEL = {"type", "unk_id", "vocab", "byte_fallback"}
_NORMALIZER = {1: "name", 2: "precompiled_charsmap", 3: "add_dummy_prefix", 4: "remove_extra_whitespaces",
               5: "escape_whitespaces", 6: "normalization_rule_tsv"}  # fmt: skip


def read_unigram(folder: Path, n_vocab: int) -> GgufVocabulary:
    """The vocabulary of a Hub folder's unigram tokenizer.

    Args:
        n_vocab: rows of the embedding; ids without a token are filled with unused ones.

    Raises:
        TokenizerError: no such tokenizer, a damaged one, or one that llama.cpp cuts text by otherwise.
    """
    try:
        config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        tokenizer_facts.account_config(folder, config)
        if (folder / "tokenizer.json").exists():
            return _from_json(folder, config, n_vocab)
        for name in FILES[1:]:
            if (folder / name).exists():
                return _from_model_file(folder / name, config, n_vocab)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, struct.error) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{folder}: the tokenizer files are damaged ({error!r}): download them again") from error
    raise TokenizerError(f"{folder} has neither {' nor '.join(FILES)}: add the tokenizer's files to it")


def _from_json(folder: Path, config: dict[str, Any], n_vocab: int) -> GgufVocabulary:
    document = read_json(folder / "tokenizer.json")
    model = document["model"]
    if model.get("type") != "Unigram":
        raise TokenizerError(
            f"{folder}: a T5 whose tokenizer is of type {model.get('type')!r}, where unigram ones are exported"
        )
    if unknown := next((key for key, value in model.items() if key not in _MODEL and value), None):
        raise TokenizerError(
            f"{folder}: the tokenizer's model has {unknown} {model[unknown]!r}, which is not known"[:400]
        )
    if model.get("byte_fallback"):
        raise TokenizerError(f"{folder}: unknown signs become bytes (byte_fallback), where llama.cpp has one token")
    charsmap, removes_spaces, prepends = _rules(folder, document)
    added: list[dict[str, Any]] = document.get("added_tokens") or []
    ids = [int(entry["id"]) for entry in added]
    tokens = Tokens.blank(folder, 1 + max([len(model["vocab"]) - 1, *ids]), n_vocab, score=_UNUSED_SCORE)
    for token, (text, score) in enumerate(model["vocab"][:n_vocab]):
        tokens.texts[token], tokens.types[token], tokens.scores[token] = str(text).encode(), NORMAL, float(score)
    if not isinstance(model["unk_id"], int) or not 0 <= model["unk_id"] < len(tokens.texts):
        raise TokenizerError(
            f"{folder}: the tokenizer names no token for unknown signs (unk_id), which llama.cpp wants"
        )
    tokens.types[model["unk_id"]] = UNKNOWN
    swallow = [entry for entry in added if entry.get("lstrip") or entry.get("rstrip") or entry.get("single_word")]
    tokenizer_facts.account_flags(folder, [entry for entry in swallow if not _SENTINEL.fullmatch(entry["content"])])
    for entry in added:
        _add(tokens, int(entry["id"]), str(entry["content"]), special=bool(entry.get("special")))
    ends = _ends_with_eos(folder, document.get("post_processor"))
    remark = (
        f"its tokenizer lets {swallow[0]['content']} take spaces beside it along, which llama.cpp does not"
        if swallow
        else ""
    )
    return _vocabulary(folder, config, tokens, charsmap, removes_spaces, prepends, ends, remark)


def _add(tokens: Tokens, token: int, text: str, *, special: bool) -> None:
    """A token that stands beside the pieces."""
    if not 0 <= token < len(tokens.texts) or tokens.types[token] == UNKNOWN:
        return
    control = special and not _SENTINEL.fullmatch(text)
    tokens.texts[token] = (text if control else text.replace(SPACE, " ")).encode()
    tokens.types[token], tokens.scores[token] = (CONTROL if control else USER_DEFINED), 0.0


def _rules(folder: Path, document: Part) -> tuple[bytes, bool, bool]:
    """How text is written otherwise: (map, whether spaces are joined, whether one is put before a text)."""
    charsmap, joins = b"", False
    for part in parts(document.get("normalizer"), "normalizers"):
        if part["type"] == "Precompiled" and not charsmap:
            charsmap = _decoded(folder, part["precompiled_charsmap"])
        elif part["type"] == "Replace" and part["pattern"] == {"Regex": " {2,}"} and part["content"] in (" ", SPACE):
            joins = True
        elif part["type"] != "Strip":
            raise TokenizerError(f"{folder}: text is normalised by {part['type']}, which llama.cpp does not; {NO_WAY}")
    prepends = splits = False
    for part in parts(document.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] == "WhitespaceSplit":
            joins = splits = True
        elif part["type"] == "Metaspace" and part.get("replacement", SPACE) == SPACE:
            prepends = part.get("prepend_scheme", "always") != "never" and bool(part.get("add_prefix_space", True))
        else:
            raise TokenizerError(f"{folder}: text is split by {part['type']}, which llama.cpp does not; {NO_WAY}")
    if splits and not charsmap:
        raise TokenizerError(f"{folder}: text is split at all white space, which no map writes as spaces; {NO_WAY}")
    for part in parts(document.get("decoder"), "decoders"):
        if part["type"] != "Metaspace":
            raise TokenizerError(f"{folder}: tokens become text through {part['type']}, which llama.cpp does not do")
    return charsmap, joins, prepends


def _decoded(folder: Path, text: Any) -> bytes:
    try:
        return _checked(folder, base64.b64decode(text, validate=True))
    except (binascii.Error, TypeError) as error:
        raise TokenizerError(f"{folder}: its map of signs (precompiled_charsmap) is damaged") from error


def _checked(folder: Path, charsmap: bytes) -> bytes:
    """A size in four bytes, so many bytes of a trie, and texts that end with NUL: llama.cpp reads on without one."""
    n_trie = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) > MAX_CHARSMAP_BYTES or n_trie % 4 or not 4 + n_trie < len(charsmap) or charsmap[-1]:
        raise TokenizerError(f"{folder}: its map of signs (precompiled_charsmap) is damaged: download it again")
    return charsmap


def _ends_with_eos(folder: Path, post: Part | None) -> bool:
    """Whether a text ends with a token of its own; anything else that is put around one is refused."""
    for processor in parts(post, "processors"):
        if processor["type"] != "TemplateProcessing":
            raise TokenizerError(
                f"{folder}: a post-processor {processor['type']}, which llama.cpp does not know; {NO_WAY}"
            )
        shape = ["sequence" if "Sequence" in part else "token" for part in processor["single"]]
        if shape not in (["sequence"], ["sequence", "token"]):
            raise TokenizerError(f"{folder}: the tokenizer puts tokens around a text otherwise than T5's; {NO_WAY}")
    return True


def _from_model_file(path: Path, config: dict[str, Any], n_vocab: int) -> GgufVocabulary:
    folder = path.parent
    pieces, trainer, normalizer = parts_of(path)
    refused = {
        "is of another kind than unigram": trainer.get(3, UNIGRAM) != UNIGRAM,
        "puts spaces behind words (treat_whitespace_as_suffix)": trainer.get(24),
        "makes bytes of unknown signs (byte_fallback)": trainer.get(35),
        "leaves spaces as they are (escape_whitespaces)": not normalizer.get(5, True),
    }
    for what, applies in refused.items():
        if applies:
            raise TokenizerError(f"{path} {what}, which llama.cpp's T5 does not; {NO_WAY}")
    if strange := next((number for number in normalizer if number not in _NORMALIZER), None):
        raise TokenizerError(f"{path} has a normalizer setting {strange} that is not known here")
    added = {int(token): entry for token, entry in (config.get("added_tokens_decoder") or {}).items()}
    tokens = Tokens.blank(folder, 1 + max([len(pieces) - 1, *added]), n_vocab, score=_UNUSED_SCORE)
    kinds = {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED}
    for token, (text, score, kind) in enumerate(pieces[:n_vocab]):
        tokens.texts[token], tokens.scores[token] = text, score
        tokens.types[token] = kind if kind in kinds else NORMAL
    for token, entry in added.items():
        _add(tokens, token, str(entry["content"]), special=bool(entry.get("special")))
    n_extra = config.get("extra_ids", 100) if not added else 0
    for i in range(n_extra if isinstance(n_extra, int) else 0):  # numbered from the end, behind the pieces
        _add(tokens, len(pieces) + n_extra - 1 - i, f"<extra_id_{i}>", special=True)
    charsmap = normalizer.get(2) or b""
    return _vocabulary(
        folder,
        config,
        tokens,
        _checked(folder, charsmap) if charsmap else b"",
        bool(normalizer.get(4, True)),
        bool(normalizer.get(3, True)),
        True,
        "",
    )


def _vocabulary(
    folder: Path,
    config: dict[str, Any],
    tokens: Tokens,
    charsmap: bytes,
    removes_spaces: bool,
    prepends: bool,
    ends: bool,
    remark: str,
) -> GgufVocabulary:
    tokens.refuse_doubles(folder)
    ids = special_ids(folder, config, tokens.texts, tokens.types)
    if UNKNOWN not in tokens.types:
        raise TokenizerError(f"{folder}: the tokenizer has no token for unknown signs, which llama.cpp wants")
    ids["unk"] = tokens.types.index(UNKNOWN)
    return GgufVocabulary(
        model="t5",
        pre="default",
        tokens=tokens.texts,
        types=tokens.types,
        scores=tokens.scores,
        merges=None,
        special_ids=ids,
        add_bos=False,
        add_eos=ends and "eos" in ids,
        add_space_prefix=prepends,
        charsmap=charsmap,
        removes_spaces=removes_spaces,
        remarks=(remark,) if remark else (),
    )
