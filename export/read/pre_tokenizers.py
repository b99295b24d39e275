"""llama.cpp's name for how a byte-level tokenizer splits text, by the splitting rules as tokenizer.json states them.

A fine-tune with another vocabulary or more added tokens is recognised all the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgellm.export.read.json_file import read_json
from edgellm.export.read.tokenizer_facts import TokenizerError, parts

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


def pre_tokenizer(folder: Path) -> str:
    """llama.cpp's name for how the byte-level tokenizer of a Hub folder splits text, by its rules.

    Raises:
        TokenizerError: no rules of which llama.cpp is known to have the equal.
    """
    try:
        return name_of(folder, read_json(folder / "tokenizer.json"))
    except (KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{folder}: tokenizer.json is damaged ({error!r}): download it again") from error


def name_of(folder: Path, document: dict[str, Any]) -> str:
    """As `pre_tokenizer`, of a tokenizer.json that was read."""
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
