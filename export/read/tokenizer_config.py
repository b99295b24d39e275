"""What a Hub folder's smaller files say of a vocabulary: special tokens, where an answer ends, chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgellm.export.read import tokenizer_facts
from edgellm.export.read.gguf_vocabulary import MAX_TOKENS, NORMAL, UNUSED
from edgellm.export.read.json_file import read_json
from edgellm.export.read.kinds import wanted
from edgellm.export.read.tokenizer_facts import TokenizerError

# Texts at which llama.cpp ends an answer whatever the file says, those of a turn's end first.
_TURN_ENDS = (
    b"<|eot_id|>", b"<|im_end|>", b"<|end|>", b"<end_of_turn>", b"<|endoftext|>", b"<|end_of_text|>", b"<EOT>",
    b"_<EOT>", b"[EOT]", "<｜end▁of▁sentence｜>".encode(), b"<end_of_utterance>",
)  # fmt: skip
_ENDS = {
    *_TURN_ENDS, b"<|return|>", b"<|call|>", b"<|flush|>", b"<|calls|>", b"</s>", b"<|eom_id|>", b"[EOS]", b"<eos>",
    b"<turn|>", b"<|tool_response>", b"[e~[",
}  # fmt: skip


def special_ids(folder: Path, config: dict[str, Any], tokens: list[bytes], types: list[int]) -> dict[str, int]:
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


def ends_in_text(tokens: list[bytes], types: list[int]) -> list[str]:
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


def chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
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
