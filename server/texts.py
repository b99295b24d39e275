"""Text to tokens and back, and POST /tokenize and /detokenize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgellm.app.serving import Served
from edgellm.runtime.prompting import check_length
from edgellm.runtime.text.vocabulary import CannotEncode, Vocabulary
from edgellm.server.errors import invalid
from edgellm.server.fields import Fields


def encode_prompt(served: Served, text: str, *, begins: bool = False, is_marked: bool = False) -> list[int]:
    """Token ids of a text.

    Args:
        begins: with the token that the model was trained to have before every text.
        is_marked: control tokens that are spelled out are control tokens; otherwise they stay text.

    Raises:
        ApiError: the vocabulary cannot spell it.
        PromptTooLong: no context of this length could hold it.
    """
    vocabulary, data = served.vocabulary, text.encode()
    check_length(len(data), vocabulary, served.n_ctx)
    try:
        tokens = vocabulary.encode_marked(data) if is_marked else vocabulary.encode(data)
    except CannotEncode as error:
        raise invalid(str(error)) from error
    if tokens is None:
        raise invalid("parse_special is not to be had of this model's tokenizer", "parse_special")
    return vocabulary.begun(tokens) if begins else tokens


def are_ids(given: Any) -> bool:
    """Of token ids, and at least one."""
    return (
        isinstance(given, list) and bool(given) and all(isinstance(x, int) and not isinstance(x, bool) for x in given)
    )


def read_texts(fields: Fields, name: str, n_most: int) -> list[str | list[int]]:
    """A text, a list of texts, a list of token ids, or a list of such lists. Raises ApiError."""
    given = fields.take(name)
    several = given if isinstance(given, list) and not are_ids(given) else [given]
    if not several or not all(isinstance(one, str) or are_ids(one) for one in several):
        raise fields.refuse(name, "must be a text, a list of texts, a list of token ids, or a list of such lists")
    if len(several) > n_most:
        raise fields.refuse(name, f"is too much: at most {n_most:,} {name}s")
    return several


def check_ids(fields: Fields, name: str, vocabulary: Vocabulary, tokens: list[int]) -> list[int]:
    """Raises ApiError: one is none of the vocabulary's."""
    if not all(0 <= token < vocabulary.n_tokens for token in tokens):
        raise fields.refuse(name, f"holds an id that is no token: they are 0 to {vocabulary.n_tokens - 1:,}")
    return tokens


def text_of(vocabulary: Vocabulary, tokens: Sequence[int]) -> str:
    """Control tokens are spelled out."""
    return b"".join(map(vocabulary.literal, tokens)).decode("utf-8", "replace")


def piece_text(vocabulary: Vocabulary, token: int) -> str:
    """A token's text; bytes that are no whole characters are spelled "bytes:\\xe2\\x80", as OpenAI does."""
    data = vocabulary.literal(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def tokenized(fields: Fields, served: Served) -> dict[str, Any]:
    """The answer of POST /tokenize, which clients of llama.cpp ask with `content`, and those of vLLM with `prompt`."""
    content, prompt = fields.text("content"), fields.text("prompt")
    if content is not None and prompt is not None:
        raise fields.refuse("prompt", "goes without content: give one of them")
    if prompt is not None:
        return _tokenized_as_vllm(fields, served, prompt)
    if content is None:
        raise fields.refuse("content", "is missing: give the text")
    begins, is_marked = bool(fields.flag("add_special")), bool(fields.flag("parse_special"))
    with_pieces = fields.flag("with_pieces")
    fields.end()
    tokens = encode_prompt(served, content, begins=begins, is_marked=is_marked)
    if not with_pieces:
        return {"tokens": tokens}
    return {"tokens": [{"id": token, "piece": piece_text(served.vocabulary, token)} for token in tokens]}


def _tokenized_as_vllm(fields: Fields, served: Served, prompt: str) -> dict[str, Any]:
    """There control tokens that are spelled out are control tokens, and the first token is added if nothing is said."""
    begins = fields.flag("add_special_tokens") is not False
    fields.end()
    is_marked = served.vocabulary.encode_marked(b"") is not None
    tokens = encode_prompt(served, prompt, begins=begins, is_marked=is_marked)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": served.n_ctx}


def tokenizer_info(served: Served) -> dict[str, Any]:
    """What evaluations ask before they tokenize here: control tokens by their texts, and the chat template."""
    vocabulary = served.vocabulary
    ends = {"bos_token": vocabulary.bos, "eos_token": vocabulary.eos}
    texts = {name: None if token is None else text_of(vocabulary, [token]) for name, token in ends.items()}
    return {**texts, "chat_template": served.template.source}


def detokenized(fields: Fields, served: Served) -> dict[str, Any]:
    """The answer of POST /detokenize."""
    tokens, n_tokens = fields.take("tokens"), served.vocabulary.n_tokens
    fields.end()
    is_right = isinstance(tokens, list) and all(type(token) is int and 0 <= token < n_tokens for token in tokens)
    if not is_right:
        raise fields.refuse("tokens", f"must be a list of token ids, from 0 to {n_tokens - 1:,}")
    text = text_of(served.vocabulary, tokens)
    return {"content": text, "prompt": text}  # llama.cpp's name for it, and vLLM's
