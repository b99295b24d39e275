"""tokenizer.json: byte-level BPE, and SentencePiece BPE, whose merge order gives the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgellm.export.read import pre_tokenizers, tokenizer_facts
from edgellm.export.read.gguf_vocabulary import (
    ADDED_SCORE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    GgufVocabulary,
    Tokens,
)
from edgellm.export.read.json_file import read_json
from edgellm.export.read.tokenizer_config import chat_templates, ends_in_text, special_ids
from edgellm.export.read.tokenizer_facts import TokenizerError, parts
from edgellm.memory.byte_encoder import SPACE, looks_special


def from_json(folder: Path, config: dict[str, Any], n_vocab: int | None) -> GgufVocabulary:
    """The vocabulary of a folder's tokenizer.json.

    Args:
        config: tokenizer_config.json.
        n_vocab: rows of the embedding. None: as many as there are tokens.

    Raises:
        TokenizerError: damage, or a kind that llama.cpp has no equal for.
    """
    document = read_json(folder / "tokenizer.json")
    model = document["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(
            f"{folder}: a tokenizer of type {model['type']} is not supported for this model (byte-level and "
            "SentencePiece BPE are); "
            f"{tokenizer_facts.NO_WAY}"
        )
    sentencepiece = bool(model.get("byte_fallback"))
    tokenizer_facts.account(folder, document, config, sentencepiece=sentencepiece)
    added: list[dict[str, Any]] = document.get("added_tokens") or []
    tokens = _tokens(folder, model, added, n_vocab)
    templates = chat_templates(folder, config)
    numbers = {str(entry["content"]): int(entry["id"]) for entry in added}
    _refuse_without_rows(folder, config, numbers, len(tokens.texts), templates)
    ids = special_ids(folder, config, tokens.texts, tokens.types)
    if (unknown := _unknown(model, len(tokens.texts))) is not None:
        ids["unk"] = unknown
    add_bos, add_eos = _adds(folder, document.get("post_processor"), ids)
    pre = "default" if sentencepiece else pre_tokenizers.name_of(folder, document)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return GgufVocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre=pre,
        tokens=tokens.texts,
        types=tokens.types,
        scores=tokens.scores if sentencepiece else None,
        merges=None if sentencepiece else merges,
        special_ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=sentencepiece and _prepends_space(document),
        chat_templates=templates,
        strips_right=any(entry.get("rstrip") for entry in added),
        remarks=(*tokenizer_facts.remarks(document, pre), *ends_in_text(tokens.texts, tokens.types)),
    )


def _tokens(folder: Path, model: dict[str, Any], added: list[dict[str, Any]], n_vocab: int | None) -> Tokens:
    """Texts, types and scores of all tokens, those of the model and those that were added to it."""
    table: dict[str, int] = model["vocab"]
    sentencepiece = bool(model.get("byte_fallback"))
    ranks: dict[str, int] = {}  # text that a merge makes -> the first that does
    for rank, (left, right) in enumerate(map(_pair, model["merges"])):
        ranks.setdefault(left + right, rank)
    ids = [*table.values(), *(entry["id"] for entry in added)]
    if any(type(number) is not int or number < 0 for number in ids) or len({*table.values()}) < len(table):
        raise TokenizerError(
            f"{folder}: tokenizer.json gives a token no number of its own (0, 1, 2 ...): it is damaged, download it "
            "again"
        )
    tokens = Tokens.blank(folder, 1 + max(ids), n_vocab, score=0.0)
    texts, types, scores = tokens.texts, tokens.types, tokens.scores
    for text, token in table.items():
        if token >= len(texts):
            continue
        texts[token], types[token] = text.encode(), NORMAL
        if sentencepiece:
            scores[token] = -float(ranks.get(text, len(ranks)))
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                types[token], scores[token] = BYTE, 0.0
    for entry in added:
        _add(folder, tokens, entry, ranks, sentencepiece=sentencepiece)
    if sentencepiece and (unknown := _unknown(model, len(texts))) is not None:
        types[unknown] = UNKNOWN
    tokens.refuse_doubles(folder)
    return tokens


def _add(folder: Path, tokens: Tokens, entry: dict[str, Any], ranks: dict[str, int], *, sentencepiece: bool) -> None:
    """A token that stands beside the model."""
    text, token = str(entry["content"]), int(entry["id"])
    control = bool(entry.get("special")) or looks_special(text)
    if token >= len(tokens.texts) or (SPACE in text and text in ranks and not control):
        return  # Gemma's runs of spaces: the merges make them, where a split of the raw text would see no space
    if sentencepiece and SPACE in text and not control and not entry.get("normalized"):
        raise TokenizerError(
            f"{folder}: the added token {text!r} is looked for as it is written, and llama.cpp would find it where "
            "a text has spaces; take it out if it does not matter"
        )
    # llama.cpp splits the raw text at these before it shows spaces, so they are stored with real ones.
    tokens.texts[token] = (text if control else text.replace(SPACE, " ")).encode()
    tokens.types[token] = CONTROL if control else USER_DEFINED
    tokens.scores[token] = ADDED_SCORE


def _unknown(model: dict[str, Any], n_rows: int) -> int | None:
    """The token of what no other token spells, where the model has a row for it."""
    token = model["vocab"].get(model.get("unk_token"))
    return token if token is not None and token < n_rows else None


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


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
