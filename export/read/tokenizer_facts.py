"""What a tokenizer's files say, part by part: read, without effect on how text is cut, or refused by name.

llama.cpp cuts text in two ways, byte-level BPE and SentencePiece BPE, and each does certain things and nothing else.
A part of tokenizer.json that is not among them changes tokens in silence, so it is refused here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgellm.memory.byte_encoder import SPACE
from edgellm.memory.errors import EdgellmError

Part = Mapping[str, Any]
WAY_OUT = "let llama.cpp's own script convert it with --converter llama.cpp"
NO_WAY = "a GGUF file of it would cut text otherwise, whoever makes it"


class TokenizerError(EdgellmError, ValueError):
    """A tokenizer that cannot be exported; the message says why and what to do."""


# tokenizer.json -> its parts; `padding` and `truncation` are of batches, not of the vocabulary.
_DOCUMENT = {
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
    "model",
}  # fmt: skip
# `fuse_unk` tells what becomes of unknown signs, of which there are none where every byte has a token.
_MODEL = {"type", "vocab", "merges", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges"}
_FLAGS = {"id", "content", "special", "single_word", "lstrip", "rstrip", "normalized"}
# llama.cpp lets every control token swallow the spaces behind it where the name says Phi-3, but for these.
PHI3_KEEPS_SPACES = {"<unk>", "<s>", "<|endoftext|>"}
PHI3_TOKENS = {"</s>", *PHI3_KEEPS_SPACES}

# tokenizer_config.json: what is read, and what says nothing of how text is cut.
_CONFIG = {
    "bos_token", "eos_token", "unk_token", "pad_token", "add_bos_token", "add_eos_token", "added_tokens_decoder",
    "chat_template",
    # of a Python class: which one, and how it was loaded
    "tokenizer_class", "tokenizer_file", "vocab_file", "merges_file", "name_or_path", "_name_or_path", "auto_map",
    "legacy", "from_slow", "use_fast", "fast_tokenizer", "backend", "is_local", "processor_class", "sp_model_kwargs",
    "special_tokens_map_file", "transformers_version", "trust_remote_code", "_commit_hash", "init_inputs",
    "keep_accents", "local_files_only", "device_map", "unk_id",
    # of batches
    "model_max_length", "max_length", "padding_side", "truncation_side", "padding", "truncation", "stride",
    "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id", "return_token_type_ids", "model_input_names",
    # of text that is put together again
    "clean_up_tokenization_spaces", "spaces_between_special_tokens", "errors", "trim_offsets",
    # of conversations
    "use_default_system_prompt", "additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens",
    "response_schema", "tool_parser_type", "special_tokens", "extra_ids",
}  # fmt: skip
_CONFIG_FIXED = dict.fromkeys(("do_lower_case", "strip_accents", "remove_space", "split_special_tokens"), (False, None))


def parts(part: Part | None, children: str) -> Iterator[Part]:
    """A component's own parts in order, sequences opened."""
    if part and part["type"] == "Sequence":
        for child in part[children]:
            yield from parts(child, children)
    elif part:
        yield part


def account(folder: Path, document: Part, config: Part, *, sentencepiece: bool) -> None:
    """Refuse a tokenizer.json, or a tokenizer_config.json beside it, of which llama.cpp leaves something out.

    Raises:
        TokenizerError: the part, by name.
    """
    for key, value in document.items():
        if key not in _DOCUMENT and value:
            raise TokenizerError(f"{folder}: tokenizer.json has {key!r}, which is not known here; {WAY_OUT}")
    for key, value in document["model"].items():
        if key not in _MODEL and value:
            raise TokenizerError(f"{folder}: the tokenizer's model has {key} {value!r}, which llama.cpp does not")
    if sentencepiece and document["model"].get("ignore_merges"):
        raise TokenizerError(f"{folder}: a SentencePiece tokenizer that ignores its merges, which llama.cpp does not")
    _account_added(folder, document, config)
    account_config(folder, config)
    if not sentencepiece and config.get("add_prefix_space"):
        raise TokenizerError(f"{folder}: tokenizer_config.json has add_prefix_space, which llama.cpp does not do")
    normalizers = list(parts(document.get("normalizer"), "normalizers"))
    splitters = list(parts(document.get("pre_tokenizer"), "pretokenizers"))
    if any(map(_prepends, normalizers)):
        _account_normalised(folder, document)
    if not sentencepiece and normalizers:
        _account_composed(folder, document)
    decoders = list(parts(document.get("decoder"), "decoders"))
    for part in normalizers:
        if not (_replaces_spaces(part) or _prepends(part) if sentencepiece else part["type"] == "NFC"):
            raise TokenizerError(f"{folder}: text is normalised by {_told(part)}, which llama.cpp does not; {NO_WAY}")
    for part in parts(document.get("post_processor"), "processors"):
        if part["type"] not in {"TemplateProcessing", "ByteLevel"}:
            raise TokenizerError(f"{folder}: a post-processor {part['type']}, which llama.cpp does not know; {NO_WAY}")
    known = _SENTENCEPIECE_DECODERS if sentencepiece else {"ByteLevel"}
    for part in decoders:
        if part["type"] not in known or (part["type"] == "Replace" and not _shows_spaces(part)):
            raise TokenizerError(
                f"{folder}: tokens become text through {_told(part)}, which llama.cpp does not do; {NO_WAY}"
            )
    if sentencepiece:
        for part in splitters:
            if not (_is_metaspace(part) or _splits_at_spaces(part)):
                raise TokenizerError(f"{folder}: text is split by {_told(part)}, which llama.cpp does not; {NO_WAY}")
        if not any(map(_replaces_spaces, normalizers)) and not any(map(_is_metaspace, splitters)):
            raise TokenizerError(f"{folder}: spaces stay as they are, where llama.cpp writes them as {SPACE}")


def _account_normalised(folder: Path, document: Part) -> None:
    """Where a space is put before a text, an added token that is looked for after that is found at its beginning
    alone. Control tokens are left out: nobody but a template writes one, and it means the token.
    """
    for entry in document.get("added_tokens") or []:
        if entry.get("normalized") and not entry.get("special"):
            raise TokenizerError(
                f"{folder}: the added token {entry['content']!r} is looked for in normalised text (normalized), which "
                f"llama.cpp does not do; clear it if it does not matter"
            )


def _account_composed(folder: Path, document: Part) -> None:
    """Where characters are composed first (NFC), so is the text of an added token that is looked for after that."""
    for entry in document.get("added_tokens") or []:
        text = str(entry["content"])
        if entry.get("normalized") and unicodedata.normalize("NFC", text) != text:
            raise TokenizerError(
                f"{folder}: the added token {text!r} is looked for with its characters composed (normalized), which "
                f"llama.cpp does not do; clear it if it does not matter"
            )


_SENTENCEPIECE_DECODERS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


def _replaces_spaces(part: Part) -> bool:
    return bool(part["type"] == "Replace" and part["pattern"] == {"String": " "} and part["content"] == SPACE)


def _shows_spaces(part: Part) -> bool:
    return bool(part["pattern"] == {"String": SPACE} and part["content"] == " ")


def _prepends(part: Part) -> bool:
    return bool(part["type"] == "Prepend" and part["prepend"] == SPACE)


def _is_metaspace(part: Part) -> bool:
    return part["type"] == "Metaspace" and part.get("replacement", SPACE) == SPACE and part.get("split") is False


def _splits_at_spaces(part: Part) -> bool:
    """Gemma's: where spaces are written otherwise by then, it finds none."""
    return bool(part["type"] == "Split" and part["pattern"] == {"String": " "})


def _told(part: Part) -> str:
    pattern = part.get("pattern")
    return f"{part['type']} ({pattern!r})"[:80] if pattern else str(part["type"])


def _account_added(folder: Path, document: Part, config: Part) -> None:
    """The attributes of added tokens: where they are looked for, and which spaces they take along."""
    added = {int(entry["id"]): entry for entry in document.get("added_tokens") or []}
    for number, entry in (config.get("added_tokens_decoder") or {}).items():
        known = added.get(int(number))
        if known is None or known["content"] != entry["content"]:
            is_word = known is None and document["model"]["vocab"].get(entry["content"]) == int(number)
            if is_word and not any(entry.get(flag) for flag in ("special", "single_word", "lstrip", "rstrip")):
                continue
            raise TokenizerError(
                f"{folder}: tokenizer_config.json adds token {number} ({entry['content']!r}) that tokenizer.json has "
                "not: save the tokenizer again with transformers"
            )
        for flag in ("single_word", "lstrip", "rstrip"):
            if bool(entry.get(flag)) != bool(known.get(flag)):
                raise TokenizerError(
                    f"{folder}: tokenizer.json and tokenizer_config.json disagree about {flag} of "
                    f"{entry['content']!r}: save the tokenizer again with transformers"
                )
    for entry in added.values():
        if unknown := next((key for key, value in entry.items() if key not in _FLAGS and value), None):
            raise TokenizerError(f"{folder}: the added token {entry['content']!r} has {unknown!r}, not known here")
    account_flags(folder, list(added.values()))
    _account_names(folder, document, config)


def _account_names(folder: Path, document: Part, config: Part) -> None:
    """transformers adds a token that is named and not there; no row of the model answers to it."""
    known = {entry["content"] for entry in document.get("added_tokens") or []} | set(document["model"]["vocab"])
    entries: list[Any] = [config.get("bos_token"), config.get("eos_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = config.get(key) or []
        entries += list(listed.values()) if isinstance(listed, dict) else list(listed)
    for entry in entries:
        text = named(folder, "a special token of tokenizer_config.json", entry)
        if text is not None and text not in known:
            raise TokenizerError(
                f"{folder}: tokenizer_config.json names {text!r}, which is no token of tokenizer.json: save the "
                "tokenizer again with transformers, or take the name out"
            )


def named(folder: Path, key: str, value: Any) -> str | None:
    """The text of a token that a configuration names, by itself or with its attributes.

    Raises:
        TokenizerError: it is neither.
    """
    text = value.get("content") if isinstance(value, dict) else value
    if value is not None and not isinstance(text, str):
        raise TokenizerError(f"{folder}: {key} is {value!r}, which names no token"[:400])
    return text


def account_flags(folder: Path, added: Sequence[Part]) -> None:
    """Refuse added tokens that take spaces along, or stand alone only, where llama.cpp has them do otherwise."""
    for flag, what in (
        ("single_word", "is a token only as a word of its own"),
        ("lstrip", "swallows spaces before it"),
    ):
        if entry := next((entry for entry in added if entry.get(flag)), None):
            raise TokenizerError(
                f"{folder}: the added token {entry['content']!r} {what} ({flag}), which llama.cpp does not do; "
                f"clear it if it does not matter"
            )
    strips = [entry["content"] for entry in added if entry.get("rstrip")]
    if strips:
        contents = {entry["content"] for entry in added}
        if not contents >= PHI3_TOKENS or set(strips) != contents - PHI3_KEEPS_SPACES:
            raise TokenizerError(
                f"{folder}: the added token {strips[0]!r} swallows spaces behind it (rstrip), which llama.cpp does for "
                f"Phi-3's tokens alone; clear it if it does not matter"
            )


def account_config(folder: Path, config: Part) -> None:
    """Refuse a tokenizer_config.json that changes tokens, or may."""
    for key, value in config.items():
        if key in _CONFIG_FIXED and value not in _CONFIG_FIXED[key]:
            raise TokenizerError(f"{folder}: tokenizer_config.json has {key} {value!r}, which llama.cpp does not do")
        names_tokens = key.endswith(("_token", "_tokens", "_token_id", "_token_ids"))
        known = key in _CONFIG or key in _CONFIG_FIXED or key == "add_prefix_space" or names_tokens
        if not known and value not in (None, False, "", [], {}):
            raise TokenizerError(
                f"{folder}: tokenizer_config.json has {key} {value!r}, which is not known here: take it out if it "
                f"changes no tokens, or {WAY_OUT}"[:400]
            )


# llama.cpp's rules of these names stand in for others: they see letter case in ASCII alone, and no marks.
APPROXIMATE = {"gpt-4o", "tekken"}


def _is_written_out(text: str) -> bool:
    """A run of spaces as an added token: it is looked for before spaces are written as such signs."""
    return len(text) > 1 and set(text) == {SPACE}


def remarks(document: Part, pre_tokenizer: str) -> list[str]:
    """Texts that llama.cpp cuts otherwise whatever a file says, in sentences."""
    found = []
    if pre_tokenizer in APPROXIMATE:
        found.append(
            "llama.cpp splits words with combining marks, or of mixed case beyond ASCII, otherwise than its tokenizer"
        )
    normalizers = list(parts(document.get("normalizer"), "normalizers"))
    splitters = list(parts(document.get("pre_tokenizer"), "pretokenizers"))
    if any(part["type"] == "NFC" for part in normalizers):
        found.append("its tokenizer composes characters first (NFC), which llama.cpp leaves to its caller")
    if any(_is_written_out(str(entry["content"])) for entry in document.get("added_tokens") or []):
        found.append(
            f"its tokenizer keeps signs for spaces ({SPACE}) that are written out in a text apart from spaces beside "
            "them; llama.cpp takes them for spaces"
        )
    if any(part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never" for part in splitters):
        found.append(
            "its tokenizer puts no space before a text that begins with one, or stands behind an added token; "
            "llama.cpp does"
        )
    return found


# tokenizer.model, by the field numbers of sentencepiece_model.proto. Of the trainer's settings all others tell how the
# pieces were found; they are there by now.
UNIGRAM, BPE = 1, 2
_TRAINER = {"model_type": 3, "treat_whitespace_as_suffix": 24, "byte_fallback": 35}
_NORMALIZER = {1: "name", 2: "precompiled_charsmap", 3: "add_dummy_prefix", 4: "remove_extra_whitespaces",
               5: "escape_whitespaces", 6: "normalization_rule_tsv"}  # fmt: skip


def account_sentencepiece(
    folder: Path, trainer: Mapping[int, Any], normalizer: Mapping[int, Any], *, has_user_defined: bool
) -> None:
    """Refuse a tokenizer.model that treats text otherwise than llama.cpp's SentencePiece BPE.

    Args:
        trainer, normalizer: the fields of the two specifications, by number.
        has_user_defined: some pieces are symbols that were given to the trainer.
    """
    if trainer.get(_TRAINER["model_type"], UNIGRAM) != BPE:
        raise TokenizerError(
            f"{folder}: tokenizer.model is of another kind than BPE (unigram, for one), which llama.cpp has for T5 "
            f"alone; {NO_WAY}"
        )
    refused = {
        "puts spaces behind words (treat_whitespace_as_suffix)": trainer.get(_TRAINER["treat_whitespace_as_suffix"]),
        "has no bytes for unknown signs (byte_fallback)": not trainer.get(_TRAINER["byte_fallback"]),
        "normalises text (precompiled_charsmap)": normalizer.get(2),
        "normalises text (normalization_rule_tsv)": normalizer.get(6),
        "takes out spaces (remove_extra_whitespaces)": normalizer.get(4, True),
        "leaves spaces as they are (escape_whitespaces)": not normalizer.get(5, True),
        "puts a space before symbols of its own (user_defined_symbols)": has_user_defined and normalizer.get(3, True),
    }
    for what, applies in refused.items():
        if applies:
            raise TokenizerError(f"{folder}: tokenizer.model {what}, which llama.cpp does not do; {NO_WAY}")
    for number in normalizer:
        if number not in _NORMALIZER:
            raise TokenizerError(f"{folder}: tokenizer.model has a normalizer setting {number} that is not known here")
